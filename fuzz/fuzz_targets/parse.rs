// SPDX-License-Identifier: Apache-2.0
//! A spec that is accepted is printed and read again as itself, lowered and converted.
#![no_main]

use libfuzzer_sys::fuzz_target;
use obuild_specs::{
    BaseInfo, Escape, LowerOptions, Spec, StepId, diagnostic, lower, spec, to_dockerfile,
};

fuzz_target!(|data: &[u8]| match Spec::parse(data) {
    Ok(parsed) => {
        let text = parsed.to_string();
        assert_eq!(Spec::parse(text.as_bytes()), Ok(parsed.clone()), "{text}");
        spec::warnings(&parsed);
        let base = |_: &str| {
            Some(BaseInfo {
                id: StepId::from_digest([0; 32]),
                env: Vec::new(),
            })
        };
        let plan = lower(&parsed, &base, &LowerOptions::default()).expect("an accepted spec");
        plan.to_dot();
        to_dockerfile(&parsed, true, Escape::Unix);
        to_dockerfile(&parsed, false, Escape::Windows);
    }
    Err(errors) => {
        diagnostic::render(&errors, "fuzz", data, true);
    }
});
