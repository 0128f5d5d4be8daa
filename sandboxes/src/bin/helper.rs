// SPDX-License-Identifier: Apache-2.0
//! The sandbox helper as a program of its own, for this crate's tests and benchmarks. `obuild` calls
//! [`obuild_sandboxes::helper::main`] from its own executable instead.

use std::process::ExitCode;

fn main() -> ExitCode {
    obuild_sandboxes::helper::main()
}
