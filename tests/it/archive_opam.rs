// SPDX-License-Identifier: Apache-2.0
//! opam as a client of a synced archive when every upstream is gone: real archives where the machine has them, else ones made here.

use crate::archive_sync::Mirror;
use crate::harness::binary;
use obuild_fixtures::opam::opam_clients;
use obuild_fixtures::server::Server;
use std::path::Path;
use std::process::Command;

/// A package whose archive is served by the mirror's upstream server.
struct Real {
    name: String,
    version: String,
    file: String,
    checksums: Vec<String>,
    data: Vec<u8>,
}

/// Packages whose archives have the bytes that real opam files declare.
fn real(data: &Path) -> Vec<Real> {
    let directory = data.join("real-archives");
    let manifest = fs_err::read_to_string(directory.join("manifest.tsv")).unwrap();
    let mut packages: Vec<Real> = Vec::new();
    for line in manifest.lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let (path, section, checksums, file) = (fields[1], fields[2], fields[6], fields[7]);
        let package = path.split('/').nth(2).unwrap();
        let (name, version) = package.split_once('.').unwrap();
        // One version of a name, one package of an archive: enough, and quick.
        let known = |other: &Real| other.name == name || other.file == file;
        if section != "url" || packages.iter().any(known) {
            continue;
        }
        packages.push(Real {
            name: name.to_owned(),
            version: version.to_owned(),
            file: file.to_owned(),
            checksums: checksums.split(' ').map(str::to_owned).collect(),
            data: fs_err::read(directory.join("files").join(file)).unwrap(),
        });
    }
    assert!(packages.len() > 10, "the manifest has more");
    packages
}

/// A package made here, with checksums by coreutils.
fn made(mirror: &Mirror) -> Vec<Real> {
    let shell = "mkdir -p made-1/src && echo 'let () = ()' > made-1/src/made.ml && tar -czf made.tgz made-1";
    let status = Command::new("sh")
        .args(["-c", shell])
        .current_dir(mirror.directory.path())
        .status();
    assert!(status.unwrap().success());
    let data = fs_err::read(mirror.path("made.tgz")).unwrap();
    let sum = |kind: &str| format!("{kind}={}", crate::archive_sync::sum(kind, &data));
    vec![Real {
        name: "made".to_owned(),
        version: "1".to_owned(),
        file: "made.tgz".to_owned(),
        checksums: vec![sum("md5"), sum("sha256"), sum("sha512")],
        data,
    }]
}

#[test]
fn opam_installs_from_the_mirror_when_every_upstream_is_gone() {
    // The oldest of them: the others read the same cache in the same way.
    let Some(program) = opam_clients().into_iter().next() else {
        return;
    };
    let mirror = Mirror::new();
    let packages = match obuild_fixtures::opam_data() {
        Some(data) => real(&data),
        None => made(&mirror),
    };
    for package in &packages {
        let Real { name, version, .. } = package;
        let path = format!("/{}", package.file);
        let checksums: Vec<String> = package
            .checksums
            .iter()
            .map(|sum| format!("{sum:?}"))
            .collect();
        let text = format!(
            "opam-version: \"2.0\"\nmaintainer: \"a@a.example\"\nsynopsis: \"a\"\nurl {{\n  src: \"{}\"\n  checksum: [ {} ]\n}}\n",
            mirror.server.url(&path),
            checksums.join(" ")
        );
        mirror.server.put(&path, &package.data);
        let directory = mirror.path(&format!("repo/packages/{name}/{name}.{version}"));
        fs_err::create_dir_all(&directory).unwrap();
        fs_err::write(directory.join("opam"), text).unwrap();
    }
    mirror.commit();
    let ran = mirror.run(&["sync", "repo", "--to", "out"]);
    assert_eq!(ran.status, 0, "{}: {ran:#?}", binary());

    for package in &packages {
        mirror.server.forget(&format!("/{}", package.file));
    }
    let upstream = mirror.server.requests().len();
    let ours = Server::start();
    ours.directory(mirror.path("out"));
    let opam = |arguments: &[&str]| mirror.client(&program, arguments);
    opam(&[
        "init",
        "--bare",
        "-n",
        "--disable-sandboxing",
        "default",
        &ours.url(""),
    ]);
    opam(&["switch", "create", "here", "--empty"]);
    // All are synced; a few are enough for opam, which takes seconds for each.
    let few = &packages[..packages.len().min(5)];
    for package in few {
        let name = format!("{}.{}", package.name, package.version);
        opam(&["source", &name, "--dir", &format!("sources/{name}")]);
        let files = fs_err::read_dir(mirror.path(&format!("sources/{name}"))).unwrap();
        assert!(files.count() > 0, "{name} has files");
    }
    let first = format!("{}.{}", packages[0].name, packages[0].version);
    opam(&["install", &first]);
    assert!(opam(&["list", "--installed", "--short"]).contains(&packages[0].name));
    assert_eq!(
        mirror.server.requests().len(),
        upstream,
        "nobody went upstream"
    );
    let from_cache = |path: &str| path.starts_with("/cache/");
    let fetched = ours
        .requests()
        .iter()
        .filter(|request| from_cache(&request.path))
        .count();
    assert!(fetched >= few.len(), "{fetched} of {}", few.len());
}
