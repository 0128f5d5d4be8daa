// SPDX-License-Identifier: Apache-2.0
//! Archives of `docker save` and images of a daemon.

use super::support::{Area, archive, gzip};
use super::wire::Puller;
use crate::ErrorKind;
use crate::digest::Digest;
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;

/// An archive with two images, one of whose layers is a link to the other's.
fn saved() -> (Vec<u8>, Vec<String>) {
    let below = archive(&[("etc/one", "1")]);
    let above = archive(&[("etc/two", "2")]);
    let diff = |bytes: &[u8]| Digest::of(bytes).to_string();
    let config = |ids: &[String]| {
        json!({"architecture": "amd64", "os": "linux", "config": {"Env": ["A=b"]}, "rootfs": {"type": "layers", "diff_ids": ids}})
            .to_string()
    };
    let ids = vec![diff(&below), diff(&above)];
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, content).unwrap();
    };
    add("a/layer.tar", &below);
    add("c/layer.tar", &gzip(&above));
    add("one.json", config(&ids[..1]).as_bytes());
    add("two.json", config(&ids).as_bytes());
    let manifest = json!([
        {"Config": "one.json", "RepoTags": ["x:1"], "Layers": ["a/layer.tar"]},
        {"Config": "two.json", "RepoTags": ["registry.example/y:2"], "Layers": ["b/layer.tar", "./c/layer.tar"]},
        {"Config": "lost.json", "RepoTags": ["z:3"], "Layers": ["d/layer.tar"]},
    ]);
    add("manifest.json", manifest.to_string().as_bytes());
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    builder
        .append_link(&mut link, "b/layer.tar", "../a/layer.tar")
        .unwrap();
    (builder.into_inner().unwrap(), ids)
}

#[test]
fn archives_of_several_images_are_read() {
    let Some(area) = Area::new() else { return };
    let (bytes, _) = saved();
    fs_err::write(area.path("saved.tar"), &bytes).unwrap();
    fs_err::write(area.path("saved.tgz"), gzip(&bytes)).unwrap();
    let puller = Puller::new(&area);
    for file in ["saved.tar", "saved.tgz"] {
        for (image, files) in [
            ("x:1", &["one"][..]),
            ("docker.io/library/x:1", &["one"]),
            ("1", &["one"]),
            ("@0", &["one"]),
            ("registry.example/y:2", &["one", "two"]),
            ("@1", &["one", "two"]),
        ] {
            let id = puller
                .import(&format!("docker-archive:{file}:{image}"))
                .expect(image);
            assert_eq!(area.tree(id).names("etc"), files, "{image}");
        }
        for (image, words) in [
            ("", "holds 3 images"),
            (":nosuch", "no image tagged"),
            (":@7", "no image tagged"),
            (":z:3", "it lacks \"lost.json\""),
        ] {
            let error = puller
                .resolve(&format!("docker-archive:{file}{image}"))
                .expect_err(image);
            assert!(error.to_string().contains(words), "{image}: {error}");
            assert_eq!(error.kind(), ErrorKind::Usage);
        }
    }
    for (name, content) in [
        ("empty", &b""[..]),
        ("text", b"hello, this is no archive at all"),
        ("cut", &bytes[..3000]),
    ] {
        fs_err::write(area.path(name), content).unwrap();
        let error = puller
            .resolve(&format!("docker-archive:{name}"))
            .expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Usage, "{name}: {error}");
    }
}

#[test]
fn an_archive_that_skopeo_wrote_has_the_image_of_the_layout() {
    use super::support::{Layout, OCI};
    let Some(area) = Area::new() else { return };
    let mut layout = Layout::new(area.path("layout"));
    let plain = archive(&[("a", "b")]);
    let manifest = layout.image(OCI, &[(gzip(&plain), &plain)], &json!({}));
    layout.tag(manifest, Some("t"));
    let mut copy = std::process::Command::new("skopeo");
    copy.args(["copy", "--quiet"])
        .arg(format!("oci:{}:t", layout.path.display()))
        .arg(format!(
            "docker-archive:{}:x:1",
            area.path("saved.tar").display()
        ));
    assert!(copy.status().expect("skopeo runs").success());
    let id = area
        .resolve("docker-archive:saved.tar")
        .expect("the only one")
        .id;
    assert_eq!(id, area.resolve("oci:layout:t").unwrap().id);
    assert_eq!(
        area.import("docker-archive:saved.tar").expect("imported"),
        id
    );
}

#[test]
fn an_image_of_a_daemon_is_fetched_through_its_socket_once() {
    let Some(area) = Area::new() else { return };
    let (bytes, ids) = saved();
    // What Docker sends has one image.
    let puller = Puller::new(&area);
    fs_err::write(area.path("saved.tar"), &bytes).unwrap();
    let expected = puller.resolve("docker-archive:saved.tar:x:1").unwrap().id;
    let one = {
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |name: &str, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, content).unwrap();
        };
        let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": &ids[..1]}});
        add("c.json", config.to_string().as_bytes());
        add("l", &archive(&[("etc/one", "1")]));
        add(
            "manifest.json",
            json!([{"Config": "c.json", "RepoTags": null, "Layers": ["l"]}])
                .to_string()
                .as_bytes(),
        );
        builder.into_inner().unwrap()
    };
    let socket = area.path("docker.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let inspected =
        json!({"Id": "sha256:abc", "Architecture": "amd64", "Os": "linux", "Size": 10_000,
        "Config": {"Env": ["A=b"]}, "RootFS": {"Type": "layers", "Layers": &ids[..1]}})
        .to_string();
    let server = std::thread::spawn(move || {
        let mut asked = Vec::new();
        while asked.len() < 4 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let first = lines.next().unwrap().unwrap();
            while lines
                .next()
                .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
            {}
            let body = match first.split(' ').nth(1) {
                Some("/images/x:1/json") => Some(inspected.as_bytes()),
                Some("/images/sha256:abc/get") => Some(&one[..]),
                _ => None,
            };
            let status = if body.is_some() {
                "200 OK"
            } else {
                "404 Not Found"
            };
            let body = body.unwrap_or_default();
            let head = format!(
                "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
            asked.push(first);
        }
        asked
    });
    let resolve = |name: &str| {
        let options = crate::ResolveOptions {
            remembered: None,
            base_dir: area.directory.path(),
            digests: &crate::NoDigests,
            tools: crate::Tools {
                registry: Some(std::sync::Arc::clone(&puller.client)),
                docker_socket: socket.clone(),
                ..crate::Tools::default()
            },
            cancelled: &|| false,
        };
        crate::resolve(&name.parse().unwrap(), &options)
    };
    let resolved = resolve("docker-daemon:x:1").expect("inspected");
    assert_eq!(resolved.id, expected);
    assert_eq!(resolved.config.env, [("A".into(), "b".into())]);
    let id = crate::import(&resolved, &area.store, &mut |_| {}, &|| false).expect("fetched");
    assert_eq!(area.tree(id).names("etc"), ["one"]);
    let again = resolve("docker-daemon:x:1").expect("inspected");
    crate::import(&again, &area.store, &mut |_| {}, &|| false).expect("it is here");
    let error = resolve("docker-daemon:nosuch").expect_err("there is none");
    assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
    let asked = server.join().unwrap();
    assert_eq!(
        asked.iter().filter(|line| line.contains("/get ")).count(),
        1,
        "{asked:?}"
    );
    let error = resolve("docker-daemon:x:1").expect_err("nobody listens");
    assert_eq!(error.kind(), ErrorKind::Host, "{error}");
    assert!(error.hint().is_some());
}
