// SPDX-License-Identifier: Apache-2.0
//! The example specs are sound, need no registry, and are laid out as the formatter would.

use bstr::ByteSlice;
use obuild_specs::sexp::format;
use obuild_specs::{BaseInfo, LowerOptions, Operation, Spec, StepId, lower, spec};

#[test]
fn examples_are_sound_and_formatted() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
    let mut count = 0;
    for entry in fs_err::read_dir(folder).expect("there are examples") {
        let path = entry.expect("a readable folder").path();
        if path.extension().is_none_or(|extension| extension != "sexp") {
            continue;
        }
        count += 1;
        let source = fs_err::read(&path).expect("a readable example");
        let parsed = Spec::parse(&source).expect("a sound example");
        assert_eq!(spec::warnings(&parsed), [], "{}", path.display());
        assert_eq!(
            format(&source).expect("a sound example").as_bstr(),
            source.as_bstr(),
            "{}",
            path.display()
        );
        for base in parsed.bases() {
            assert!(
                base.value == "scratch" || base.starts_with("debootstrap:"),
                "{base:?}"
            );
        }
        let base = |_: &str| {
            Some(BaseInfo {
                id: StepId::from_digest([0; 32]),
                env: Vec::new(),
            })
        };
        let plan = lower(&parsed, &base, &LowerOptions::default()).expect("known bases");
        let steps = plan
            .nodes
            .iter()
            .filter(|node| matches!(node.operation, Operation::Run { .. }));
        assert!(steps.count() > 0, "{} runs nothing", path.display());
    }
    assert!(count >= 5, "{count} examples were found");
}
