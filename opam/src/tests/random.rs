// SPDX-License-Identifier: Apache-2.0
//! Trees that are printed and read again, and bytes that are no tree.

use super::super::tree::{
    Block, EnvOp, Field, Item, Kind, Name, PrefixOp, RelationOp, Span, Value,
};
use super::super::{MAX_ERRORS, parse, sources};
use super::{env, relation};
use bstr::{BStr, ByteSlice};
use proptest::prelude::*;
use std::borrow::Cow;

type Tree = Value<'static>;

fn node(kind: Kind<'static>) -> Tree {
    let span = Span::default();
    Value { kind, span }
}

const NAMES: [&str; 8] = [
    "a",
    "with-test",
    "_:x",
    "a+b:c",
    "9a",
    "true-ish",
    "os-family",
    "_+_",
];

fn name() -> impl Strategy<Value = &'static BStr> {
    prop::sample::select(&NAMES[..]).prop_map(|name| name.as_bytes().as_bstr())
}

const PIECES: &[&str] = &["\"", "\\", "\r\n", "\"\"\"", "# ", "(*", "x"];

fn text() -> impl Strategy<Value = Cow<'static, [u8]>> {
    let piece = prop_oneof![
        any::<u8>().prop_map(|byte| vec![byte]),
        prop::sample::select(PIECES).prop_map(|piece| piece.as_bytes().to_vec()),
    ];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| Cow::Owned(pieces.concat()))
}

fn atom() -> impl Strategy<Value = Tree> {
    prop_oneof![
        4 => text().prop_map(Kind::String),
        4 => name().prop_map(Kind::Ident),
        1 => (-(1_i64 << 62) + 1..1 << 62).prop_map(Kind::Int),
        1 => any::<bool>().prop_map(Kind::Bool),
    ]
    .prop_map(node)
}

fn relation_op() -> impl Strategy<Value = RelationOp> {
    use RelationOp::{Equal, Greater, GreaterEqual, Less, LessEqual, NotEqual};
    prop::sample::select(&[Equal, NotEqual, Less, LessEqual, Greater, GreaterEqual][..])
}

fn env_op() -> impl Strategy<Value = EnvOp> {
    use EnvOp::{ColonEqual, EqualColon, EqualPlus, EqualPlusEqual, PlusEqual};
    prop::sample::select(&[PlusEqual, EqualPlus, EqualPlusEqual, ColonEqual, EqualColon][..])
}

/// What can stand before a condition: everything that binds at least as close.
fn binds_close(value: &Tree) -> bool {
    !matches!(value.kind, Kind::And(_) | Kind::Or(_) | Kind::Prefix(..))
}

fn grouped(value: Tree, fits: impl Fn(&Tree) -> bool) -> Tree {
    if fits(&value) {
        value
    } else {
        node(Kind::Group(vec![value]))
    }
}

/// Makes a sequence out of what could be read otherwise side by side: `a` and `= b` would be a comparison.
fn sequence(values: Vec<Tree>) -> Vec<Tree> {
    let alone = |value: &Tree| !begins_with_comparison(value);
    let mut values = values.into_iter();
    let first = values.next();
    first
        .into_iter()
        .chain(values.map(|value| grouped(value, alone)))
        .collect()
}

fn begins_with_comparison(value: &Tree) -> bool {
    match &value.kind {
        Kind::Compare(..) => true,
        Kind::Option(inner, _) => begins_with_comparison(inner),
        Kind::And(operands) | Kind::Or(operands) => begins_with_comparison(&operands[0]),
        _ => false,
    }
}

