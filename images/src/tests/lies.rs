// SPDX-License-Identifier: Apache-2.0
//! Registries that lie, fail, send us round in circles or refuse us.

use super::support::{Area, Layout, OCI, archive, gzip};
use super::wire::{Puller, Reply, Request, Server, noise, registry_of};
use crate::registry::HostOptions;
use crate::{Digest, ErrorKind, Pull};
use obuild_fixtures::PATIENCE;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// An image of one layer that does not compress.
fn image(area: &Area) -> (Layout, Value) {
    let layout = Layout::new(area.path("layout"));
    let plain = archive(&[("a", &noise(100_000))]);
    let manifest = layout.image(OCI, &[(gzip(&plain), &plain)], &json!({"Env": ["A=b"]}));
    (layout, manifest)
}

fn is_layer(request: &Request) -> bool {
    request.path.contains("/blobs/") && !request.path.contains("config")
}

#[test]
fn a_lying_registry_is_found_out_and_nothing_of_it_is_kept() {
    type Lie = fn(&Request, Reply) -> Reply;
    let Some(area) = Area::new() else { return };
    let (layout, manifest) = image(&area);
    let lies: [(&str, Lie, &str); 8] = [
        (
            "digest",
            |request, mut reply| {
                if is_layer(request) && reply.body.len() > 10_000 {
                    reply.body[50_000] ^= 1;
                }
                reply
            },
            "its digest is sha256:",
        ),
        (
            "longer",
            |request, mut reply| {
                if is_layer(request) && reply.body.len() > 10_000 {
                    reply.body.push(0);
                }
                reply
            },
            "bytes instead of",
        ),
        (
            "endless",
            |request, mut reply| {
                reply.endless = is_layer(request) && reply.body.len() > 10_000;
                reply
            },
            "it is longer than",
        ),
        (
            "shorter",
            |request, mut reply| {
                if is_layer(request) && reply.body.len() > 10_000 {
                    reply.body.truncate(20_000);
                }
                reply
            },
            "bytes instead of",
        ),
        (
            "manifest",
            |request, mut reply| {
                if request.path.contains("/manifests/sha256:") {
                    reply.body.push(b' ');
                }
                reply
            },
            "its digest is sha256:",
        ),
        (
            "endless manifest",
            |request, mut reply| {
                reply.endless = request.path.contains("/manifests/sha256:");
                reply
            },
            "it is longer than",
        ),
        (
            "circle",
            |request, reply| {
                if request.path.contains("/blobs/") {
                    return Reply::new(307, "").with(
                        "Location",
                        format!("{}?again", request.path.trim_end_matches("?again")),
                    );
                }
                reply
            },
            "redirects in a circle",
        ),
        (
            "nowhere",
            |request, reply| {
                if request.path.contains("/blobs/") {
                    return Reply::new(302, "");
                }
                reply
            },
            "redirects to nowhere",
        ),
    ];
    for (name, lie, words) in lies {
        let honest = registry_of(&layout, &manifest);
        let server = Server::start(move |request| lie(request, honest(request)));
        let puller = Puller::new(&area);
        let error = puller
            .import(&format!("{}/x:1", server.host))
            .expect_err(name);
        assert!(error.to_string().contains(words), "{name}: {error}");
        assert_eq!(error.kind(), ErrorKind::Host, "{name}");
        assert!(error.hint().is_some(), "{name}");
        area.assert_empty();
        // What was whole may stay; a layer was not.
        let kept = fs_err::read_dir(area.path("images/blobs/sha256")).map_or(0, |entries| {
            entries
                .flatten()
                .filter(|entry| entry.metadata().unwrap().len() > 10_000)
                .count()
        });
        assert_eq!(kept, 0, "{name}");
        fs_err::remove_dir_all(area.path("images")).ok();
    }
    // The same registry without a lie.
    let server = Server::start(registry_of(&layout, &manifest));
    let puller = Puller::new(&area);
    let id = puller
        .import(&format!("{}/x:1", server.host))
        .expect("an honest one");
    assert_eq!(area.tree(id).text("a").len(), 100_000);
}

#[test]
fn who_fails_for_a_while_is_asked_again() {
    let Some(area) = Area::new() else { return };
    let (layout, manifest) = image(&area);
    let honest = registry_of(&layout, &manifest);
    let failures = AtomicUsize::new(0);
    let began = Instant::now();
    let server = Server::start(
        move |request| match failures.fetch_add(1, Ordering::SeqCst) {
            0 => Reply::new(429, "slow down").with("Retry-After", "1"),
            1 | 4 => Reply::new(503, "").with("Retry-After", "0"),
            6 => Reply::new(500, ""),
            _ => honest(request),
        },
    );
    let puller = Puller::new(&area);
    puller
        .import(&format!("{}/x:1", server.host))
        .expect("in the end");
    assert!(
        began.elapsed() >= Duration::from_secs(1),
        "Retry-After is honoured"
    );

    let server = Server::start(|_| Reply::new(429, "").with("Retry-After", "3600"));
    let began = Instant::now();
    let error = puller
        .resolve(&format!("{}/x:1", server.host))
        .expect_err("an hour is too long");
    assert!(
        error.to_string().contains("429") && began.elapsed() < PATIENCE,
        "{error}"
    );
    assert_eq!(error.kind(), ErrorKind::Host);
}

