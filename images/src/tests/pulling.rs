// SPDX-License-Identifier: Apache-2.0
//! Pulling from a real registry, through connections that are cut, and onto a disk that is full.

use super::support::{Area, DOCKER, Layout, Mounted, OCI, archive, gzip, zstd};
use super::wire::{Proxy, Puller, Server, Way, noise, registry_of};
use crate::Digest;
use crate::import;
use crate::registry::{BlobData, HostOptions, PushBlob, PushImage, PushManifest, push};
use obuild_fixtures::{Registry, registry, registry_authority};
use obuild_stores::Store;
use serde_json::json;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// A repository that no other test uses.
pub(super) fn repository(test: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("test/{test}-{}-{next}", since.as_nanos())
}

fn skopeo(arguments: &[&str]) -> String {
    let output = Command::new("skopeo")
        .args(arguments)
        .output()
        .expect("skopeo runs");
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

/// Puts an image of a layout into a registry.
pub(super) fn put(layout: &Path, tag: &str, to: &str, extra: &[&str]) {
    let from = format!("oci:{}:{tag}", layout.display());
    let to = format!("docker://{to}");
    skopeo(
        &[
            &["copy", "--quiet", "--preserve-digests"],
            extra,
            &[&from, &to],
        ]
        .concat(),
    );
}

/// A layout with an image of three layers, tagged `a`.
fn layout(area: &Area) -> Layout {
    let mut layout = Layout::new(area.path("layout"));
    let below = archive(&[("etc/one", "1"), ("gone", "x"), ("big", &noise(150_000))]);
    let middle = archive(&[("etc/two", "2"), (".wh.gone", "")]);
    let above = archive(&[("etc/two", "3"), ("other", &noise(50_000))]);
    let layers = [
        (gzip(&below), &below[..]),
        (zstd(&middle), &middle),
        (above.clone(), &above),
    ];
    let mut manifest = layout.image(OCI, &layers, &json!({"Env": ["A=b"]}));
    let text = fs_err::read_to_string(layout.blob_path(digest(&manifest))).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (layer, kind) in [(0, "+gzip"), (1, "+zstd"), (2, "")] {
        let kind = format!("application/vnd.oci.image.layer.v1.tar{kind}");
        value["layers"][layer]["mediaType"] = kind.into();
    }
    manifest = layout.blob(OCI.manifest, value.to_string().as_bytes());
    layout.tag(manifest, Some("a"));
    layout
}

fn digest(descriptor: &serde_json::Value) -> Digest {
    Digest::parse(descriptor["digest"].as_str().unwrap()).unwrap()
}

#[test]
fn an_image_is_the_same_from_a_registry_and_from_a_layout() {
    let Some(area) = Area::new() else { return };
    let (Some(plain), Some(password), Some(tls)) = (
        registry(Registry::Plain),
        registry(Registry::Password),
        registry(Registry::Tls),
    ) else {
        return;
    };
    let layout = layout(&area);
    let expected = area.resolve("oci:layout:a").unwrap();
    let credentials = area.path("config.json");
    // `obuild:secret`
    let auths = json!({"auths": {password.as_str(): {"auth": "b2J1aWxkOnNlY3JldA=="}}});
    fs_err::write(&credentials, auths.to_string()).unwrap();
    let authority = registry_authority();
    let directory = authority.parent().unwrap().display().to_string();
    let certificates = format!("--dest-cert-dir={directory}");
    for (host, extra) in [
        (&plain, &["--dest-tls-verify=false"][..]),
        (
            &password,
            &["--dest-tls-verify=false", "--dest-creds=obuild:secret"],
        ),
        (&tls, &[certificates.as_str()]),
    ] {
        let name = format!("{host}/{}:1", repository("same"));
        put(&layout.path, "a", &name, extra);
        let puller = Puller::with(&area, |options| {
            options.credentials = Some(credentials.clone());
            let ca = (host == &tls).then(|| authority.clone());
            options.hosts.insert(
                host.clone(),
                HostOptions {
                    ca,
                    ..HostOptions::default()
                },
            );
        });
        let resolved = puller.resolve(&name).expect(host);
        assert_eq!(
            (resolved.id, &resolved.config),
            (expected.id, &expected.config)
        );
        let mut last = 0;
        let progress = &mut |event: crate::Progress<'_>| {
            if let crate::Progress::Fetch { bytes, total } = event {
                assert!(bytes >= last && bytes <= total);
                last = bytes;
            }
        };
        import(&resolved, &area.store, progress, &|| false).expect(host);
        let tree = area.tree(resolved.id);
        assert_eq!(tree.names("etc"), ["one", "two"]);
        assert_eq!(
            (tree.text("etc/two").as_str(), tree.names("").len()),
            ("3", 3)
        );
        assert_eq!(puller.partial(), [0; 0], "{host}");
        for (id, _) in area.store.list().unwrap().into_iter().rev() {
            let _ = area.store.remove(id);
        }
        for (id, _) in area.store.list().unwrap() {
            let _ = area.store.remove(id);
        }
        fs_err::remove_dir_all(area.path("images")).unwrap();
    }
    // Without the authority, the certificate is not trusted; that is no reason to go on without TLS.
    let puller = Puller::with(&area, |options| {
        let secure = HostOptions {
            insecure: Some(false),
            ..HostOptions::default()
        };
        options.hosts.insert(tls.clone(), secure);
    });
    let error = puller
        .resolve(&format!("{tls}/x:1"))
        .expect_err("not trusted");
    assert!(
        error.hint().is_some_and(|hint| hint.contains("ca")),
        "{error}"
    );
    let error = Puller::new(&area)
        .resolve(&format!("{password}/x:1"))
        .expect_err("no password");
    assert!(error.to_string().contains("refuses access"), "{error}");
}

