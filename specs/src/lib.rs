// SPDX-License-Identifier: Apache-2.0
//! Text to [`Plan`]: the S-expression front end, validation with source spans, conversion and step identity.
//!
//! Pure: no input or output, no async, nothing of the host. Bases are resolved by the caller between
//! parsing and lowering, because an environment inherited from an image is part of the steps' ids.

pub mod diagnostic;
pub mod dockerfile;
mod dot;
pub mod identity;
mod lower;
pub mod plan;
pub mod sexp;
pub mod spec;
mod target;

pub use diagnostic::{Diagnostic, Severity};
pub use dockerfile::{Dockerfile, Escape, to_dockerfile};
pub use identity::{Digester, copy_id, run_id};
pub use lower::{DEFAULT_PATH, LowerOptions, lower};
pub use plan::{
    BaseInfo, CacheMount, Copy, CopySource, Network, Node, NodeIndex, Operation, Plan, Run,
    SecretMount, StepId, User,
};
pub use spec::Spec;