fn value() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        6 => atom(),
        1 => (relation_op(), atom()).prop_map(|(op, atom)| node(Kind::Compare(op, Box::new(atom)))),
        1 => (relation_op(), atom(), atom()).prop_map(|(op, left, right)| node(Kind::Relation(op, Box::new([left, right])))),
        1 => (env_op(), atom(), atom()).prop_map(|(op, left, right)| node(Kind::Env(op, Box::new([left, right])))),
    ];
    leaf.prop_recursive(5, 40, 4, |inner| {
        let many = prop::collection::vec(inner.clone(), 0..4).prop_map(sequence);
        let operands = prop::collection::vec(inner.clone(), 2..4);
        prop_oneof![
            many.clone().prop_map(|values| node(Kind::List(values))),
            many.clone().prop_map(|values| node(Kind::Group(values))),
            (inner.clone(), many).prop_map(|(value, conditions)| node(Kind::Option(
                Box::new(grouped(value, binds_close)),
                conditions
            ))),
            (any::<bool>(), inner).prop_map(|(not, value)| {
                let operator = if not {
                    PrefixOp::Not
                } else {
                    PrefixOp::Defined
                };
                let fits = |value: &Tree| !matches!(value.kind, Kind::And(_) | Kind::Or(_));
                node(Kind::Prefix(operator, Box::new(grouped(value, fits))))
            }),
            operands.clone().prop_map(|operands| {
                let fits = |value: &Tree| !matches!(value.kind, Kind::And(_) | Kind::Or(_));
                node(Kind::And(
                    operands
                        .into_iter()
                        .map(|value| grouped(value, fits))
                        .collect(),
                ))
            }),
            operands.prop_map(|operands| {
                let fits = |value: &Tree| !matches!(value.kind, Kind::Or(_));
                node(Kind::Or(
                    operands
                        .into_iter()
                        .map(|value| grouped(value, fits))
                        .collect(),
                ))
            }),
        ]
    })
}

fn item() -> impl Strategy<Value = Item<'static>> {
    let named = |text| Name {
        text,
        span: Span::default(),
    };
    let field = (name(), value()).prop_map(move |(name, value)| {
        Item::Field(Field {
            name: named(name),
            value,
        })
    });
    field.prop_recursive(2, 12, 4, move |inner| {
        let name_of_block = prop::option::of(text().prop_map(|text| (text, Span::default())));
        (name(), name_of_block, prop::collection::vec(inner, 0..4)).prop_map(
            move |(kind, name, items)| {
                Item::Block(Block {
                    kind: named(kind),
                    name,
                    items,
                    span: Span::default(),
                })
            },
        )
    })
}

/// Prints with blanks everywhere, quotes of both kinds and escapes where they must be, or where they may be.
fn print_items(items: &[Item<'_>], out: &mut Vec<u8>) {
    for item in items {
        match item {
            Item::Field(field) => {
                out.extend(&**field.name.text);
                // Without the blank a name and its colon could make one name with what follows.
                out.extend(b" : ");
                print(&field.value, out);
            }
            Item::Block(block) => {
                out.extend(&**block.kind.text);
                out.push(b' ');
                if let Some((name, _)) = &block.name {
                    print_string(name, out);
                }
                out.extend(b"{");
                print_items(&block.items, out);
                out.extend(b"}");
            }
        }
        out.push(b'\n');
    }
}

fn print_string(text: &[u8], out: &mut Vec<u8>) {
    let triple = text.len() % 2 == 1;
    let quotes = if triple { &b"\"\"\""[..] } else { b"\"" };
    out.extend(quotes);
    for (index, byte) in text.iter().enumerate() {
        match byte {
            // A blank behind the end of a line would belong to an escape there.
            b'"' | b'\\' | b' ' => out.extend([b'\\', *byte]),
            b'\r' => out.extend(b"\\r"),
            b'\n' if index % 2 == 0 => out.extend(b"\\n"),
            0..=9 => out.extend(format!("\\00{byte}").bytes()),
            255 => out.extend(b"\\xfF\\\n  "),
            _ => out.push(*byte),
        }
    }
    out.extend(quotes);
}

fn between(values: &[Value<'_>], separator: &[u8], out: &mut Vec<u8>) {
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            out.extend(separator);
        }
        print(value, out);
    }
}

fn print(value: &Value<'_>, out: &mut Vec<u8>) {
    match &value.kind {
        Kind::String(text) => print_string(text, out),
        Kind::Ident(name) => out.extend(&***name),
        Kind::Int(number) => out.extend(number.to_string().bytes()),
        Kind::Bool(truth) => out.extend(truth.to_string().bytes()),
        Kind::List(values) => {
            out.push(b'[');
            between(values, b" ", out);
            out.extend(b"](* ] *)");
        }
        Kind::Group(values) => {
            out.extend(b"( ");
            between(values, b"\r\n", out);
            out.push(b')');
        }
        Kind::Option(inner, conditions) => {
            print(inner, out);
            out.extend(b"{");
            between(conditions, b"#}\n", out);
            out.extend(b"}");
        }
        Kind::And(operands) => between(operands, b"&", out),
        Kind::Or(operands) => between(operands, b" |\t", out),
        Kind::Prefix(operator, inner) => {
            // Not `!=`.
            out.extend(if *operator == PrefixOp::Not {
                &b"! "[..]
            } else {
                b"?"
            });
            print(inner, out);
        }
        Kind::Compare(operator, inner) => {
            out.extend(relation(*operator).bytes());
            print(inner, out);
        }
        Kind::Relation(operator, sides) => between(&**sides, relation(*operator).as_bytes(), out),
        Kind::Env(operator, sides) => {
            between(&**sides, format!(" {} ", env(*operator)).as_bytes(), out);
        }
    }
}

