// SPDX-License-Identifier: Apache-2.0
//! The format of a cache's document, which other machines read.

use super::{CacheDocument, Manifest, SharedBlob, SharedLayer, SharedStep};
use crate::Digest;
use obuild_stores::SnapshotId;

#[test]
fn the_document_is_as_it_is_documented() {
    let blob = SharedBlob {
        digest: Digest([1; 32]),
        size: 7,
    };
    let step = SharedStep {
        step: SnapshotId::from_digest([2; 32]),
        parent: SnapshotId::from_digest([3; 32]),
        kind: "run".to_owned(),
        heading: "/: (run (shell true))".to_owned(),
        created: 5,
        duration: 6,
        layer: Some(SharedLayer {
            blob,
            diff_id: Digest([4; 32]),
        }),
        log: None,
        tree: None,
    };
    let (one, two, three, four) = ("01", "02", "03", "04");
    let text = format!(
        r#"{{"step":"{}","parent":"{}","kind":"run","heading":"/: (run (shell true))","created":5,"duration":6,"layer":{{"digest":"sha256:{}","size":7,"diff_id":"sha256:{}"}}}}"#,
        two.repeat(32),
        three.repeat(32),
        one.repeat(32),
        four.repeat(32)
    );
    assert_eq!(serde_json::to_string(&step).unwrap(), text);
    assert_eq!(serde_json::from_str::<SharedStep>(&text).unwrap(), step);
    let document = format!(r#"{{"version":1,"steps":[{text}]}}"#);
    let document: CacheDocument = serde_json::from_str(&document).unwrap();
    assert_eq!(document.steps, [step]);
}

#[test]
fn what_is_no_cache_is_refused() {
    let digest = Digest([1; 32]);
    let manifest = |kind: &str| {
        let text = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{kind}","digest":"{digest}","size":2}}}}"#
        );
        Manifest::parse("it", text.as_bytes()).map(|manifest| manifest.config)
    };
    assert_eq!(
        manifest("application/vnd.obuild.cache.v1+json").unwrap(),
        digest
    );
    assert!(manifest("application/vnd.oci.image.config.v1+json").is_err());
    assert!(Manifest::parse("it", b"{\"manifests\":[]}").is_err());
    assert!(Manifest::parse("it", b"nonsense").is_err());
}
