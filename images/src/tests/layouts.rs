// SPDX-License-Identifier: Apache-2.0
//! Image layouts: shared layers, whiteouts, media types, platforms, damage.

use super::support::{Area, DOCKER, Layout, OCI, Types, archive, gzip, zstd};
use crate::{Digest, Error, Progress, host_architecture, import};
use obuild_fixtures::skip;
use obuild_stores::Store as _;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

#[test]
fn images_share_their_layers() {
    let Some(area) = Area::new() else { return };
    let base = archive(&[
        ("etc/name", "base"),
        ("etc/gone", "x"),
        ("dir/a", "a"),
        ("dir/b", "b"),
    ]);
    let one = archive(&[
        ("etc/name", "one"),
        ("etc/.wh.gone", ""),
        ("dir/.wh..wh..opq", ""),
        ("dir/c", "c"),
    ]);
    let two = archive(&[("etc/two", "two")]);
    let mut layout = Layout::new(area.path("layout"));
    let config = json!({"Env": ["PATH=/bin", "A=b=c"], "User": "1000:5", "WorkingDir": "/w", "Entrypoint": ["/e"], "Shell": ["/s", "-c"], "Labels": {"l": "v"}});
    let image = layout.image(OCI, &[(gzip(&base), &base), (zstd(&one), &one)], &config);
    layout.tag(image, Some("one"));
    // The same layer in another compression is the same layer.
    let image = layout.image(
        OCI,
        &[(base.clone(), &base), (gzip(&two), &two)],
        &json!(null),
    );
    layout.tag(image, Some("two"));

    let resolved = area.resolve("oci:layout:one").expect("resolves");
    assert_eq!(
        resolved.config.env,
        [("PATH".into(), "/bin".into()), ("A".into(), "b=c".into())]
    );
    assert_eq!(
        (resolved.config.user, resolved.config.workdir),
        ("1000:5".into(), "/w".into())
    );
    assert_eq!(resolved.config.shell, Some(vec!["/s".into(), "-c".into()]));
    assert_eq!(resolved.config.entrypoint, Some(vec!["/e".into()]));
    assert_eq!(resolved.config.labels["l"], "v");
    let one = area.import("oci:layout:one").expect("imports");
    assert_eq!((one, area.store.prepared()), (resolved.id, 2));
    let two = area.import("oci:layout:two").expect("imports");
    assert_eq!(area.store.prepared(), 3, "the base is unpacked once");
    assert_eq!(area.import("oci:layout:one").expect("imports"), one);
    assert_eq!(area.store.prepared(), 3);

    let tree = area.tree(one);
    assert_eq!(
        (tree.text("etc/name"), tree.names("etc"), tree.names("dir")),
        ("one".into(), vec!["name".into()], vec!["c".into()])
    );
    let tree = area.tree(two);
    assert_eq!(tree.text("etc/name"), "base");
    assert_eq!(
        (tree.names("etc"), tree.names("dir")),
        (
            vec!["gone".into(), "name".into(), "two".into()],
            vec!["a".into(), "b".into()]
        )
    );
    assert_eq!(
        fs_err::read_dir(area.path("store/state/imports"))
            .expect("there")
            .count(),
        0,
        "locks are removed"
    );
}

#[test]
fn an_import_at_the_same_time_is_waited_for() {
    let Some(area) = Area::new() else { return };
    let layers: Vec<Vec<u8>> = (0..4)
        .map(|n| archive(&[(&format!("f{n}"), &"x".repeat(100_000))]))
        .collect();
    let mut layout = Layout::new(area.path("layout"));
    let layers: Vec<(Vec<u8>, &[u8])> = layers
        .iter()
        .map(|layer| (gzip(layer), layer.as_slice()))
        .collect();
    let image = layout.image(OCI, &layers, &json!({}));
    layout.tag(image, None);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| area.import("oci:layout").expect("imports"));
        }
    });
    assert_eq!(area.store.prepared(), 4);
}

