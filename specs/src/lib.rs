// SPDX-License-Identifier: Apache-2.0
//! Text to [`Plan`]: the S-expression front end, validation with source spans, conversion and step identity.
//!
//! Pure: no input or output, no async, nothing of the host. Bases are resolved by the caller between
//! parsing and lowering, because an environment inherited from an image is part of the steps' ids.

pub mod diagnostic;
pub mod plan;
pub mod sexp;

pub use diagnostic::{Diagnostic, Severity};
pub use plan::{
    BaseInfo, CacheMount, Copy, CopySource, Network, Node, NodeIndex, Operation, Plan, Run,
    SecretMount, StepId, User,
};
