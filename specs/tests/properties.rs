// SPDX-License-Identifier: Apache-2.0
//! What holds for every spec and for every text, also hostile ones.

use bstr::{BString, ByteSlice};
use obuild_specs::sexp::{Item, Tree, format};
use obuild_specs::spec::{Build, CopyOp, Mount, Op, RunOp};
use obuild_specs::{
    BaseInfo, Escape, LowerOptions, Network, Spec, StepId, User, diagnostic, lower, to_dockerfile,
};
use proptest::prelude::*;
use std::time::{Duration, SystemTime};

fn bytes() -> impl Strategy<Value = BString> {
    prop_oneof![
        3 => "[a-z/.$ \\n\\t\"\\\\;#|()'-]{0,12}".prop_map(BString::from),
        1 => "\\PC{0,6}".prop_map(BString::from),
        1 => proptest::collection::vec(1_u8.., 0..6).prop_map(BString::from),
        1 => "([a-z&|;]{1,9} {1,2}){10,30}".prop_map(BString::from),
    ]
}

fn name() -> impl Strategy<Value = String> {
    "[a-c]{1,2}|[a-z é]{1,4}"
}

fn mounts() -> impl Strategy<Value = Vec<Mount>> {
    let options = proptest::collection::vec((bytes(), bytes()), 0..2);
    let mount = (
        bytes(),
        bytes().prop_filter("no target", |target| !target.is_empty()),
        options,
    )
        .prop_map(|(id, target, buildkit_options)| Mount {
            id: id.into(),
            target: target.into(),
            buildkit_options,
        });
    proptest::collection::vec(mount, 0..3)
}

fn user() -> impl Strategy<Value = User> {
    prop_oneof![
        (0..u32::MAX, 0..u32::MAX).prop_map(|(uid, gid)| User::Ids { uid, gid }),
        bytes()
            .prop_filter("no name", |name| !name.is_empty())
            .prop_map(User::Name),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let network = any::<bool>().prop_map(|host| if host { Network::Host } else { Network::None });
    let run =
        (mounts(), network, mounts(), bytes()).prop_map(|(cache, network, secrets, shell)| {
            Op::Run(RunOp {
                cache,
                network,
                secrets,
                shell: shell.into(),
            })
        });
    let src = bytes().prop_filter("dots", |src| src.find("..").is_none());
    let copy = (
        proptest::collection::vec(src, 1..3),
        bytes(),
        proptest::collection::vec(bytes(), 0..3),
    )
        .prop_map(|(src, mut dst, exclude)| {
            if src.len() > 1 {
                dst.push(b'/');
            }
            let src = src.into_iter().map(Into::into).collect();
            Op::Copy(CopyOp {
                from: None,
                src,
                dst: dst.into(),
                exclude,
            })
        });
    prop_oneof![
        bytes().prop_map(Op::Comment),
        bytes().prop_map(Op::Workdir),
        proptest::collection::vec(bytes(), 0..4).prop_map(Op::Shell),
        run,
        copy,
        user().prop_map(Op::User),
        ("[A-Z_ ]{1,5}", bytes()).prop_map(|(name, value)| Op::Env {
            name: name.into(),
            value
        }),
    ]
}

fn spec() -> impl Strategy<Value = Spec> {
    let ops = || {
        proptest::collection::vec(op(), 0..6)
            .prop_map(|ops| ops.into_iter().map(Into::into).collect::<Vec<_>>())
    };
    let leaf = (name(), ops()).prop_map(|(from, ops)| Spec {
        builds: Vec::new(),
        from: from.into(),
        ops,
    });
    leaf.prop_recursive(3, 8, 2, move |inner| {
        let builds = proptest::collection::vec((name(), inner), 0..3);
        (builds, name(), ops(), any::<bool>()).prop_map(|(builds, from, mut ops, copies)| {
            if let Some((name, _)) = builds.last().filter(|_| copies) {
                ops.push(
                    Op::Copy(CopyOp {
                        from: Some(name.clone().into()),
                        src: vec![BString::from(".").into()],
                        dst: BString::from("").into(),
                        exclude: Vec::new(),
                    })
                    .into(),
                );
            }
            let builds = builds
                .into_iter()
                .map(|(name, spec)| Build {
                    name: name.into(),
                    spec,
                })
                .collect();
            Spec {
                builds,
                from: from.into(),
                ops,
            }
        })
    })
}

/// Text that is often nearly a spec.
fn source() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => Just(&b"("[..]), 4 => Just(&b")"[..]), 3 => Just(&b" "[..]), 2 => Just(&b"\n"[..]), 1 => Just(&b"\n\n"[..]),
        1 => Just(&b"; note \n"[..]), 1 => Just(&b"#| block |#"[..]), 1 => Just(&b"#| two\nlines |#"[..]),
        1 => Just(&b"#;"[..]), 1 => Just(&b"\"a b\""[..]), 1 => Just(&b"\"a\\nb\\n\""[..]), 1 => Just(&b"(from x)"[..]),
        1 => Just(&b"(run (shell \"a && b\"))"[..]), 1 => Just(&b"(run "[..]), 1 => Just(&b"(shell "[..]),
        1 => Just(&b"(build b ("[..]), 1 => Just(&b"(copy (src a) (dst b))"[..]), 1 => Just(&b"word"[..]),
        1 => Just(&b"\"a very long string, which does not fit into what is left of the line && so on and on\""[..]),
        1 => Just(&b"\""[..]), 1 => Just(&b"\\"[..]), 1 => Just(&b"\xff"[..]), 1 => Just(&b"\r\n"[..]), 1 => Just(&b"\r"[..]),
        1 => Just(&b"#|"[..]), 1 => Just(&b"|#"[..]), 1 => Just(&b"\0"[..]),
    ];
    (any::<bool>(), proptest::collection::vec(piece, 0..40)).prop_map(|(close, pieces)| {
        let mut source = pieces.concat();
        if close {
            // Balanced more often than chance would have it.
            let open = source.find_iter("(").count();
            let closed = source.find_iter(")").count();
            source.insert(0, b'(');
            source.extend(std::iter::repeat_n(b')', (open + 1).saturating_sub(closed)));
        }
        source
    })
}

