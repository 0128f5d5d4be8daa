// SPDX-License-Identifier: Apache-2.0
//! Tests of resolving and importing, on a real overlay store.

mod bootstrap;
mod layouts;
mod sources;
mod support;