#[test]
fn damage_is_found_and_leaves_nothing() {
    let Some(area) = Area::new() else { return };
    // Not too easy to compress, so that there is something to damage.
    let content: String = (0..20_000_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_string())
        .collect();
    let plain = archive(&[("file", &content)]);
    let mut layout = Layout::new(area.path("layout"));
    for (tag, blob) in [
        ("plain", plain.clone()),
        ("gzip", gzip(&plain)),
        ("zstd", zstd(&plain)),
    ] {
        let image = layout.image(OCI, &[(blob.clone(), &plain)], &json!({}));
        layout.tag(image, Some(tag));
        let path = layout.blob_path(Digest::of(&blob));
        for at in [0, 300, blob.len() / 2, blob.len() - 1] {
            let mut damaged = blob.clone();
            damaged[at] ^= 1;
            fs_err::write(&path, damaged).expect("written");
            let error = area
                .import(&format!("oci:layout:{tag}"))
                .expect_err("damaged");
            assert!(
                matches!(
                    error,
                    Error::Digest {
                        what: "its digest",
                        ..
                    }
                ),
                "{tag} {at}: {error:?}"
            );
            area.assert_empty();
        }
        fs_err::write(&path, &blob[..blob.len() - 1]).expect("written");
        let error = area.import(&format!("oci:layout:{tag}")).expect_err("cut");
        assert!(matches!(error, Error::NotUsable { .. }), "{error:?}");
        fs_err::remove_file(&path).expect("removed");
        let error = area
            .import(&format!("oci:layout:{tag}"))
            .expect_err("missing");
        assert!(
            matches!(&error, Error::MissingBlob { what, .. } if what == "layer 1 of 1"),
            "{error:?}"
        );
        area.assert_empty();
    }
    // A good blob whose content is not what the configuration says.
    for (tag, blob) in [("wrong-gzip", gzip(&plain)), ("wrong-plain", plain.clone())] {
        let image = layout.image(OCI, &[(blob, b"something else")], &json!({}));
        layout.tag(image, Some(tag));
        let error = area
            .import(&format!("oci:layout:{tag}"))
            .expect_err("wrong content");
        assert!(
            matches!(
                error,
                Error::Digest {
                    what: "the digest of its uncompressed content",
                    ..
                }
            ),
            "{error:?}"
        );
        area.assert_empty();
    }
}

#[test]
fn a_cancelled_import_leaves_nothing() {
    let Some(area) = Area::new() else { return };
    let base = archive(&[("a", "a")]);
    let plain = archive(&[("file", &"0123456789".repeat(1 << 20))]);
    let mut layout = Layout::new(area.path("layout"));
    let image = layout.image(
        OCI,
        &[(gzip(&base), &base), (gzip(&plain), &plain)],
        &json!({}),
    );
    layout.tag(image, None);
    let resolved = area.resolve("oci:layout").expect("resolves");
    let cancelled = std::cell::Cell::new(false);
    let mut stop_in_second = |progress: Progress<'_>| {
        cancelled.set(matches!(
            progress,
            Progress::Unpack {
                layer: 2,
                layers: 2,
                ..
            }
        ));
    };
    let result = import(&resolved, &area.store, &mut stop_in_second, &|| {
        cancelled.get()
    });
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    assert_eq!(
        area.store.list().expect("works").len(),
        1,
        "the finished layer stays"
    );
    let mut progress = Vec::new();
    import(
        &resolved,
        &area.store,
        &mut |step| progress.push(format!("{step:?}")),
        &|| false,
    )
    .expect("imports");
    assert_eq!(progress[0], "Present { layer: 1, layers: 2 }");
    assert_eq!(area.store.prepared(), 3);
}

#[test]
fn a_platform_is_chosen_through_nested_indexes() {
    let Some(area) = Area::new() else { return };
    for (name, types) in [("oci", OCI), ("docker", DOCKER)] {
        let plain = archive(&[("here", name)]);
        let mut layout = Layout::new(area.path(name));
        let mut here = layout.image(
            types,
            &[(gzip(&plain), &plain)],
            &json!({"Env": [format!("V={name}")]}),
        );
        here["platform"] = json!({"os": "linux", "architecture": host_architecture()});
        let other = platform(layout.image(types, &[], &json!({})), "linux", "s390x");
        let windows = platform(
            layout.image(types, &[], &json!({"a": 1})),
            "windows",
            host_architecture(),
        );
        let attestation = platform(
            layout.image(types, &[], &json!({"b": 1})),
            "unknown",
            "unknown",
        );
        let index = |manifests: &[&Value]| {
            json!({"schemaVersion": 2, "mediaType": types.index, "manifests": manifests})
                .to_string()
        };
        let inner = layout.blob(
            types.index,
            index(&[&other, &windows, &here, &attestation]).as_bytes(),
        );
        let outer = layout.blob(OCI.index, index(&[&inner]).as_bytes());
        layout.tag(outer, Some("all"));
        let foreign = layout.blob(types.index, index(&[&other, &attestation]).as_bytes());
        layout.tag(foreign, Some("foreign"));
        let id = area.import(&format!("oci:{name}:all")).expect("imports");
        assert_eq!(area.tree(id).text("here"), name);
        let error = area
            .resolve(&format!("oci:{name}:foreign"))
            .expect_err("no image for us");
        assert!(matches!(error, Error::NoSuchPlatform { .. }), "{error:?}");
        assert_eq!(error.hint().as_deref(), Some("it has linux/s390x"));
    }
}

