// SPDX-License-Identifier: Apache-2.0
//! `(copy …)` from the context and from builds.

use crate::harness::{World, from};
use std::os::unix::fs::{PermissionsExt, symlink};

#[test]
fn the_context_is_copied_with_modes_and_links() {
    for world in World::all() {
        world.write("context/a", "A");
        world.write("context/d/script", "#!/bin/sh\necho ran\n");
        std::fs::set_permissions(
            world.path("context/d/script"),
            std::fs::Permissions::from_mode(0o750),
        )
        .unwrap();
        symlink("a", world.path("context/link")).unwrap();
        std::fs::hard_link(world.path("context/a"), world.path("context/twin")).unwrap();
        world.write("context/d/.git/config", "excluded");
        world.spec("(user (uid 1000) (gid 1000)) (copy (src .) (dst /usr/local/bin/) (exclude .git)) (run (shell \"true\"))");
        let id = world.ok(&["run", "spec.sexp", "context"]);
        let seen = world.inside(
            &id,
            "cd /usr/local/bin; cat a; stat -c '%a %u:%g' d/script; readlink link; stat -c %h a twin; ls -A d; stat -c %u /usr",
        );
        assert_eq!(
            seen, "A750 1000:1000\na\n2\n2\nscript\n0",
            "on {}",
            world.store
        );
        world.assert_clean();
    }
}

#[test]
fn a_copy_runs_again_only_when_its_files_change() {
    let Some(world) = World::new() else { return };
    world.write("context/file", "one");
    world.spec("(copy (src file) (dst /file))");
    let run = || world.run(&["run", "spec.sexp", "context"]);
    let first = run();
    // A new time is no change; a mode is one (OBuilder has a false hit there).
    fs_err::write(world.path("context/file"), "one").unwrap();
    let touched = run();
    assert_eq!(touched.stdout, first.stdout);
    assert!(touched.stderr.contains("0 steps built"), "{touched:#?}");
    std::fs::set_permissions(
        world.path("context/file"),
        std::fs::Permissions::from_mode(0o755),
    )
    .unwrap();
    let executable = run();
    assert_ne!(executable.stdout, first.stdout);
    fs_err::write(world.path("context/file"), "two").unwrap();
    let changed = run();
    assert_ne!(changed.stdout, executable.stdout);
    assert_eq!(world.inside(changed.stdout.trim(), "cat /file"), "two");
}

#[test]
fn a_build_that_changes_without_effect_does_not_run_what_copies_from_it() {
    let Some(world) = World::new() else { return };
    let spec = |how: &str| {
        format!(
            "((build dev ({0} (shell /bin/sh -c) (run (shell \"{how}\")))) {0} (shell /bin/sh -c)
              (copy (from (build dev)) (src /out) (dst /in)) (run (shell \"cat /in/x\")))",
            from()
        )
    };
    world.write("spec.sexp", spec("mkdir /out; echo x > /out/x"));
    let one = world.ok(&["run", "spec.sexp"]);
    world.write(
        "spec.sexp",
        spec("mkdir /out; echo other > /unseen; echo x > /out/x"),
    );
    let ran = world.run(&["run", "spec.sexp"]);
    assert_eq!(
        ran.stdout.trim(),
        one,
        "the copied files are the same: {ran:#?}"
    );
    assert!(ran.stderr.contains("1 step built"), "{ran:#?}");
}

#[test]
fn ten_thousand_files_go_in_one_copy() {
    let Some(world) = World::new() else { return };
    for d in 0..100 {
        let directory = world.path(&format!("context/d{d}"));
        fs_err::create_dir_all(&directory).unwrap();
        for f in 0..100 {
            fs_err::write(directory.join(format!("f{f}")), format!("{d}/{f}")).unwrap();
        }
    }
    world.spec("(copy (src .) (dst /src))");
    let id = world.ok(&["run", "spec.sexp", "context"]);
    assert_eq!(
        world.inside(&id, "find /src -type f | wc -l; cat /src/d42/f17"),
        "10000\n42/17"
    );
}

#[test]
fn links_in_the_tree_cannot_lead_a_copy_out_of_it() {
    let Some(world) = World::new() else { return };
    world.write("context/file", "mine");
    world.write("outside/file", "host");
    let outside = world.path("outside");
    let id = world.build(&format!(
        "(run (shell \"ln -s {0} /link; ln -s ../../../../../../../..{0} /up\"))",
        outside.display()
    ));
    assert_eq!(id.len(), 64);
    world.spec(&format!(
        "(run (shell \"ln -s {0} /link; ln -s ../../../../../../../..{0} /up\"))
         (copy (src context/file) (dst /link/file)) (copy (src context/file) (dst /up/file))",
        outside.display()
    ));
    // Whether it lands inside the tree or is refused: never outside.
    let _ = world.run(&["run", "spec.sexp"]);
    assert_eq!(
        fs_err::read_to_string(world.path("outside/file")).unwrap(),
        "host"
    );
    world.assert_clean();
}
