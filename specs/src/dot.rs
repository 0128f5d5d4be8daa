// SPDX-License-Identifier: Apache-2.0
//! A plan as a graph in Graphviz' DOT language.

use crate::plan::{CopySource, Operation, Plan};
use std::fmt::Write;

/// The longest label of a step, in characters.
const LONGEST: usize = 120;

impl Plan {
    /// Returns the plan in DOT: a box a step, named builds as clusters, dashed edges for what copies read.
    pub fn to_dot(&self) -> String {
        let mut text = String::from(
            "digraph plan {\n  rankdir=TB;\n  node [shape=box, fontname=monospace];\n",
        );
        let mut previous: &[String] = &[];
        let mut open = false;
        for (index, node) in self.nodes.iter().enumerate() {
            // The steps of one build are neighbours in a plan, apart from those of builds inside it.
            if node.build != previous {
                if open {
                    text.push_str("  }\n");
                }
                open = !node.build.is_empty();
                if open {
                    let label = quoted(&node.build.join("/"));
                    line(
                        &mut text,
                        &format!("  subgraph cluster_{index} {{\n    label={label};\n"),
                    );
                }
                previous = &node.build;
            }
            let style = if index == self.target {
                ", style=bold"
            } else {
                ""
            };
            let label = quoted(&node.heading);
            line(
                &mut text,
                &format!("    n{index} [label={label}{style}];\n"),
            );
        }
        if open {
            text.push_str("  }\n");
        }
        for (index, node) in self.nodes.iter().enumerate() {
            match &node.operation {
                Operation::Base { .. } => {}
                Operation::Run { parent, .. } => {
                    line(&mut text, &format!("  n{parent} -> n{index};\n"));
                }
                Operation::Copy { parent, copy } => {
                    line(&mut text, &format!("  n{parent} -> n{index};\n"));
                    let from = match copy.source {
                        CopySource::Context => "context".to_owned(),
                        CopySource::Node(source) => format!("n{source}"),
                    };
                    line(
                        &mut text,
                        &format!("  {from} -> n{index} [style=dashed];\n"),
                    );
                }
            }
        }
        text.push_str("}\n");
        text
    }
}

fn line(text: &mut String, line: &str) {
    text.write_str(line)
        .expect("writing to a string cannot fail");
}

/// A quoted DOT string. Line ends become `\l`, which also aligns to the left.
fn quoted(label: &str) -> String {
    let mut text = String::from("\"");
    for (number, character) in label.chars().enumerate() {
        match character {
            _ if number == LONGEST => {
                text.push('…');
                break;
            }
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\l"),
            character => text.push(character),
        }
    }
    if label.contains('\n') {
        text.push_str("\\l");
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use crate::{BaseInfo, LowerOptions, Spec, StepId, lower};

    #[test]
    fn draws_edges_and_builds() {
        let spec = Spec::parse(
            br#"((build dev ((from d) (run (shell "echo \"a\""))))
                (from m) (copy (src x) (dst /x)) (copy (from (build dev)) (src y) (dst /y)))"#,
        )
        .expect("a sound spec");
        let base = |_: &str| {
            Some(BaseInfo {
                id: StepId::from_digest([1; 32]),
                env: Vec::new(),
            })
        };
        let plan = lower(&spec, &base, &LowerOptions::default()).expect("known bases");
        assert_eq!(
            plan.to_dot(),
            r#"digraph plan {
  rankdir=TB;
  node [shape=box, fontname=monospace];
  subgraph cluster_0 {
    label="dev";
    n0 [label="(from d)"];
    n1 [label="/: (run (shell \"echo \\\"a\\\"\"))"];
  }
    n2 [label="(from m)"];
    n3 [label="/: (copy (src x) (dst /x))"];
    n4 [label="/: (copy (from (build dev)) (src y) (dst /y))", style=bold];
  n0 -> n1;
  n2 -> n3;
  context -> n3 [style=dashed];
  n3 -> n4;
  n1 -> n4 [style=dashed];
}
"#
        );
    }
}
