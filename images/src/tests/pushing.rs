// SPDX-License-Identifier: Apache-2.0
//! Pushing to a real registry: what is spared, what is mounted, and cuts on the way.

use super::pulling::repository;
use super::support::{Area, archive, gzip};
use super::wire::{Proxy, Puller, Reply, Server, Way, noise};
use crate::registry::{BlobData, BlobSource, PushBlob, PushImage, PushManifest, PushReport, push};
use crate::{Digest, Error, ErrorKind};
use obuild_fixtures::{Registry, registry};
use serde_json::json;
use std::io::{self, Read};
use std::sync::Arc;

/// Makes an image of layers.
pub(super) fn image(layers: &[Vec<u8>]) -> PushImage {
    let blob = |bytes: &[u8]| PushBlob {
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
        data: BlobData::Bytes(bytes.into()),
    };
    let packed: Vec<Vec<u8>> = layers.iter().map(|plain| gzip(plain)).collect();
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|plain| Digest::of(plain).to_string())
        .collect();
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = config.to_string().into_bytes();
    let descriptor = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": Digest::of(bytes).to_string(), "size": bytes.len()});
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": packed.iter().map(|bytes| descriptor("application/vnd.oci.image.layer.v1.tar+gzip", bytes)).collect::<Vec<_>>(),
    });
    PushImage {
        blobs: packed
            .iter()
            .map(Vec::as_slice)
            .chain([&config[..]])
            .map(blob)
            .collect(),
        manifests: vec![PushManifest {
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            bytes: manifest.to_string().into_bytes(),
        }],
    }
}

fn send(puller: &Puller<'_>, name: &str, image: &PushImage) -> Result<PushReport, Error> {
    push(&puller.client, &name.parse()?, image, &mut |_| {}, &|| {
        false
    })
}

fn size(image: &PushImage) -> u64 {
    image.blobs.iter().map(|blob| blob.size).sum()
}

#[test]
fn only_what_is_missing_is_sent() {
    let Some(area) = Area::new() else { return };
    let Some(host) = registry(Registry::Plain) else {
        return;
    };
    let (first, second) = (repository("spare"), repository("spare"));
    let below = archive(&[("a", &noise(90_000))]);
    let one = image(std::slice::from_ref(&below));
    let two = image(&[below, archive(&[(&format!("b{second}"), "small")])]);
    let puller = Puller::new(&area);
    let mut told = Vec::new();
    let name = format!("{host}/{first}:1").parse().unwrap();
    let report = push(
        &puller.client,
        &name,
        &one,
        &mut |now| told.push(now),
        &|| false,
    )
    .expect("pushed");
    assert!(
        told.windows(2)
            .all(|pair| pair[0].done_bytes <= pair[1].done_bytes)
    );
    assert!(
        told.iter()
            .all(|now| now.total_bytes == size(&one) && now.done_bytes <= now.total_bytes)
    );
    assert_eq!(report.digest, Digest::of(&one.manifests[0].bytes));
    assert_eq!(
        report.sent_bytes + report.spared_bytes,
        size(&one) + one.manifests[0].bytes.len() as u64
    );
    // It can be pulled, by tag and by digest.
    let id = puller
        .import(&format!("{host}/{first}:1"))
        .expect("by its tag");
    assert_eq!(
        puller
            .import(&format!("{host}/{first}@{}", report.digest))
            .expect("by its digest"),
        id
    );
    assert_eq!(area.tree(id).text("a").len(), 90_000);

    let again = send(&puller, &format!("{host}/{first}:2"), &one).expect("pushed again");
    assert_eq!(again.spared_bytes, size(&one));
    assert_eq!(again.sent_bytes, one.manifests[0].bytes.len() as u64);
    assert_eq!(again.requests, 3, "a HEAD for each blob, and the manifest");

    // To another repository: the layer is mounted, the rest is small.
    let report = send(&puller, &format!("{host}/{second}:1"), &two).expect("pushed elsewhere");
    assert_eq!(report.spared_bytes, two.blobs[0].size, "{report:?}");
    assert!(report.sent_bytes < 4096, "{report:?}");
    // Who knows of no other repository sends it.
    let third = repository("spare");
    fs_err::remove_dir_all(area.path("images/known")).unwrap();
    let report = send(&puller, &format!("{host}/{third}:1"), &two).expect("pushed without a mount");
    assert!(report.sent_bytes > two.blobs[0].size, "{report:?}");
}

