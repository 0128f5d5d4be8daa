// SPDX-License-Identifier: Apache-2.0
//! `obuild graph SPEC`: a spec's steps as a graph in DOT.

use super::{parse_spec, print, read_spec};
use crate::cli::{Global, Graph};
use crate::failure::Failure;
use anyhow::Result;
use obuild_specs::{BaseInfo, LowerOptions, StepId};

pub(crate) fn run(global: &Global, options: &Graph) -> Result<()> {
    let text = read_spec(&options.spec)?;
    let spec = parse_spec(&options.spec, &text, crate::progress::colour(global.color))?;
    // The shape of the graph does not depend on what the bases hold.
    let info = |_: &str| {
        Some(BaseInfo {
            id: StepId::from_digest([0; 32]),
            env: Vec::new(),
        })
    };
    let plan = obuild_specs::lower(&spec, &info, &LowerOptions::default())
        .map_err(|errors| Failure::usage(super::run::messages(&errors)))?;
    print(plan.to_dot())
}
