// SPDX-License-Identifier: Apache-2.0
//! Tests of resolving and importing, on a real overlay store.

mod bootstrap;
mod docker;
mod layouts;
mod lies;
mod pulling;
mod pushing;
mod sources;
mod support;
mod wire;
