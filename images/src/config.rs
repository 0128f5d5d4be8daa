// SPDX-License-Identifier: Apache-2.0
//! What an image says about the processes that run in it.

use bstr::BString;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An image's configuration. The default is that of an image which says nothing.
///
/// Fields are those of OCI image-spec v1.1 config.md, and `shell`, `on_build` of Docker's image specification v1.2.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// The environment, in the image's order.
    pub env: Vec<(BString, BString)>,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty is root.
    pub user: BString,
    /// The working directory; empty is `/`.
    pub workdir: BString,
    /// What is put before the command.
    pub entrypoint: Option<Vec<BString>>,
    /// The command.
    pub cmd: Option<Vec<BString>>,
    /// The shell of the shell form of Dockerfile instructions.
    pub shell: Option<Vec<BString>>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Ports that a container listens on, as `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Directories meant for volumes.
    pub volumes: Vec<String>,
    /// The signal that stops a container.
    pub stop_signal: Option<String>,
    /// Dockerfile instructions for images built upon this one.
    pub on_build: Vec<String>,
    /// The architecture, as Go names it (`amd64`); empty when unknown.
    pub architecture: String,
    /// The variant of the architecture (`v7`).
    pub variant: Option<String>,
    /// The operating system (`linux`); empty when unknown.
    pub os: String,
}
