// SPDX-License-Identifier: Apache-2.0
//! Trees with hand-made databases, good and hostile, and the documents made of them.

use super::*;
use fs_err::File;
use proptest::prelude::*;
use serde_json::Value;
use std::os::fd::AsFd;
use std::path::Path;
use tempfile::TempDir;

struct Tree(TempDir);

impl Tree {
    fn new() -> Self {
        Self(TempDir::new().expect("a temporary directory"))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(self, path: &str, text: impl AsRef<[u8]>) -> Self {
        let path = self.path().join(path);
        fs_err::create_dir_all(path.parent().expect("a file has a directory"))
            .expect("it can be made");
        fs_err::write(path, text).expect("it can be written");
        self
    }

    fn link(self, path: &str, target: &str) -> Self {
        let path = self.path().join(path);
        fs_err::create_dir_all(path.parent().expect("a link has a directory"))
            .expect("it can be made");
        fs_err::os::unix::fs::symlink(target, path).expect("it can be made");
        self
    }

    fn survey(&self) -> Result<Inventory, SbomError> {
        let root = File::open(self.path()).expect("it is there");
        survey(root.as_fd(), &|| false)
    }

    fn urls(&self) -> Vec<String> {
        let inventory = self.survey().expect("the tree can be read");
        let packages = inventory.packages.into_iter();
        packages.map(|package| package.url).collect()
    }

    fn bill(&self) -> Bill {
        Bill {
            subject: Subject {
                name: "result".into(),
                digest: Some("ab".repeat(32)),
            },
            inventory: self.survey().expect("the tree can be read"),
            created: 1_700_000_000,
            version: "1.0".into(),
        }
    }
}

/// A tree that holds something of everything.
fn full() -> Tree {
    Tree::new()
        .write("usr/lib/os-release", "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID=\"12\"\n")
        .link("etc/os-release", "../usr/lib/os-release")
        .write(
            "var/lib/dpkg/status",
            "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nSource: glibc (2.36-9)\nVersion: 2.36-9+deb12u4\nMaintainer: GNU Libc Maintainers <debian-glibc@lists.debian.org>\n\
             Homepage: https://www.gnu.org/software/libc/libc.html\nDescription: GNU C Library\n long text\n\n\
             Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\
             Package: half\nStatus: install ok unpacked\nVersion: 1:2~rc1\nArchitecture: all\n\n",
        )
        .write(
            "usr/share/doc/libc6/copyright",
            "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nLicense: LGPL-2.1+\n",
        )
        .write("var/lib/dpkg/status.d/tzdata", "Package: tzdata\nVersion: 2024a\nArchitecture: all\n")
        .write("var/lib/dpkg/status.d/tzdata.md5sums", "0  usr/share/x\n")
        .write(
            "lib/apk/db/installed",
            "C:Q1qKcZ+j23xssAXmgQhkOO8dHnbWw=\nP:musl\nV:1.2.4-r2\nA:x86_64\nT:the musl c library\nU:https://musl.libc.org/\nL:MIT\no:musl\nF:lib\nR:ld-musl-x86_64.so.1\n\nP:x\nV:1\nL:custom thing\no:y\n",
        )
        .write(
            "home/opam/.opam/4.14/.opam-switch/switch-state",
            "opam-version: \"2.0\"\ninstalled: [\n  \"dune.3.16.0\"\n  \"base-unix.base\"\n  \"mine.dev\"\n  \"../../../etc.1\"\n]\npinned: \"mine.dev\"\n",
        )
        .write(
            "home/opam/.opam/4.14/.opam-switch/packages/dune.3.16.0/opam",
            format!("license: \"MIT\"\nhomepage: \"https://dune.build\"\nurl {{\n  src: \"https://x.org/dune.tbz\"\n  checksum: [ \"sha256={}\" \"sha512=short\" ]\n}}\n", "5a".repeat(32)),
        )
        .write("home/opam/.opam/4.14/.opam-switch/overlay/mine/opam", "license: [\"ISC\" \"MIT\"]\n")
        .write("srv/project/_opam/.opam-switch/packages/ocaml.5.2.0/opam", "")
}

#[test]
fn every_database_is_read() {
    assert_eq!(
        full().urls(),
        [
            "pkg:apk/debian/musl@1.2.4-r2?arch=x86_64&distro=debian-12",
            "pkg:apk/debian/x@1?distro=debian-12&upstream=y",
            "pkg:deb/debian/half@1:2~rc1?arch=all&distro=debian-12",
            "pkg:deb/debian/libc6@2.36-9%2Bdeb12u4?arch=amd64&distro=debian-12&upstream=glibc%402.36-9",
            "pkg:deb/debian/tzdata@2024a?arch=all&distro=debian-12",
            "pkg:opam/base-unix@base",
            "pkg:opam/dune@3.16.0",
            "pkg:opam/mine@dev",
            "pkg:opam/ocaml@5.2.0",
        ]
    );
    let inventory = full().survey().expect("the tree can be read");
    let licence = |name: &str| {
        let mut packages = inventory.packages.iter();
        let package = packages.find(|package| package.name == name);
        package.and_then(|package| package.licence.clone())
    };
    assert_eq!(licence("libc6").as_deref(), Some("LGPL-2.1-or-later"));
    assert_eq!(licence("mine").as_deref(), Some("ISC AND MIT"));
    assert_eq!(
        Tree::new().survey().expect("nothing is wrong"),
        Inventory::default()
    );
}

#[test]
fn links_do_not_lead_out_of_the_tree() {
    let outside = Tree::new().write(
        "status",
        "Package: outside\nVersion: 1\nStatus: a b installed\n",
    );
    let direct = outside.path().join("status").display().to_string();
    let tree = Tree::new()
        .link("var/lib/dpkg/status", &direct)
        .link("lib/apk", &outside.path().display().to_string())
        .link("etc/os-release", "/etc/os-release")
        .link("home/.opam-switch", "/")
        .link("x", "x");
    assert_eq!(
        tree.survey().expect("nothing is wrong"),
        Inventory::default()
    );
    // An absolute link means the tree's own root.
    let tree = Tree::new().link("var/lib/dpkg/status", "/real").write(
        "real",
        "Package: inside\nVersion: 1\nStatus: a b installed\n",
    );
    assert_eq!(tree.urls(), ["pkg:deb/debian/inside@1"]);
}

#[test]
fn what_is_no_file_is_no_database() {
    let tree = Tree::new()
        .write("var/lib/dpkg/x", "")
        .write("lib/apk/db/installed/x", "");
    let pipe = tree.path().join("var/lib/dpkg/status");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .expect("a pipe can be made");
    assert_eq!(tree.urls(), [""; 0]);
}

#[test]
fn a_database_without_end_is_an_error() {
    let tree = Tree::new().write("var/lib/dpkg/status", "");
    let file = fs_err::OpenOptions::new()
        .write(true)
        .open(tree.path().join("var/lib/dpkg/status"))
        .expect("it is there");
    // A hole takes no room on the disk.
    file.set_len(1 << 40).expect("a hole can be made");
    assert!(matches!(tree.survey(), Err(SbomError::TooLarge { .. })));
    let tree = Tree::new().write(
        "var/lib/dpkg/status.d/x",
        "Package: a\nVersion: 1\n\n".repeat(PACKAGES + 1),
    );
    assert!(matches!(tree.survey(), Err(SbomError::TooMany { .. })));
}

#[test]
fn cancelling_stops_it() {
    let tree = full();
    let root = File::open(tree.path()).expect("it is there");
    let stopped = survey(root.as_fd(), &|| true);
    assert!(matches!(
        stopped,
        Err(SbomError::Tree(TreeError::Cancelled))
    ));
}

/// Checks what SPDX's schema requires, and that every reference leads somewhere.
fn check_spdx(document: &Value) {
    for field in [
        "spdxVersion",
        "dataLicense",
        "SPDXID",
        "name",
        "documentNamespace",
    ] {
        assert!(document[field].is_string(), "{field}: {document:#}");
    }
    assert_eq!(document["creationInfo"]["created"], "2023-11-14T22:13:20Z");
    let mut ids = vec!["SPDXRef-DOCUMENT"];
    for package in document["packages"].as_array().expect("a list") {
        for field in [
            "SPDXID",
            "name",
            "downloadLocation",
            "licenseDeclared",
            "copyrightText",
        ] {
            assert!(package[field].is_string(), "{field}: {package:#}");
        }
        let id = package["SPDXID"].as_str().expect("checked");
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
        assert!(
            id.strip_prefix("SPDXRef-")
                .is_some_and(|rest| rest.bytes().all(fits)),
            "{id}"
        );
        assert!(!ids.contains(&id), "{id} is there twice");
        ids.push(id);
    }
    for relationship in document["relationships"].as_array().expect("a list") {
        for end in ["spdxElementId", "relatedSpdxElement"] {
            assert!(ids.contains(&relationship[end].as_str().expect("a string")));
        }
    }
}

/// Checks what the schema of `CycloneDX` requires, and that every reference leads somewhere.
fn check_cyclonedx(document: &Value) {
    assert_eq!(document["bomFormat"], "CycloneDX");
    assert_eq!(document["specVersion"], "1.6");
    let serial = document["serialNumber"].as_str().expect("a string");
    assert_eq!(serial.len(), "urn:uuid:".len() + 36);
    assert_eq!(document["metadata"]["timestamp"], "2023-11-14T22:13:20Z");
    let mut references = vec![];
    for component in document["components"].as_array().expect("a list") {
        assert!(
            component["type"].is_string() && component["name"].is_string(),
            "{component:#}"
        );
        let reference = component["bom-ref"].as_str().expect("a string");
        assert!(
            !references.contains(&reference),
            "{reference} is there twice"
        );
        references.push(reference);
    }
    let held = &document["dependencies"][0]["dependsOn"];
    assert_eq!(held.as_array().expect("a list").len(), references.len());
}

#[test]
fn documents_are_complete_and_the_same_each_time() {
    let (tree, twin) = (full(), full());
    let bill = tree.bill();
    let (spdx, cyclonedx) = (bill.to_spdx(), bill.to_cyclonedx());
    check_spdx(&spdx);
    check_cyclonedx(&cyclonedx);
    assert_eq!(spdx.to_string(), twin.bill().to_spdx().to_string());
    assert_eq!(
        cyclonedx.to_string(),
        twin.bill().to_cyclonedx().to_string()
    );
    let other = tree
        .write("var/lib/dpkg/status.d/new", "Package: new\nVersion: 1\n")
        .bill();
    assert_ne!(
        spdx["documentNamespace"],
        other.to_spdx()["documentNamespace"]
    );
    assert_ne!(
        cyclonedx["serialNumber"],
        other.to_cyclonedx()["serialNumber"]
    );

    let find = |document: &Value, list: &str, name: &str| {
        let entries = document[list].as_array().expect("a list");
        let entry = entries.iter().find(|entry| entry["name"] == name);
        entry.expect("it is there").clone()
    };
    let dune = find(&spdx, "packages", "dune");
    assert_eq!(dune["downloadLocation"], "https://x.org/dune.tbz");
    assert_eq!(dune["checksums"][0]["checksumValue"], "5a".repeat(32));
    assert_eq!(
        dune["externalRefs"][0]["referenceLocator"],
        "pkg:opam/dune@3.16.0"
    );
    assert_eq!(
        find(&spdx, "packages", "x")["licenseDeclared"],
        "NOASSERTION"
    );
    let dune = find(&cyclonedx, "components", "dune");
    assert_eq!(dune["externalReferences"][1]["hashes"][0]["alg"], "SHA-256");
    assert_eq!(dune["licenses"][0]["expression"], "MIT");
    let custom = find(&cyclonedx, "components", "x");
    assert_eq!(custom["licenses"][0]["license"]["name"], "custom thing");
    let musl = find(&cyclonedx, "components", "musl");
    assert_eq!(musl["hashes"][0]["alg"], "SHA-1");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn hostile_databases_give_sound_documents(
        status in hostile(), apk in hostile(), state in hostile(), release in hostile(), copyright in hostile(),
    ) {
        let tree = Tree::new()
            .write("var/lib/dpkg/status.d/x", status)
            .write("lib/apk/db/installed", apk)
            .write("a/.opam-switch/switch-state", state)
            .write("usr/share/doc/a/copyright", copyright)
            .write("etc/os-release", release);
        let bill = tree.bill();
        check_spdx(&bill.to_spdx());
        check_cyclonedx(&bill.to_cyclonedx());
    }
}

/// Pieces of all databases in any order, with bytes that belong nowhere.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let pieces = [
        "Package: ",
        "Version: ",
        "Architecture: ",
        "Source: ",
        "License: ",
        "Format: copyright-format/1.0",
        "Files: *",
        "P:",
        "V:",
        "A:",
        "C:Q1",
        "L:",
        "o:",
        "ID=",
        "VERSION_ID=",
        "NAME=",
        "installed: [",
        "\"",
        "a",
        "a.1",
        "../..",
        "]",
        "{",
        "}",
        "(*",
        "\n",
        "\n\n",
        " ",
        "\u{0}",
        "é",
        "%",
        "?",
        "@",
        "#",
        "/",
        "\\",
        " or ",
        " with ",
        "GPL-2+",
        "and",
    ];
    let piece = prop_oneof![
        8 => proptest::sample::select(pieces.to_vec()).prop_map(|text| text.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 1..4),
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}