#[test]
fn silence_is_not_waited_out() {
    let Some(area) = Area::new() else { return };
    let (layout, manifest) = image(&area);
    let honest = registry_of(&layout, &manifest);
    // Half of the layer, then nothing more although more is promised: the connection stays open.
    let silent = AtomicUsize::new(0);
    let server = Server::start(move |request| {
        let mut reply = honest(request);
        if request.path.contains("/blobs/")
            && reply.body.len() > 10_000
            && silent.fetch_add(1, Ordering::SeqCst) == 0
        {
            reply.length = Some(reply.body.len() as u64);
            reply.body.truncate(30_000);
            reply.hold = true;
        }
        reply
    });
    let puller = Puller::with(&area, |options| {
        options.timeout = std::time::Duration::from_secs(2);
    });
    puller
        .import(&format!("{}/x:1", server.host))
        .expect("the second time");
    let ranges: Vec<_> = server
        .seen()
        .iter()
        .filter_map(|r| r.header("range").map(str::to_owned))
        .collect();
    assert_eq!(
        ranges,
        ["bytes=30000-"],
        "what had come is not fetched again"
    );
}

#[test]
fn tokens_are_got_once_and_passwords_stay_at_home() {
    let Some(area) = Area::new() else { return };
    let (layout, manifest) = image(&area);
    let honest = registry_of(&layout, &manifest);
    let storage = {
        let honest = registry_of(&layout, &manifest);
        Arc::new(Server::start(honest))
    };
    let elsewhere = storage.host.clone();
    let tokens = Arc::new(Server::start(|request| {
        if request.header("authorization") == Some("Basic dTpw") {
            Reply::new(200, r#"{"token":"let-me-in","expires_in":300}"#)
        } else {
            Reply::new(401, r#"{"details":"incorrect username or password"}"#)
        }
    }));
    let realm = format!("http://{}/token", tokens.host);
    let server = Server::start(move |request| {
        if request.header("authorization") != Some("Bearer let-me-in") {
            let challenge =
                format!(r#"Bearer realm="{realm}",service="s",scope="repository:x:pull""#);
            return Reply::new(401, "").with("WWW-Authenticate", challenge);
        }
        let reply = honest(request);
        if request.path.contains("/blobs/") {
            return Reply::new(307, "")
                .with("Location", format!("http://{elsewhere}{}", request.path));
        }
        reply
    });
    let file = area.path("config.json");
    fs_err::write(
        &file,
        json!({"auths": {server.host.as_str(): {"auth": "dTpw"}}}).to_string(),
    )
    .unwrap();
    let puller = Puller::with(&area, |options| options.credentials = Some(file.clone()));
    puller
        .import(&format!("{}/x:1", server.host))
        .expect("with a token");
    assert_eq!(tokens.seen().len(), 1, "{:?}", tokens.seen());
    assert!(
        tokens.seen()[0].path.contains("scope=repository:x:pull"),
        "{:?}",
        tokens.seen()
    );
    assert!(!storage.seen().is_empty());
    for request in storage.seen() {
        assert_eq!(
            request.header("authorization"),
            None,
            "sent to another host"
        );
    }

    // Without credentials, and with wrong ones.
    fs_err::write(&file, "{}").unwrap();
    let puller = Puller::with(&area, |options| options.credentials = Some(file.clone()));
    let error = puller
        .resolve(&format!("{}/x:2", server.host))
        .expect_err("no credentials");
    assert!(error.to_string().contains("refuses access"), "{error}");
    assert!(error.hint().unwrap().contains("docker login"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Host);
}

#[test]
fn a_registry_that_refuses_for_ever_is_left_alone() {
    let Some(area) = Area::new() else { return };
    for challenge in [
        r#"Basic realm="x""#,
        "Bearer realm=\"http://HOST/token\"",
        "Unheard-of",
        "",
    ] {
        let file = area.path("config.json");
        let server = Server::start(move |request| {
            if request.path.starts_with("/token") {
                return Reply::new(200, r#"{"token":"useless"}"#);
            }
            let host = request.header("host").unwrap_or_default();
            Reply::new(401, r#"{"errors":[{"message":"go away"}]}"#)
                .with("WWW-Authenticate", challenge.replace("HOST", host))
        });
        fs_err::write(
            &file,
            json!({"auths": {server.host.as_str(): {"auth": "dTpw"}}}).to_string(),
        )
        .unwrap();
        let puller = Puller::with(&area, |options| options.credentials = Some(file.clone()));
        let error = puller
            .resolve(&format!("{}/x:1", server.host))
            .expect_err(challenge);
        assert!(
            error.to_string().contains("refuses access"),
            "{challenge}: {error}"
        );
        assert!(
            server.seen().len() <= 6,
            "{challenge}: {} requests",
            server.seen().len()
        );
    }
    // A password does not travel in the clear on behalf of a registry with TLS, nor does anything to where it is redirected.
    let spy = Server::start(|_| Reply::new(200, ""));
    let server = Server::start({
        let host = spy.host.clone();
        move |_| Reply::new(307, "").with("Location", format!("ftp://{host}/"))
    });
    let error = Puller::new(&area)
        .resolve(&format!("{}/x:1", server.host))
        .expect_err("ftp");
    assert!(
        error
            .to_string()
            .contains("redirects away from TLS, to ftp"),
        "{error}"
    );
    assert!(spy.seen().is_empty());
}

#[test]
fn mirrors_come_first_and_may_be_useless() {
    let Some(area) = Area::new() else { return };
    let (layout, manifest) = image(&area);
    let origin = Server::start(registry_of(&layout, &manifest));
    let honest = registry_of(&layout, &manifest);
    let liar = Server::start(move |request| {
        let mut reply = honest(request);
        if reply.body.len() > 10_000 {
            let middle = reply.body.len() / 2;
            reply.body[middle] ^= 1;
        }
        reply
    });
    let empty = Server::start(|_| Reply::new(404, ""));
    for mirror in [&liar.host, &empty.host, &"127.0.0.1:1".to_owned()] {
        let puller = Puller::with(&area, |options| {
            let host = HostOptions {
                mirrors: vec![mirror.clone()],
                ..HostOptions::default()
            };
            options.hosts.insert(origin.host.clone(), host);
        });
        let id = puller
            .import(&format!("{}/x:1", origin.host))
            .expect(mirror);
        assert_eq!(area.tree(id).text("a").len(), 100_000);
        obuild_stores::Store::remove(&area.store, id).unwrap();
        fs_err::remove_dir_all(area.path("images")).unwrap();
    }
    let good = Server::start(registry_of(&layout, &manifest));
    let before = origin.seen().len();
    let puller = Puller::with(&area, |options| {
        let host = HostOptions {
            mirrors: vec![good.host.clone()],
            ..HostOptions::default()
        };
        options.hosts.insert(origin.host.clone(), host);
    });
    puller
        .import(&format!("{}/x:1", origin.host))
        .expect("from the mirror");
    assert_eq!(origin.seen().len(), before, "the mirror has it all");
}

#[test]
fn what_is_here_needs_no_registry() {
    let Some(area) = Area::new() else { return };
    let (layout, manifest) = image(&area);
    let server = Server::start(registry_of(&layout, &manifest));
    let name = format!("{}/x:1", server.host);
    let mut puller = Puller::new(&area);
    puller.pull = Pull::Never;
    let error = puller.resolve(&name).expect_err("never seen");
    assert!(error.to_string().contains("is not here"), "{error}");
    assert!(server.seen().is_empty());
    puller.pull = Pull::Missing;
    let first = puller.import(&name).expect("fetched");
    puller.remembered = Digest::parse(manifest["digest"].as_str().unwrap()).ok();
    let asked = server.seen().len();
    for pull in [Pull::Missing, Pull::Never] {
        puller.pull = pull;
        assert_eq!(puller.import(&name).expect("it is here"), first);
    }
    assert_eq!(server.seen().len(), asked, "nothing was asked");
    puller.pull = Pull::Always;
    assert_eq!(puller.import(&name).expect("it is asked for"), first);
    assert_eq!(server.seen().len(), asked + 1, "one HEAD");
    // A kept layer that was damaged is fetched again, and only then.
    obuild_stores::Store::remove(&area.store, first).unwrap();
    let kept = fs_err::read_dir(area.path("images/blobs/sha256")).unwrap();
    let large = kept
        .flatten()
        .find(|entry| entry.metadata().unwrap().len() > 10_000)
        .unwrap();
    let mut bytes = fs_err::read(large.path()).unwrap();
    bytes[60_000] ^= 1;
    fs_err::write(large.path(), bytes).unwrap();
    puller.pull = Pull::Missing;
    let asked = server.seen().len();
    assert_eq!(puller.import(&name).expect("healed"), first);
    assert_eq!(server.seen().len(), asked + 1, "the layer alone");
}