/// Sets all spans to nothing, after a look that each lies in the one around it.
fn strip(items: &mut [Item<'_>], around: Span) {
    let inside = |span: &mut Span| {
        assert!(around.start <= span.start && span.start < span.end && span.end <= around.end);
        *span = Span::default();
    };
    for item in items {
        match item {
            Item::Field(field) => {
                inside(&mut field.name.span);
                strip_value(&mut field.value, around);
            }
            Item::Block(block) => {
                strip(&mut block.items, block.span);
                inside(&mut block.span);
                inside(&mut block.kind.span);
                if let Some((_, span)) = &mut block.name {
                    inside(span);
                }
            }
        }
    }
}

fn strip_value(value: &mut Value<'_>, around: Span) {
    let span = std::mem::take(&mut value.span);
    assert!(around.start <= span.start && span.start < span.end && span.end <= around.end);
    let children: Vec<&mut Value<'_>> = match &mut value.kind {
        Kind::List(values) | Kind::Group(values) | Kind::And(values) | Kind::Or(values) => {
            values.iter_mut().collect()
        }
        Kind::Option(inner, conditions) => {
            std::iter::once(&mut **inner).chain(conditions).collect()
        }
        Kind::Prefix(_, inner) | Kind::Compare(_, inner) => vec![inner],
        Kind::Relation(_, sides) | Kind::Env(_, sides) => sides.iter_mut().collect(),
        _ => Vec::new(),
    };
    for child in children {
        strip_value(child, span);
    }
}

proptest! {
    #[test]
    fn what_is_printed_is_read(items in prop::collection::vec(item(), 0..6)) {
        let mut text = Vec::new();
        print_items(&items, &mut text);
        let mut parsed = parse(&text);
        prop_assert_eq!(&parsed.errors, &[], "{}", text.as_bstr());
        strip(&mut parsed.items, Span::new(0, text.len()));
        prop_assert_eq!(&parsed.items, &items, "{}", text.as_bstr());
    }

    /// A mistake at the end of a file takes nothing from the fields before it.
    #[test]
    fn what_stands_before_a_mistake_is_kept(items in prop::collection::vec(item(), 1..6), rest in "[\\[{(\"!:a ]{0,6}") {
        let mut text = Vec::new();
        print_items(&items, &mut text);
        text.extend(b"end: [\n");
        text.extend(rest.bytes());
        let mut parsed = parse(&text);
        strip(&mut parsed.items, Span::new(0, text.len()));
        prop_assert!(parsed.items.len() >= items.len(), "{}", text.as_bstr());
        prop_assert_eq!(&parsed.items[..items.len()], &items[..], "{}", text.as_bstr());
    }

    #[test]
    fn no_bytes_do_harm(text in prop::collection::vec(any::<u8>(), 0..200)) {
        survives(&text);
    }

    #[test]
    fn no_tokens_do_harm(tokens in prop::collection::vec(prop::sample::select(TOKENS), 0..60)) {
        survives(tokens.concat().as_bytes());
    }
}

const TOKENS: &[&str] = &[
    "a",
    "url",
    "src",
    "checksum",
    ":",
    "\n",
    " ",
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    "\"",
    "\"\"\"",
    "\\",
    "(*",
    "*)",
    "#",
    "=",
    "!",
    "?",
    "&",
    "|",
    "+=",
    "_",
    "-",
    "1",
    "true",
    "<=",
    "\r",
    "\u{e9}",
    "\u{0}",
    "\nb: 1\n",
    "\nurl {\n",
];

fn survives(text: &[u8]) {
    let mut parsed = parse(text);
    sources(&parsed);
    assert!(parsed.errors.len() <= MAX_ERRORS);
    for error in &parsed.errors {
        assert!(error.span.start <= error.span.end && error.span.end <= text.len());
        if let Some((span, _)) = error.related {
            assert!(span.start <= span.end && span.end <= text.len());
        }
    }
    strip(&mut parsed.items, Span::new(0, text.len()));
}