#[test]
fn a_layer_of_another_registry_is_fetched_only_if_it_has_to_be_sent() {
    let Some(area) = Area::new() else { return };
    let (Some(host), Some(other)) = (registry(Registry::Plain), registry(Registry::Password))
    else {
        return;
    };
    let (from, to) = (repository("origin"), repository("origin"));
    let mut image = image(&[archive(&[("a", &noise(60_000))])]);
    send(&Puller::new(&area), &format!("{host}/{from}:1"), &image).expect("pushed");
    image.blobs[0].data = BlobData::Registry(format!("{host}/{from}:1").parse().unwrap());
    let credentials = area.path("config.json");
    let auths = json!({"auths": {other.as_str(): {"auth": "b2J1aWxkOnNlY3JldA=="}}});
    fs_err::write(&credentials, auths.to_string()).unwrap();
    fs_err::remove_dir_all(area.path("images")).unwrap();
    let puller = Puller::with(&area, |options| options.credentials = Some(credentials));
    let report = send(&puller, &format!("{host}/{to}:1"), &image).expect("mounted");
    assert!(report.spared_bytes >= image.blobs[0].size, "{report:?}");
    assert!(
        puller.client.kept_blob(image.blobs[0].digest).is_none(),
        "it was not fetched"
    );
    let report = send(&puller, &format!("{other}/{to}:1"), &image).expect("sent on");
    assert!(report.sent_bytes >= image.blobs[0].size, "{report:?}");
    assert!(puller.client.kept_blob(image.blobs[0].digest).is_some());
    assert!(puller.import(&format!("{other}/{to}:1")).is_ok());
}

#[test]
fn a_cut_at_any_byte_of_a_push_is_survived() {
    let Some(area) = Area::new() else { return };
    let Some(host) = registry(Registry::Plain) else {
        return;
    };
    for way in [Way::Up, Way::Down] {
        // Contents that no other run has sent: the registry would spare them.
        let make = || {
            image(&[archive(&[
                ("a", &noise(120_000)),
                ("b", &repository("unique")),
            ])])
        };
        let whole = Proxy::start(&host, way, u64::MAX, false);
        send(
            &Puller::new(&area),
            &format!("{}/{}:1", whole.host, repository("cutpush")),
            &make(),
        )
        .expect("without a cut");
        let total = whole.passed();
        for step in 0..8 {
            let image = make();
            let after = total * step / 8 + 10;
            let proxy = Proxy::start(&host, way, after, false);
            let name = repository("cutpush");
            let report = send(
                &Puller::new(&area),
                &format!("{}/{name}:1", proxy.host),
                &image,
            );
            let report = report.unwrap_or_else(|error| panic!("{way:?} {after}: {error}"));
            assert_eq!(report.digest, Digest::of(&image.manifests[0].bytes));
            fs_err::remove_dir_all(area.path("images")).unwrap();
            let id = Puller::new(&area)
                .import(&format!("{host}/{name}:1"))
                .expect("it is whole");
            assert_eq!(area.tree(id).text("a").len(), 120_000);
        }
    }
}

/// A source that is cut short, or is not what it should be.
struct Wrong(Vec<u8>);

impl BlobSource for Wrong {
    fn open(&self, _: Digest, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        let offset = usize::try_from(offset).expect("small");
        Ok(Box::new(io::Cursor::new(
            self.0[offset.min(self.0.len())..].to_vec(),
        )))
    }
}

