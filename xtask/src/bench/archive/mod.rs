// SPDX-License-Identifier: Apache-2.0
//! Comparisons of the archive's parts with opam's own tools, on the real opam-repository.

mod opam;

use super::scenarios::Scenario;

/// All of them.
pub(crate) const ALL: &[Scenario] = &[Scenario {
    name: "opam",
    summary: "parsing every opam file of opam-repository, against OCaml's parser",
    run: opam::run,
    verdicts: opam::verdicts,
}];