/// A tree's meaning, written without ambiguity.
fn meaning(item: Item<'_>, into: &mut Vec<u8>) {
    if let Some(value) = item.atom() {
        into.extend_from_slice(std::format!("{}:{value:?};", value.len()).as_bytes());
    } else {
        into.push(b'(');
        item.children().for_each(|child| meaning(child, into));
        into.push(b')');
    }
}

fn comments(tree: &Tree<'_>) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut waiting: Vec<Item<'_>> = tree.elements().collect();
    while let Some(item) = waiting.pop() {
        if item.kind().is_comment() && item.kind() != obuild_specs::sexp::Kind::DatumComment {
            found.push(item.text().trim_ascii_end().to_vec());
        }
        waiting.extend(item.elements());
    }
    found.sort();
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_printed_is_read_again(spec in spec()) {
        let text = spec.to_string();
        let again = Spec::parse(text.as_bytes());
        prop_assert_eq!(again.as_ref(), Ok(&spec), "{}", text);
        let formatted = format(text.as_bytes()).expect("printed text is sound");
        prop_assert_eq!(formatted.as_bstr(), text.as_bytes().as_bstr());
    }

    #[test]
    fn every_spec_is_lowered_and_converted(spec in spec()) {
        let base = |_: &str| Some(BaseInfo { id: StepId::from_digest([0; 32]), env: Vec::new() });
        let plan = lower(&spec, &base, &LowerOptions::default()).expect("a sound spec");
        for (index, node) in plan.nodes.iter().enumerate() {
            prop_assert!(node.operation.edges().all(|edge| edge < index));
        }
        prop_assert!(plan.target == plan.nodes.len() - 1);
        let dot = plan.to_dot();
        prop_assert!(dot.ends_with('\n'));
        for (buildkit, escape) in [(true, Escape::Unix), (false, Escape::Windows)] {
            let text = to_dockerfile(&spec, buildkit, escape).text;
            prop_assert!(text.lines().any(|line| line.starts_with("FROM ")));
        }
    }

    #[test]
    fn nothing_panics(source in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Err(errors) = Spec::parse(&source) {
            prop_assert!(!errors.is_empty());
            prop_assert!(errors.iter().all(|error| error.span.start <= error.span.end && error.span.end <= source.len()));
            prop_assert!(!diagnostic::render(&errors, "f", &source, true).is_empty());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn formatting_keeps_meaning_and_comments_and_settles(source in source()) {
        match Tree::read(&source) {
            Err(errors) => {
                prop_assert!(!errors.is_empty());
                diagnostic::render(&errors, "f", &source, false);
                diagnostic::to_json(&errors, "f", &source);
            }
            Ok(tree) => {
                let once = format(&source).expect("a sound text");
                let again = Tree::read(&once).expect("formatted text is sound");
                let (mut before, mut after) = (Vec::new(), Vec::new());
                meaning(tree.root(), &mut before);
                meaning(again.root(), &mut after);
                prop_assert_eq!(before, after);
                prop_assert_eq!(comments(&tree), comments(&again));
                let twice = format(&once).expect("formatted text is sound");
                prop_assert_eq!(once.as_bstr(), twice.as_bstr());
                if let Err(errors) = Spec::parse(&source) {
                    diagnostic::render(&errors, "f", &source, false);
                }
            }
        }
    }
}

/// Returns how long this thread has had a processor, as far as the system tells: other processes do not count.
fn processor_time() -> Duration {
    // The first field is nanoseconds on a processor: linux Documentation/scheduler/sched-stats.rst.
    let used = fs_err::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .and_then(|text| text.split(' ').next().and_then(|field| field.parse().ok()));
    used.map_or_else(
        || SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default(),
        Duration::from_nanos,
    )
}

/// Runs `work` on texts of a size and of four times the size, and asks that time grows in proportion.
fn assert_linear(name: &str, make: impl Fn(usize) -> Vec<u8>, work: impl Fn(&[u8])) {
    let time = |size| {
        let source = make(size);
        let runs = (0..3).map(|_| {
            let start = processor_time();
            work(&source);
            processor_time().saturating_sub(start)
        });
        runs.min().unwrap_or_default()
    };
    let (small, large) = (time(20_000), time(80_000));
    // What is quadratic takes sixteen times as long.
    let bound = small * 8 + Duration::from_millis(30);
    assert!(
        large < bound,
        "{name}: {small:?}, and {large:?} for four times as much"
    );
}

fn use_all(source: &[u8]) {
    if let Ok(text) = format(source) {
        assert!(
            text.len() <= 64 * source.len() + 64,
            "output grows with input only"
        );
    }
    match Spec::parse(source) {
        Ok(spec) => drop(spec.to_string()),
        Err(errors) => drop(diagnostic::render(&errors, "f", source, false)),
    }
}

#[test]
fn time_and_memory_grow_with_the_input_only() {
    let repeated =
        |text: &'static str| move |size: usize| text.repeat(size / text.len()).into_bytes();
    let wrapped = |text: &'static str, close: &'static str| {
        move |size: usize| {
            let count = size / (text.len() + close.len());
            [text.repeat(count), "x".to_owned(), close.repeat(count)]
                .concat()
                .into_bytes()
        }
    };
    let inside = |text: &'static str| {
        move |size: usize| {
            std::format!("((from x) {})", text.repeat(size / text.len())).into_bytes()
        }
    };
    assert_linear("open", repeated("("), use_all);
    assert_linear("close", repeated(")"), use_all);
    assert_linear("nested", wrapped("(", ")"), use_all);
    assert_linear("nested heads", wrapped("(a ", ")"), use_all);
    assert_linear("nested lines", wrapped("(a\n", ")\n"), use_all);
    assert_linear(
        "nested builds",
        wrapped("((build b ", ") (from x))"),
        use_all,
    );
    assert_linear("datum comments", repeated("#;"), use_all);
    assert_linear("commented out", repeated("#;a"), use_all);
    assert_linear("comments", inside("; c\n"), use_all);
    assert_linear("block comments", wrapped("#|", "|#"), use_all);
    assert_linear("quotes", repeated("\""), use_all);
    assert_linear(
        "blanks then parentheses",
        |size| [" ".repeat(size), "(".repeat(size)].concat().into_bytes(),
        use_all,
    );
    assert_linear("unclosed lines", repeated("(a)\n("), use_all);
    assert_linear(
        "steps",
        inside("(run (shell \"make && make install\"))\n"),
        use_all,
    );
    assert_linear("bad steps", inside("(rnu (shell \"make\")) "), use_all);
    assert_linear(
        "copies",
        inside("(copy (from (build b)) (src ..) (dst /a)) "),
        use_all,
    );
    assert_linear(
        "words",
        |size| {
            std::format!("((from x) (run (shell \"{}\")))", "w && ".repeat(size / 5)).into_bytes()
        },
        use_all,
    );
    assert_linear(
        "lines",
        |size| {
            std::format!("((from x) (run (shell \"{}\")))", "w\\n ".repeat(size / 4)).into_bytes()
        },
        use_all,
    );
    assert_linear(
        "builds",
        |size| {
            let builds: Vec<String> = (0..size / 20)
                .map(|n| std::format!("(build b{n} ((from x)))"))
                .collect();
            let builds = builds.concat();
            std::format!("({builds} (from x))").into_bytes()
        },
        use_all,
    );
}

#[test]
fn no_number_of_parentheses_overflows_a_small_stack() {
    let work = || {
        let count = 300_000;
        for source in [
            "(".repeat(count),
            ["(".repeat(count), ")".repeat(count)].concat(),
            "#;".repeat(count),
        ] {
            use_all(source.as_bytes());
        }
        let builds = [
            "((build b ".repeat(30_000),
            "((from x))".to_owned(),
            ")(from x))".repeat(30_000),
        ]
        .concat();
        use_all(builds.as_bytes());
    };
    std::thread::Builder::new()
        .stack_size(1024 * 1024)
        .spawn(work)
        .expect("a thread can be started")
        .join()
        .expect("no overflow");
}

#[test]
fn builds_nest_as_deep_as_is_allowed() {
    let nested = |depth: usize| {
        std::format!(
            "{}((from x)){}",
            "((build b ".repeat(depth),
            ") (from x))".repeat(depth)
        )
    };
    let deep = obuild_specs::spec::MAX_NESTING;
    let spec = Spec::parse(nested(deep).as_bytes()).expect("the limit itself is allowed");
    assert_eq!(Spec::parse(spec.to_string().as_bytes()), Ok(spec));
    let errors = Spec::parse(nested(deep + 1).as_bytes()).expect_err("one more is not");
    assert_eq!(errors[0].message, "builds are nested deeper than 100");
}
