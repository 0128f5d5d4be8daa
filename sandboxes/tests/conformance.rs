// SPDX-License-Identifier: Apache-2.0
//! What every sandbox does, checked on each.

mod support;

use obuild_sandboxes::{Exit, Sandbox};
use support::{Tree, host_mounts, native, output, run, shell};

#[test]
fn exits_are_reported() {
    let Some(tree) = Tree::new() else { return };
    let sandbox = native();
    let before = host_mounts();
    for rootfs in [tree.directory(), tree.overlay()] {
        assert_eq!(
            output(&sandbox, &rootfs, "echo one; echo two >&2"),
            "one\ntwo\n"
        );
        assert_eq!(
            run(&sandbox, &shell("exit 7"), &rootfs).unwrap().0,
            Exit::Status(7)
        );
        assert_eq!(
            run(&sandbox, &shell("kill -TERM $$"), &rootfs).unwrap().0,
            Exit::Signal(15)
        );
    }
    assert_eq!(host_mounts(), before);
    assert_eq!(sandbox.name(), "native");
}