#[test]
fn the_platform_is_looked_for_in_indexes_of_either_vendor() {
    let Some(area) = Area::new() else { return };
    let Some(host) = registry(Registry::Plain) else {
        return;
    };
    for types in [OCI, DOCKER] {
        let layout = Layout::new(area.path(if types.index == OCI.index {
            "oci"
        } else {
            "docker"
        }));
        let mut manifests = Vec::new();
        for architecture in ["s390x", crate::host_architecture()] {
            let plain = archive(&[("for", architecture)]);
            let mut manifest = layout.image(types, &[(gzip(&plain), &plain)], &json!({}));
            manifest["platform"] = json!({"os": "linux", "architecture": architecture});
            manifests.push(manifest);
        }
        let index = json!({"schemaVersion": 2, "mediaType": types.index, "manifests": manifests});
        let index = layout.blob(types.index, index.to_string().as_bytes());
        let name = format!("{host}/{}", repository("platform"));
        // skopeo knows no layouts of Docker's types.
        let mut image = PushImage::default();
        for entry in fs_err::read_dir(layout.path.join("blobs/sha256"))
            .unwrap()
            .flatten()
        {
            let path = entry.path();
            let digest = Digest::of(&fs_err::read(&path).unwrap());
            let size = entry.metadata().unwrap().len();
            let data = BlobData::File(path);
            image.blobs.push(PushBlob { digest, size, data });
        }
        for descriptor in manifests.iter().chain([&index]) {
            image.manifests.push(PushManifest {
                media_type: descriptor["mediaType"].as_str().unwrap().to_owned(),
                bytes: fs_err::read(layout.blob_path(digest(descriptor))).unwrap(),
            });
        }
        let client = Puller::new(&area).client;
        push(
            &client,
            &name.parse().unwrap(),
            &image,
            &mut |_| {},
            &|| false,
        )
        .expect("pushed");
        let puller = Puller::new(&area);
        let id = puller.import(&name).expect("the host's");
        assert_eq!(area.tree(id).text("for"), crate::host_architecture());
        let other = format!("{name}@{}", manifests[0]["digest"].as_str().unwrap());
        let id = puller.import(&other).expect("by its digest");
        assert_eq!(area.tree(id).text("for"), "s390x");
        assert_eq!(
            puller.resolve(&name).unwrap().manifest,
            Some(digest(&index))
        );
    }
}

#[test]
fn a_cut_at_any_byte_of_a_pull_is_survived() {
    let Some(area) = Area::new() else { return };
    let Some(host) = registry(Registry::Plain) else {
        return;
    };
    let layout = layout(&area);
    let name = repository("cut");
    put(
        &layout.path,
        "a",
        &format!("{host}/{name}:1"),
        &["--dest-tls-verify=false"],
    );
    let expected = area.resolve("oci:layout:a").unwrap().id;
    let clear = || {
        let _ = fs_err::remove_dir_all(area.path("images"));
        while let Some((id, _)) = area.store.list().unwrap().pop() {
            for (id, _) in area.store.list().unwrap() {
                let _ = area.store.remove(id);
            }
            let _ = area.store.remove(id);
        }
    };
    let whole = Proxy::start(&host, Way::Down, u64::MAX, false);
    Puller::new(&area)
        .import(&format!("{}/{name}:1", whole.host))
        .expect("without a cut");
    let total = whole.passed();
    assert!(total > 150_000, "{total}");
    for step in 0..24 {
        clear();
        let after = total * step / 24 + step % 3;
        let proxy = Proxy::start(&host, Way::Down, after, false);
        let id = Puller::new(&area).import(&format!("{}/{name}:1", proxy.host));
        assert_eq!(
            id.unwrap_or_else(|error| panic!("{after}: {error}")),
            expected
        );
        // What had come was not fetched again, but for what was on its way.
        assert!(
            proxy.passed() < total + 40_000,
            "{after}: {} of {total}",
            proxy.passed()
        );
    }
    // Again and again: each attempt brings a little.
    clear();
    let proxy = Proxy::start(&host, Way::Down, 30_000, true);
    let id = Puller::new(&area).import(&format!("{}/{name}:1", proxy.host));
    assert_eq!(id.expect("in small steps"), expected);
}