fn platform(mut descriptor: Value, os: &str, architecture: &str) -> Value {
    descriptor["platform"] = json!({"os": os, "architecture": architecture});
    descriptor
}

#[test]
fn an_image_without_layers_is_the_empty_tree() {
    let Some(area) = Area::new() else { return };
    let mut layout = Layout::new(area.path("layout"));
    let image = layout.image(OCI, &[], &json!({"Env": ["A=1"]}));
    layout.tag(image, None);
    let id = area.import("oci:layout").expect("imports");
    assert_eq!(id, area.import("scratch").expect("imports"));
    assert_eq!(area.store.prepared(), 1);
    assert_eq!(area.tree(id).names(""), [] as [&str; 0]);
}

#[test]
fn every_fault_of_a_layout_is_one_clear_error() {
    let Some(area) = Area::new() else { return };
    let say = |reference: &str| {
        let error = area.resolve(reference).expect_err(reference);
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        let hint = error
            .hint()
            .map_or_else(String::new, |hint| format!(" [{hint}]"));
        format!("{text}{hint}").replace(&format!("{}/", area.directory.path().display()), "")
    };
    assert_eq!(
        say("oci:missing"),
        "missing is not an OCI image layout: there is no such directory"
    );
    fs_err::create_dir(area.path("empty")).expect("made");
    assert_eq!(
        say("oci:empty"),
        "empty is not an OCI image layout: it has no oci-layout file"
    );
    fs_err::write(area.path("file"), "").expect("written");
    assert_eq!(
        say("oci:file"),
        "file is not an OCI image layout: it is no directory"
    );

    let mut layout = Layout::new(area.path("l"));
    assert_eq!(
        say("oci:l"),
        "l/index.json is missing: it holds a document of the image [fetch or make the image again: this copy of it is not whole]"
    );
    fs_err::write(area.path("l/index.json"), "{\"schemaVersion\": 2,").expect("written");
    assert!(
        say("oci:l").starts_with("l/index.json is not a valid image index: EOF while parsing"),
        "{}",
        say("oci:l")
    );
    fs_err::write(area.path("l/index.json"), "[".repeat(1_000_000)).expect("written");
    assert!(say("oci:l").starts_with("l/index.json is not a valid image index"));
    fs_err::write(
        area.path("l/index.json"),
        "{\"schemaVersion\":2,\"manifests\":[]}",
    )
    .expect("written");
    assert_eq!(
        say("oci:l"),
        "the image in l cannot be used: it holds no images"
    );

    for tag in ["b", "a"] {
        let image = layout.image(OCI, &[], &json!({"Labels": {"tag": tag}}));
        layout.tag(image, Some(tag));
    }
    assert_eq!(
        say("oci:l"),
        "l holds 2 images [choose one by its tag: a, b]"
    );
    assert_eq!(
        say("oci:l:c"),
        "l has no image tagged \"c\" [its tags are a, b]"
    );

    let mut add = |tag: &str, types: Types, layer: &str| {
        let descriptor = json!([{"mediaType": layer, "digest": format!("sha256:{}", "0".repeat(64)), "size": 1}]);
        let image = layout.image_of(
            types,
            &descriptor,
            &json!([format!("sha256:{}", "0".repeat(64))]),
            &json!({}),
        );
        layout.tag(image, Some(tag));
        say(&format!("oci:l:{tag}"))
    };
    assert_eq!(
        add(
            "foreign",
            OCI,
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
        ),
        "the image in l cannot be used: a layer of it may not be distributed (application/vnd.docker.image.rootfs.foreign.diff.tar.gzip)"
    );
    assert_eq!(
        add("unknown", OCI, "application/x-thing"),
        "the image in l cannot be used: a layer of it is of the unknown type application/x-thing"
    );
    assert_eq!(
        add(
            "artifact",
            Types {
                config: "application/vnd.cncf.helm.config.v1+json",
                ..OCI
            },
            OCI.layer
        ),
        "the image in l cannot be used: its configuration is a application/vnd.cncf.helm.config.v1+json: it is an artifact, not a container image"
    );
    assert_eq!(
        add(
            "old",
            Types {
                manifest: "application/vnd.docker.distribution.manifest.v1+json",
                ..OCI
            },
            OCI.layer
        ),
        "the image in l cannot be used: it is a application/vnd.docker.distribution.manifest.v1+json, not a container image"
    );
    let image = layout.image_of(OCI, &json!([]), &json!(["sha256:00"]), &json!({}));
    layout.tag(image, Some("counts"));
    assert_eq!(
        say("oci:l:counts"),
        "the image in l cannot be used: its manifest has 0 layers, but its configuration 1"
    );
    let image = layout.image(OCI, &[], &json!({"Env": ["NOVALUE"]}));
    layout.tag(image, Some("environment"));
    assert!(
        say("oci:l:environment").ends_with("\"NOVALUE\" should be 'K=V'"),
        "{}",
        say("oci:l:environment")
    );
    let mut image = layout.image(OCI, &[], &json!({"Labels": {"x": "y"}}));
    let digest = image["digest"]
        .as_str()
        .expect("a string")
        .trim_start_matches("sha256:")
        .to_owned();
    layout.tag(image.clone(), Some("damaged"));
    fs_err::write(layout.path.join("blobs/sha256").join(&digest), "{}").expect("written");
    assert!(
        say("oci:l:damaged").contains("is damaged: its digest should be sha256:"),
        "{}",
        say("oci:l:damaged")
    );
    image["digest"] = json!(format!("sha512:{}", "0".repeat(128)));
    layout.tag(image, Some("sha512"));
    assert!(
        say("oci:l:sha512").contains("\"sha512\" is not supported"),
        "{}",
        say("oci:l:sha512")
    );
    fs_err::write(
        area.path("l/oci-layout"),
        r#"{"imageLayoutVersion":"2.0.0"}"#,
    )
    .expect("written");
    assert_eq!(
        say("oci:l:a"),
        "l is not an OCI image layout: its version is 2.0.0, not 1"
    );
}

