// SPDX-License-Identifier: Apache-2.0
//! `(cache …)` keeps a directory from step to step, outside of every result.

use crate::harness::World;

#[test]
fn a_cache_outlives_steps_and_stays_out_of_results() {
    for world in World::all() {
        let step = |n: u32| {
            format!(
                "(run (cache (dl (target /cache))) (shell \"echo {n} >> /cache/log; cat /cache/log\"))"
            )
        };
        let one = world.build(&step(1));
        assert_eq!(world.ok(&["log", &one]), "1");
        let two = world.build(&step(2));
        assert_eq!(world.ok(&["log", &two]), "1\n2");
        assert_eq!(
            world.inside(&two, "ls -A / | grep -c cache || true"),
            "0",
            "no mount point is left"
        );
        // A step that fails gives its cache back too.
        world.spec("(run (cache (dl (target /cache))) (shell \"echo 3 >> /cache/log; false\"))");
        assert_eq!(world.run(&["run", "spec.sexp"]).status, 1);
        let four = world.build(&step(4));
        assert_eq!(world.ok(&["log", &four]), "1\n2\n3\n4");
        world.ok(&["delete", "--cache", "dl"]);
        let five = world.build(&step(5));
        assert_eq!(world.ok(&["log", &five]), "5");
        world.assert_clean();
    }
}

#[test]
fn a_cache_belongs_to_the_step_s_user_and_its_name_cannot_escape() {
    let Some(world) = World::new() else { return };
    let id = world.build(
        "(user (uid 1000) (gid 1000))
         (run (cache (../../../../tmp/obuild-escape (target /tmp/c))) (shell \"touch /tmp/c/mine; stat -c %u /tmp/c\"))",
    );
    assert_eq!(world.ok(&["log", &id]), "1000");
    assert!(!std::path::Path::new("/tmp/obuild-escape").exists());
    let df = world.ok(&["df", "--format", "json"]);
    assert!(df.contains("../../../../tmp/obuild-escape"), "{df}");
}
