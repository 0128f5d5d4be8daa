// SPDX-License-Identifier: Apache-2.0
//! A root tree as the helper builds it: mounts, and the points they are mounted on.

mod mount;
mod points;

pub(crate) use mount::{
    Attributes, attach, attach_at, bind, bind_all, copy, file_system, overlay, overlay_appends,
};
pub(crate) use points::{Kind, Tree};