/// Layouts as the field's tools write them.
#[test]
fn layouts_of_umoci_and_skopeo_are_read() {
    let Some(area) = Area::new() else { return };
    for tool in ["umoci", "skopeo"] {
        if Command::new(tool).arg("--version").output().is_err() {
            return skip(&format!("needs {tool}"));
        }
    }
    for (name, files) in [
        ("base.tar", &[("etc/release", "1"), ("usr/old", "old")][..]),
        ("upper.tar", &[("etc/release", "2"), ("usr/.wh.old", "")]),
    ] {
        fs_err::write(area.path(name), archive(files)).expect("written");
    }
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(area.directory.path())
            .output()
            .expect("it runs");
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    run("umoci", &["init", "--layout", "made"]);
    run("umoci", &["new", "--image", "made:v1"]);
    run(
        "umoci",
        &["raw", "add-layer", "--image", "made:v1", "base.tar"],
    );
    run(
        "umoci",
        &[
            "raw",
            "add-layer",
            "--image",
            "made:v1",
            "--tag",
            "v2",
            "upper.tar",
        ],
    );
    run(
        "umoci",
        &[
            "config",
            "--image",
            "made:v2",
            "--config.env",
            "K=V",
            "--config.user",
            "nobody",
        ],
    );
    for (format, place) in [("zstd", "copied-zstd"), ("gzip", "copied-gzip")] {
        let target = format!("oci:{place}:v2");
        run(
            "skopeo",
            &[
                "copy",
                "--quiet",
                "--dest-compress-format",
                format,
                "oci:made:v2",
                &target,
            ],
        );
    }
    let one = area.import("oci:made:v1").expect("imports");
    let two = area.import("oci:made:v2").expect("imports");
    assert_eq!(area.store.prepared(), 2);
    for copy in ["oci:copied-zstd", "oci:copied-gzip:v2"] {
        assert_eq!(
            area.import(copy).expect("imports"),
            two,
            "the same layers, whatever their compression"
        );
        let config = area.resolve(copy).expect("resolves").config;
        assert_eq!(
            (config.env.last(), config.user),
            (Some(&("K".into(), "V".into())), "nobody".into())
        );
    }
    assert_eq!(area.store.prepared(), 2);
    assert_eq!(area.tree(one).text("usr/old"), "old");
    assert_eq!(area.tree(two).text("etc/release"), "2");
    assert_eq!(area.tree(two).names("usr"), [] as [&str; 0]);
    assert!(Path::new(&area.path("copied-zstd/index.json")).exists());
}
