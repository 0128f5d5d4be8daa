// SPDX-License-Identifier: Apache-2.0
//! What lowering makes of specs.

use super::*;
use crate::plan::{Network, StepId};

fn base(reference: &str) -> Option<BaseInfo> {
    let id = StepId::from_digest([u8::try_from(reference.len()).unwrap_or(0); 32]);
    let env = match reference {
        "bare" => Vec::new(),
        "unknown" => return None,
        _ => vec![
            ("PATH".into(), "/bin".into()),
            ("A".into(), "base".into()),
            ("A".into(), "last".into()),
        ],
    };
    Some(BaseInfo { id, env })
}

fn plan(source: &str) -> Plan {
    let spec = Spec::parse(source.as_bytes()).expect("a sound spec");
    lower(&spec, &base, &LowerOptions::default()).expect("known bases")
}

fn runs(plan: &Plan) -> Vec<&Run> {
    let runs = plan.nodes.iter().filter_map(|node| match &node.operation {
        Operation::Run { run, .. } => Some(run),
        _ => None,
    });
    runs.collect()
}

fn env(run: &Run) -> Vec<String> {
    run.env
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

#[test]
fn variables_set_last_come_first() {
    let plan = plan(
        r"((from image) (run (shell a)) (env B 1) (env C 2) (env B 3) (run (shell b)) (env A 4) (env PATH x) (run (shell c)))",
    );
    let runs = runs(&plan);
    assert_eq!(env(runs[0]), ["PATH=/bin", "A=last"]);
    assert_eq!(env(runs[1]), ["B=3", "C=2", "PATH=/bin", "A=last"]);
    assert_eq!(env(runs[2]), ["PATH=x", "A=4", "B=3", "C=2"]);
}

#[test]
fn setting_one_variable_often_keeps_the_order() {
    let mut environment = Environment::new(Vec::new());
    for number in 0..1000 {
        let name = BString::from(format!("V{}", number % 3));
        environment.set(&name, &number.to_string().into());
        assert!(environment.set.len() < 20);
    }
    let names: Vec<_> = environment
        .list()
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    assert_eq!(names[..3], ["V0=999", "V2=998", "V1=997"]);
}

#[test]
fn a_path_is_never_missing() {
    let plan = plan("((from bare) (run (shell a)))");
    assert_eq!(env(runs(&plan)[0]), [format!("PATH={DEFAULT_PATH}")]);
}

#[test]
fn context_reaches_the_steps_after_it() {
    let plan = plan(
        r#"((from image) (comment hi) (workdir src) (workdir ./sub/) (user (uid 1) (gid 2)) (shell /bin/sh -c)
            (run (network host) (cache (c (target var/c))) (secrets (s (target /s))) (shell make))
            (shell) (workdir /w) (user (name bob)) (copy (src a b) (dst ./d/)) (copy (src a) (dst ""))
            (run (shell only)))"#,
    );
    let node = &plan.nodes[1];
    assert_eq!(
        node.preamble,
        [
            "/: (comment hi)",
            "/: (workdir src)",
            "/src: (workdir ./sub/)",
            "/src/./sub/: (user (uid 1) (gid 2))",
            "/src/./sub/: (shell /bin/sh -c)",
        ]
    );
    let run = runs(&plan)[0];
    assert_eq!(run.argv, ["/bin/sh", "-c", "make"]);
    assert_eq!(
        (&run.workdir, &run.user),
        (&"/src/./sub/".into(), &User::Ids { uid: 1, gid: 2 })
    );
    assert_eq!(run.network, Network::Host);
    assert_eq!(run.caches[0].target, "/var/c");
    assert_eq!(run.secrets[0].target, "/s");
    let Operation::Copy { parent: 1, copy } = &plan.nodes[2].operation else {
        panic!("a copy on node 1")
    };
    assert_eq!(
        (&copy.dst, copy.source),
        (&"/w/./d/".into(), CopySource::Context)
    );
    assert_eq!(copy.user, User::Name("bob".into()));
    let Operation::Copy { parent: 2, copy } = &plan.nodes[3].operation else {
        panic!("a copy on node 2")
    };
    assert_eq!(copy.dst, "/w/");
    assert_eq!(plan.nodes[3].heading, r#"/w: (copy (src a) (dst ""))"#);
    assert_eq!(runs(&plan)[1].argv, ["only"]);
    assert_eq!(plan.target, 4);
}

#[test]
fn nested_builds_start_afresh_and_are_found_by_name() {
    let plan = plan(
        r"((build a ((build in ((from x) (env K V) (run (shell 1)))) (from image) (copy (from (build in)) (src s) (dst /s))))
            (build b ((from image) (copy (from (build a)) (src s) (dst /s))))
            (build a ((from image) (run (shell 2))))
            (from image) (workdir /w) (copy (from (build a)) (src s) (dst s)) (copy (from (build b)) (src s) (dst s)))",
    );
    let sources: Vec<_> = plan
        .nodes
        .iter()
        .filter_map(|node| match &node.operation {
            Operation::Copy {
                copy:
                    Copy {
                        source: CopySource::Node(node),
                        ..
                    },
                ..
            } => Some(*node),
            _ => None,
        })
        .collect();
    // in: 0 1, a: 2 3, b: 4 5, second a: 6 7, main: 8 9 10.
    assert_eq!(sources, [1, 3, 7, 5]);
    assert_eq!(
        plan.names,
        [
            ("a/in".to_owned(), 1),
            ("a".to_owned(), 3),
            ("b".to_owned(), 5),
            ("a".to_owned(), 7)
        ]
    );
    assert_eq!(plan.nodes[1].build, ["a", "in"]);
    assert_eq!(
        (
            plan.find("a"),
            plan.find("in"),
            plan.find("a/in"),
            plan.find("c")
        ),
        (Some(7), Some(1), Some(1), None)
    );
    assert_eq!(plan.suggest("a/inn"), ["a/in"]);
    for (index, node) in plan.nodes.iter().enumerate() {
        assert!(node.operation.edges().all(|edge| edge < index));
    }
}

#[test]
fn a_slice_holds_what_its_target_needs() {
    let plan = plan(
        r"((build a ((from image) (run (shell 1)))) (build b ((from image) (run (shell 2))))
            (build c ((from image) (copy (from (build b)) (src s) (dst /s)) (run (shell 3))))
            (from image) (run (shell 4)))",
    );
    let part = plan.slice(plan.find("c").expect("c exists"));
    let headings: Vec<_> = part.nodes.iter().map(|node| &*node.heading).collect();
    assert_eq!(
        headings,
        [
            "(from image)",
            "/: (run (shell \"2\"))",
            "(from image)",
            "/: (copy (from (build b)) (src s) (dst /s))",
            "/: (run (shell \"3\"))",
        ]
    );
    let edges: Vec<Vec<_>> = part
        .nodes
        .iter()
        .map(|node| node.operation.edges().collect())
        .collect();
    assert_eq!(edges, [vec![], vec![0], vec![], vec![2, 1], vec![3]]);
    assert_eq!(
        (part.target, part.find("b"), part.find("a")),
        (4, Some(1), None)
    );
}

#[test]
fn unknown_bases_are_all_reported() {
    let spec = Spec::parse(b"((build a ((from unknown))) (from unknown))").expect("a sound spec");
    let errors = lower(&spec, &base, &LowerOptions::default()).expect_err("no base is known");
    let places: Vec<_> = errors
        .iter()
        .map(|error| (&*error.message, error.span.clone()))
        .collect();
    assert_eq!(
        places,
        [
            ("the base unknown is not known", 17..24),
            ("the base unknown is not known", 34..41)
        ]
    );
}
