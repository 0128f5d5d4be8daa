// SPDX-License-Identifier: Apache-2.0
//! Runs one process tree in one root file system.
//!
//! [`Sandbox`] is the one way in. A sandbox knows nothing of stores or steps: it gets a tree (or the recipe for its
//! mount), a command, and where the output goes.
//!
//! All calls block until the command has ended: async callers run them on blocking threads.

mod cancel;
mod cgroup;
#[cfg(feature = "docker")]
mod docker;
pub mod helper;
mod native;
mod runc;
mod sandbox;
mod seccomp;
mod step;
mod sys;
mod terminal;
mod tree;
mod user;
mod wire;
mod zygote;

pub use cancel::Cancel;
#[cfg(feature = "docker")]
pub use docker::{Docker, DockerOptions};
pub use native::{Native, NativeOptions};
pub use runc::{Runc, RuncOptions};
pub use sandbox::{
    Command, Error, Exit, Features, Limits, Mount, MountSource, Network, OverlayMount, Rootfs,
    Sandbox, Secret, Stdio, Upper, User, Variation,
};
pub use user::{UserOptions, UserSandbox};
pub use zygote::HelperCommand;