#[test]
fn a_large_blob_goes_in_chunks_and_a_wrong_one_not_at_all() {
    let Some(area) = Area::new() else { return };
    let Some(host) = registry(Registry::Plain) else {
        return;
    };
    let puller = Puller::new(&area);
    let bytes = [
        noise(1000).as_bytes(),
        repository("unique").as_bytes(),
        &vec![7; 20 << 20],
    ]
    .concat();
    let path = area.path("blob");
    fs_err::write(&path, &bytes).unwrap();
    let blob = |data| PushImage {
        blobs: vec![PushBlob {
            digest: Digest::of(&bytes),
            size: bytes.len() as u64,
            data,
        }],
        manifests: Vec::new(),
    };
    let name = format!("{host}/{}:1", repository("chunks"));
    let short = bytes[..10 << 20].to_vec();
    let error = send(
        &puller,
        &name,
        &blob(BlobData::Source(Arc::new(Wrong(short)))),
    )
    .expect_err("short");
    assert!(error.to_string().contains("bytes early"), "{error}");
    let mut other = bytes.clone();
    other[5 << 20] ^= 1;
    let error = send(
        &puller,
        &name,
        &blob(BlobData::Source(Arc::new(Wrong(other)))),
    )
    .expect_err("other");
    assert!(
        error.to_string().contains("not what its digest says"),
        "{error}"
    );
    assert_eq!(error.kind(), ErrorKind::Host);
    // Cut in the second chunk.
    let proxy = Proxy::start(&host, Way::Up, 18 << 20, false);
    let through = name.replace(&host, &proxy.host);
    let report = send(&puller, &through, &blob(BlobData::File(path))).expect("in the end");
    assert!(report.sent_bytes >= bytes.len() as u64, "{report:?}");
    let again = send(
        &puller,
        &name,
        &blob(BlobData::Source(Arc::new(Wrong(Vec::new())))),
    )
    .expect("it is there");
    assert_eq!(again.spared_bytes, bytes.len() as u64);
}

#[test]
fn a_registry_that_keeps_what_it_got_gets_the_rest_only() {
    let Some(area) = Area::new() else { return };
    let bytes = noise(200_000).into_bytes();
    let digest = Digest::of(&bytes);
    let puts = Arc::new(std::sync::Mutex::new(Vec::new()));
    let noted = Arc::clone(&puts);
    let server = Server::start(move |request| {
        let session = "/v2/x/blobs/uploads/1";
        let length = request
            .header("content-length")
            .and_then(|l| l.parse::<u64>().ok())
            .unwrap_or(0);
        match request.method.as_str() {
            "HEAD" => Reply::new(404, ""),
            "POST" => Reply::new(202, "").with("Location", session),
            // The first one is lost half way; the registry has 50,000 bytes of it.
            "PUT" | "PATCH" => {
                let mut puts = noted.lock().unwrap();
                puts.push((
                    request.method.clone(),
                    request.header("content-range").map(str::to_owned),
                    length,
                ));
                match puts.len() {
                    1 => Reply::new(503, "").with("Retry-After", "0"),
                    _ if request.method == "PATCH" => Reply::new(202, "")
                        .with("Location", session)
                        .with("Range", "0-199999"),
                    _ => Reply::new(201, ""),
                }
            }
            _ => Reply::new(204, "")
                .with("Location", session)
                .with("Range", "0-49999"),
        }
    });
    let image = PushImage {
        blobs: vec![PushBlob {
            digest,
            size: bytes.len() as u64,
            data: BlobData::Bytes(bytes.into()),
        }],
        manifests: Vec::new(),
    };
    send(&Puller::new(&area), &format!("{}/x:1", server.host), &image).expect("resumed");
    let puts = puts.lock().unwrap().clone();
    assert_eq!(
        puts,
        [
            ("PUT".to_owned(), None, 200_000),
            ("PATCH".to_owned(), Some("50000-199999".to_owned()), 150_000),
            ("PUT".to_owned(), None, 0),
        ]
    );
}