#[test]
fn the_next_run_goes_on_where_the_last_one_stopped() {
    let Some(area) = Area::new() else { return };
    let layout = {
        let layout = Layout::new(area.path("layout"));
        let plain = archive(&[("a", &noise(400_000))]);
        (
            layout.image(OCI, &[(gzip(&plain), &plain)], &json!({})),
            layout,
        )
    };
    let (manifest, layout) = layout;
    let server = Server::start(registry_of(&layout, &manifest));
    // The connection is cut in the layer, and then none is possible.
    let proxy = Proxy::start(&server.host, Way::Down, 200_000, true);
    let name = format!("{}/x:1", server.host);
    let through = |host: &str, area| {
        Puller::with(area, |options| {
            let mirrors = vec![host.to_owned()];
            let options = options.hosts.entry(server.host.clone()).or_default();
            options.mirrors = mirrors;
        })
    };
    let puller = through(&proxy.host, &area);
    let resolved = puller.resolve(&name).expect("the documents");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let result = import(
        &resolved,
        &area.store,
        &mut |event| {
            if matches!(event, crate::Progress::Fetch { bytes, .. } if bytes > 100_000) {
                stop.store(true, Ordering::SeqCst);
            }
        },
        &|| stop.load(Ordering::SeqCst),
    );
    if result.is_err() {
        assert!(matches!(result, Err(crate::Error::Cancelled)), "{result:?}");
        area.assert_empty();
        drop(resolved);
        drop(puller);
        let kept = *fs_err::read_dir(area.path("images/partial"))
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .collect::<Vec<_>>()
            .first()
            .expect("what had come is kept");
        assert!(kept > 0);
        let before = server.seen().len();
        let puller = Puller::new(&area);
        puller.import(&name).expect("the rest");
        let seen = server.seen();
        let rest: Vec<_> = seen[before..]
            .iter()
            .filter_map(|r| r.header("range"))
            .collect();
        assert_eq!(rest.len(), 1, "{rest:?}");
    }
    // What was left is wrong: it is fetched anew.
    let id = Puller::new(&area).resolve(&name).unwrap().id;
    let _ = area.store.remove(id);
    let blobs = fs_err::read_dir(area.path("images/blobs/sha256")).unwrap();
    let large = blobs
        .flatten()
        .find(|entry| entry.metadata().unwrap().len() > 100_000)
        .unwrap();
    let mut bytes = fs_err::read(large.path()).unwrap();
    bytes[10] ^= 1;
    bytes.truncate(150_000);
    fs_err::create_dir_all(area.path("images/partial")).unwrap();
    fs_err::write(area.path("images/partial").join(large.file_name()), bytes).unwrap();
    fs_err::remove_file(large.path()).unwrap();
    let puller = Puller::new(&area);
    let id = puller.import(&name).expect("from the start");
    assert_eq!(area.tree(id).text("a").len(), 400_000);
    assert_eq!(puller.partial(), [0; 0]);
}

#[test]
fn a_full_disk_is_told_and_the_next_run_goes_on() {
    let Some(area) = Area::new() else { return };
    let layout = Layout::new(area.path("layout"));
    let plain = archive(&[("a", &noise(3_000_000))]);
    let manifest = layout.image(OCI, &[(gzip(&plain), &plain)], &json!({}));
    let server = Server::start(registry_of(&layout, &manifest));
    let images = area.path("images");
    fs_err::create_dir(&images).unwrap();
    let Some(_mounted) = Mounted::new(&["-t", "tmpfs", "-o", "size=1m", "none"], &images) else {
        obuild_fixtures::skip("nothing can be mounted here");
        return;
    };
    let name = format!("{}/x:1", server.host);
    let error = Puller::new(&area).import(&name).expect_err("no room");
    assert_eq!(error.kind(), crate::ErrorKind::Host);
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("the disk is full")),
        "{error}"
    );
    area.assert_empty();
    let status = Command::new("mount")
        .args(["-o", "remount,size=16m"])
        .arg(&images)
        .status();
    assert!(status.unwrap().success());
    let before = server.seen().len();
    let id = Puller::new(&area).import(&name).expect("there is room now");
    assert_eq!(area.tree(id).text("a").len(), 3_000_000);
    let seen = server.seen();
    let rest: Vec<_> = seen[before..]
        .iter()
        .filter_map(|r| r.header("range"))
        .collect();
    assert_eq!(rest.len(), 1, "{rest:?}");
}
