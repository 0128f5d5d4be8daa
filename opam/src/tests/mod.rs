// SPDX-License-Identifier: Apache-2.0
//! Tests of the opam file format: every construct, every mistake, what no file may do to us.

mod grammar;
mod hostile;
mod mistakes;
mod of_sources;
mod random;

use super::tree::{EnvOp, Kind, PrefixOp, RelationOp};
use super::{Item, Parsed, Value, parse};
use std::fmt::Write as _;

/// Returns a tree in a short form: `(and a b)`, with strings in quotes.
fn shown(value: &Value<'_>) -> String {
    let all = |values: &[Value<'_>]| values.iter().map(shown).collect::<Vec<_>>().join(" ");
    match &value.kind {
        Kind::String(text) => format!("{:?}", bstr::BStr::new(text)),
        Kind::Ident(name) => name.to_string(),
        Kind::Int(number) => number.to_string(),
        Kind::Bool(truth) => format!("<{truth}>"),
        Kind::List(values) => format!("[{}]", all(values)),
        Kind::Group(values) => format!("({})", all(values)),
        Kind::Option(inner, conditions) => format!("{}{{{}}}", shown(inner), all(conditions)),
        Kind::And(operands) => format!("<and {}>", all(operands)),
        Kind::Or(operands) => format!("<or {}>", all(operands)),
        Kind::Prefix(PrefixOp::Not, inner) => format!("<not {}>", shown(inner)),
        Kind::Prefix(PrefixOp::Defined, inner) => format!("<defined {}>", shown(inner)),
        Kind::Relation(operator, sides) => format!("<{} {}>", relation(*operator), all(&**sides)),
        Kind::Compare(operator, inner) => format!("<{} {}>", relation(*operator), shown(inner)),
        Kind::Env(operator, sides) => format!("<{} {}>", env(*operator), all(&**sides)),
    }
}

fn relation(operator: RelationOp) -> &'static str {
    match operator {
        RelationOp::Equal => "=",
        RelationOp::NotEqual => "!=",
        RelationOp::Less => "<",
        RelationOp::LessEqual => "<=",
        RelationOp::Greater => ">",
        RelationOp::GreaterEqual => ">=",
    }
}

fn env(operator: EnvOp) -> &'static str {
    match operator {
        EnvOp::PlusEqual => "+=",
        EnvOp::EqualPlus => "=+",
        EnvOp::EqualPlusEqual => "=+=",
        EnvOp::ColonEqual => ":=",
        EnvOp::EqualColon => "=:",
    }
}

fn items(items: &[Item<'_>]) -> String {
    let mut text = String::new();
    for item in items {
        match item {
            Item::Field(field) => write!(text, "{}: {}; ", field.name.text, shown(&field.value)),
            Item::Block(block) => {
                let name = block.name.as_ref().map_or(String::new(), |(name, _)| {
                    format!(" {:?}", bstr::BStr::new(name))
                });
                let inside = self::items(&block.items);
                write!(text, "{}{name} {{ {inside}}}; ", block.kind.text)
            }
        }
        .expect("a string takes everything");
    }
    text
}

/// Returns the tree of a text without mistakes.
fn tree(text: &str) -> String {
    let parsed = parse(text.as_bytes());
    assert_eq!(parsed.errors, [], "{text}");
    items(&parsed.items).trim_end_matches("; ").to_owned()
}

/// Returns the value of `x: TEXT`.
fn value(text: &str) -> String {
    let tree = tree(&format!("x: {text}"));
    tree.strip_prefix("x: ").expect("one field").to_owned()
}

/// Returns what is left of a text with mistakes, and the mistakes as `line:column: message`.
fn wrong(text: &str) -> (String, Vec<String>) {
    let Parsed { items, errors } = parse(text.as_bytes());
    let errors = errors.iter().map(|error| {
        format!(
            "{}:{}: {}",
            error.place.line, error.place.column, error.message
        )
    });
    (
        self::items(&items).trim_end_matches("; ").to_owned(),
        errors.collect(),
    )
}
