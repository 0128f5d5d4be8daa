// SPDX-License-Identifier: Apache-2.0
//! Bills of materials, provenance, signatures.

use crate::harness::World;
use serde_json::Value;

/// A step that leaves databases of dpkg, apk and opam behind.
const DATABASES: &str = r#"(run (shell "mkdir -p /etc /var/lib/dpkg /lib/apk/db /root/.opam/5.2/.opam-switch
printf 'ID=debian\nVERSION_ID=12\n' > /etc/os-release
printf 'Package: libc6\nStatus: install ok installed\nVersion: 2.36-9\nArchitecture: amd64\n' > /var/lib/dpkg/status
printf 'P:musl\nV:1.2.4-r2\nA:x86_64\nL:MIT\n' > /lib/apk/db/installed
echo 'installed: [\"dune.3.16.0\"]' > /root/.opam/5.2/.opam-switch/switch-state"))"#;

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("a document")
}

#[test]
fn a_bill_of_materials_is_the_same_of_every_store() {
    let mut first: Option<(Value, Value)> = None;
    for world in World::all() {
        let id = world.build(DATABASES);
        let bill = |format: &str| {
            let mut command = world.command(&["sbom", &id[..10], "--format", format]);
            let output = command.env("SOURCE_DATE_EPOCH", "1700000000").output();
            let output = output.expect("the binary runs");
            assert!(output.status.success(), "{output:?}");
            json(&String::from_utf8_lossy(&output.stdout))
        };
        let both = (bill("spdx"), bill("cyclonedx"));
        let urls: Vec<&str> = both.1["components"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|component| component["purl"].as_str())
            .collect();
        assert_eq!(
            urls,
            [
                "pkg:apk/debian/musl@1.2.4-r2?arch=x86_64&distro=debian-12",
                "pkg:deb/debian/libc6@2.36-9?arch=amd64&distro=debian-12",
                "pkg:opam/dune@3.16.0",
            ]
        );
        let first = first.get_or_insert_with(|| both.clone());
        assert_eq!(*first, both);

        // Without the variable the time is the build's, so that it is the same again.
        world.ok(&["sbom", &id, "-o", "bill.json"]);
        let written = fs_err::read_to_string(world.path("bill.json")).unwrap();
        assert_eq!(written.trim_end(), world.ok(&["sbom", &id]));
        assert_ne!(json(&written)["creationInfo"], first.0["creationInfo"]);
        world.assert_clean();
    }
}
