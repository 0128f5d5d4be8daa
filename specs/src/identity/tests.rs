// SPDX-License-Identifier: Apache-2.0
//! Ids stay what they are, and differ where steps differ.

use super::*;
use crate::plan::{CacheMount, CopySource, SecretMount};
use proptest::prelude::*;

fn parent() -> StepId {
    StepId::from_digest([7; 32])
}

fn run() -> Run {
    Run {
        argv: vec!["/bin/sh".into(), "-c".into(), "make".into()],
        env: vec![("PATH".into(), "/bin".into()), ("A".into(), "".into())],
        user: User::Ids {
            uid: 1000,
            gid: 100,
        },
        workdir: "/src".into(),
        network: Network::Host,
        caches: vec![CacheMount {
            id: "c".into(),
            target: "/c".into(),
        }],
        secrets: vec![SecretMount {
            id: "s".into(),
            target: "/s".into(),
        }],
    }
}

fn copy() -> Copy {
    Copy {
        source: CopySource::Context,
        src: vec!["a".into()],
        dst: "/d/".into(),
        exclude: Vec::new(),
        user: User::Name("bob".into()),
    }
}

/// These may change only together with the version in the domain: stores hold results under them.
#[test]
fn ids_are_stable() {
    assert_eq!(
        hex::encode(Digester::new("obuild/test/1").finish()),
        "d0982ae04c9043f92252bc28b3e8ba3ec16d83f1a48c52b5c8836ee297e1debc"
    );
    let mut digester = Digester::new("obuild/test/1");
    digester
        .bytes(b"ab")
        .number(300)
        .list(1)
        .user(&User::Ids { uid: 1, gid: 2 });
    assert_eq!(
        hex::encode(digester.finish()),
        "2c6430fa5640050c486a6c74c61f1ffdf759f08c7c7128eb35d700ebfcb4edef"
    );
    assert_eq!(
        run_id(&parent(), &run()).to_string(),
        "3979660adb32f36c25c6cc8a91ac7d8de4e9b5cc1aa91e23bcdf86d4d6409d21"
    );
    assert_eq!(
        copy_id(&parent(), &[9; 32], &copy()).to_string(),
        "24cf6b1b4d7e2c72200b24ae561c56047288b2afcfa3b5eb516fca552333234d"
    );
}

/// The encoding written out by hand, so that the page at the head of the module stays true.
#[test]
fn the_encoding_is_the_documented_one() {
    let mut expected = Vec::new();
    let mut bytes = |text: &[u8]| {
        expected.push(b'b');
        expected.extend_from_slice(&(text.len() as u64).to_le_bytes());
        expected.extend_from_slice(text);
    };
    bytes(b"obuild/copy/1");
    bytes(&[7; 32]);
    bytes(&[9; 32]);
    bytes(b"/d/");
    expected.extend_from_slice(&[b'n', 1, 0, 0, 0, 0, 0, 0, 0, b'b', 3, 0, 0, 0, 0, 0, 0, 0]);
    expected.extend_from_slice(b"bob");
    let digest: [u8; 32] = Sha256::digest(&expected).into();
    assert_eq!(
        copy_id(&parent(), &[9; 32], &copy()),
        StepId::from_digest(digest)
    );
}

#[test]
fn every_field_of_a_run_counts() {
    let changes: [fn(&mut Run); 14] = [
        |run| run.argv.push("".into()),
        |run| run.argv[2] = "make all".into(),
        |run| run.env.swap(0, 1),
        |run| run.env[1].1 = "x".into(),
        |run| run.env[1].0 = "B".into(),
        |run| {
            run.user = User::Ids {
                uid: 100,
                gid: 1000,
            }
        },
        |run| run.user = User::Name("bob".into()),
        |run| run.workdir = "/src/".into(),
        |run| run.network = Network::None,
        |run| run.caches.clear(),
        |run| run.caches[0].target = "/d".into(),
        |run| run.caches[0].id = "d".into(),
        |run| run.secrets[0].target = "/d".into(),
        // A cache is not a secret of the same name and place.
        |run| {
            run.secrets.insert(
                0,
                SecretMount {
                    id: "c".into(),
                    target: "/c".into(),
                },
            );
            run.caches.clear();
        },
    ];
    let mut ids = vec![
        run_id(&parent(), &run()),
        run_id(&StepId::from_digest([8; 32]), &run()),
    ];
    for change in changes {
        let mut other = run();
        change(&mut other);
        ids.push(run_id(&parent(), &other));
    }
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count);
}

#[test]
fn a_copy_is_its_tree_place_and_owner() {
    let id = copy_id(&parent(), &[9; 32], &copy());
    let same = Copy {
        source: CopySource::Node(3),
        src: vec!["b".into()],
        exclude: vec!["x".into()],
        ..copy()
    };
    assert_eq!(id, copy_id(&parent(), &[9; 32], &same));
    assert_ne!(id, copy_id(&parent(), &[1; 32], &copy()));
    assert_ne!(
        id,
        copy_id(&StepId::from_digest([8; 32]), &[9; 32], &copy())
    );
    assert_ne!(
        id,
        copy_id(
            &parent(),
            &[9; 32],
            &Copy {
                dst: "/d".into(),
                ..copy()
            }
        )
    );
    assert_ne!(
        id,
        copy_id(
            &parent(),
            &[9; 32],
            &Copy {
                user: User::Ids { uid: 0, gid: 0 },
                ..copy()
            }
        )
    );
}

fn words() -> impl Strategy<Value = Vec<bstr::BString>> {
    proptest::collection::vec("[ab]{0,3}".prop_map(bstr::BString::from), 0..4)
}

fn pairs() -> impl Strategy<Value = Vec<(bstr::BString, bstr::BString)>> {
    let word = || "[ab]{0,2}".prop_map(bstr::BString::from);
    proptest::collection::vec((word(), word()), 0..3)
}

fn any_run() -> impl Strategy<Value = Run> {
    (
        words(),
        pairs(),
        "[ab]{0,2}",
        any::<bool>(),
        pairs(),
        pairs(),
        0..3_u32,
    )
        .prop_map(|(argv, env, workdir, host, caches, secrets, uid)| Run {
            argv,
            env,
            user: if uid == 0 {
                User::Name("b".into())
            } else {
                User::Ids { uid, gid: 0 }
            },
            workdir: workdir.into(),
            network: if host { Network::Host } else { Network::None },
            caches: caches
                .into_iter()
                .map(|(id, target)| CacheMount { id, target })
                .collect(),
            secrets: secrets
                .into_iter()
                .map(|(id, target)| SecretMount { id, target })
                .collect(),
        })
}

proptest! {
    /// Small alphabets make near misses likely: the same bytes cut into different fields.
    #[test]
    fn ids_are_equal_exactly_where_runs_are(a in any_run(), b in any_run()) {
        prop_assert_eq!(run_id(&parent(), &a) == run_id(&parent(), &b), a == b);
        prop_assert_eq!(run_id(&parent(), &a), run_id(&parent(), &a.clone()));
    }

    #[test]
    fn moving_a_byte_between_neighbours_changes_the_id(run in any_run(), word in "[ab]{1,3}") {
        let mut first = run.clone();
        let mut second = run;
        first.argv = vec![word.clone().into(), "".into()];
        second.argv = vec!["".into(), word.into()];
        prop_assert_ne!(run_id(&parent(), &first), run_id(&parent(), &second));
    }
}
