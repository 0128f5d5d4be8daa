// SPDX-License-Identifier: Apache-2.0
//! The `obuild` command. The wiring comes once the crates stand.
fn main() {}
