// SPDX-License-Identifier: Apache-2.0
//! Executes a plan over a store and a sandbox.
