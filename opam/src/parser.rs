// SPDX-License-Identifier: Apache-2.0
//! Tokens to tree: recursive descent, one token ahead, as opam-file-format 2.1 `src/opamBaseParser.mly` has the grammar.
//!
//! ```text
//! item  = IDENT ":" value | IDENT [STRING] "{" item* "}"
//! value = and ("|" and)*            and = prefixed ("&" prefixed)*      prefixed = ("!" | "?") prefixed | optional
//! optional = primary ("{" value* "}")*
//! primary = atom | atom RELATION atom | atom ENV atom | RELATION atom | "(" value* ")" | "[" value* "]"
//! ```

use super::lexer::{Bracket, Lexer, Token};
use super::recovery::Goes;
use super::tree::{Block, Field, Item, Kind, Name, Span, Value};
use super::{MAX_DEPTH, MAX_ERRORS, Parsed, SyntaxError, place};
use bstr::{BStr, ByteSlice};

/// What was begun cannot be read on; the mistake has been noted.
pub(super) struct Stop;

pub(super) struct Parser<'a> {
    pub(super) text: &'a [u8],
    pub(super) lexer: Lexer<'a>,
    token: Token<'a>,
    span: Span,
    /// Where the token before ends.
    previous_end: usize,
    /// How many brackets, sections and prefixes are open.
    depth: usize,
    /// The brackets of this field that are open, the innermost last.
    open: Vec<(Bracket, Span)>,
    /// How many conditions of this field belong to what has one already: `a {b} {c}` nests, too.
    repeated_options: usize,
    /// The elements of the lists that are open, the innermost last.
    pending: Vec<Value<'a>>,
    errors: Vec<SyntaxError>,
}

impl<'a> Parser<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self {
            text,
            lexer: Lexer::new(text),
            token: Token::End,
            span: Span::default(),
            previous_end: 0,
            depth: 0,
            open: Vec::new(),
            repeated_options: 0,
            pending: Vec::new(),
            errors: Vec::new(),
        }
    }

    pub(super) fn run(mut self) -> Parsed<'a> {
        self.advance();
        let items = self.items(None);
        self.check_versions(&items);
        self.take_mistakes();
        self.errors.sort_by_key(|error| error.span.start);
        Parsed {
            items,
            errors: self.errors,
        }
    }

    /// Reads, and returns how many bytes were looked at.
    #[cfg(test)]
    pub(super) fn work(mut self) -> usize {
        self.advance();
        self.items(None);
        self.lexer.work
    }

    /// Goes on to the next token and returns the one that was there.
    pub(super) fn advance(&mut self) -> Token<'a> {
        self.previous_end = self.span.end;
        let (token, span) = self.lexer.next();
        self.span = span;
        std::mem::replace(&mut self.token, token)
    }

    fn error(&mut self, span: Span, message: String, related: Option<(Span, &'static str)>) {
        // What is read again after a mistake may be found wrong again.
        if self.errors.len() < MAX_ERRORS && !self.errors.iter().any(|known| known.span == span) {
            self.errors.push(SyntaxError {
                span,
                place: place(self.text, span.start),
                message,
                related,
            });
        }
    }

    fn take_mistakes(&mut self) {
        for mistake in std::mem::take(&mut self.lexer.mistakes) {
            self.error(mistake.span, mistake.message, None);
        }
    }

    /// Notes that something else should stand here.
    fn unexpected(&mut self, wanted: &str, related: Option<(Span, &'static str)>) -> Stop {
        if self.token != Token::Bad {
            let found = describe(&self.token, self.text, self.span);
            self.error(self.span, format!("{found} where {wanted}"), related);
        }
        self.take_mistakes();
        Stop
    }

    /// Reads the items of a file, or of a section, whose brace is at `open`, up to what ends it, which stays.
    fn items(&mut self, open: Option<Span>) -> Vec<Item<'a>> {
        let depth = self.depth;
        let mut items = Vec::new();
        loop {
            let start = self.span.start;
            let read = match &self.token {
                Token::Ident(_) => self.item().map(|item| items.push(item)),
                Token::Close(Bracket::Curly) if open.is_some() => return items,
                Token::End => {
                    if let Some(open) = open {
                        let message = "this `{` is not closed: `}` is missing".to_owned();
                        self.error(open, message, None);
                    }
                    return items;
                }
                Token::Bad => {
                    self.take_mistakes();
                    self.advance();
                    // What else stands on that line goes with it.
                    let gap = &self.text[start..self.span.start];
                    if start == 0 || gap.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
                        continue;
                    }
                    Err(Stop)
                }
                Token::Close(_) => {
                    self.unexpected("none of its kind is open", None);
                    self.advance();
                    continue;
                }
                _ => {
                    Err(self.unexpected("a field (`name: value`) or a section should begin", None))
                }
            };
            if read.is_err() {
                self.pending.clear();
                self.depth = depth;
                let goes = self.recover(start, open.is_some());
                self.open.clear();
                if goes == Goes::Left {
                    return items;
                }
            }
        }
    }

    /// Reads an item; an identifier is there.
    fn item(&mut self) -> Result<Item<'a>, Stop> {
        self.repeated_options = 0;
        let span = self.span;
        let Token::Ident(text) = self.advance() else {
            return Err(Stop);
        };
        let name = Name { text, span };
        let block_name = match &self.token {
            Token::Colon => {
                self.advance();
                let value = self.value()?;
                return Ok(Item::Field(Field { name, value }));
            }
            Token::String(_) => {
                let span = self.span;
                let Token::String(text) = self.advance() else {
                    return Err(Stop);
                };
                Some((text, span))
            }
            _ => None,
        };
        let open = self.span;
        if self.token != Token::Open(Bracket::Curly) {
            let wanted = if block_name.is_some() {
                "the `{` of a section should stand"
            } else {
                "`:` or the `{` of a section should stand"
            };
            return Err(self.unexpected(wanted, None));
        }
        self.deeper()?;
        self.advance();
        let items = self.items(Some(open));
        self.depth -= 1;
        let end = if self.token == Token::Close(Bracket::Curly) {
            self.advance();
            self.previous_end
        } else {
            self.previous_end.min(self.span.start)
        };
        Ok(Item::Block(Block {
            kind: name,
            name: block_name,
            items,
            span: Span::new(span.start, end),
        }))
    }

    /// Counts one level more.
    fn deeper(&mut self) -> Result<(), Stop> {
        if self.depth >= MAX_DEPTH {
            let message = format!("more than {MAX_DEPTH} levels are nested here");
            self.error(self.span, message, None);
            return Err(Stop);
        }
        self.depth += 1;
        Ok(())
    }

    fn value(&mut self) -> Result<Value<'a>, Stop> {
        let first = self.conjunction()?;
        if self.token != Token::Or {
            return Ok(first);
        }
        let mut operands = vec![first];
        while self.token == Token::Or {
            self.advance();
            operands.push(self.conjunction()?);
        }
        Ok(self.since(operands[0].span.start, Kind::Or(operands)))
    }

    fn conjunction(&mut self) -> Result<Value<'a>, Stop> {
        let first = self.prefixed()?;
        if self.token != Token::And {
            return Ok(first);
        }
        let mut operands = vec![first];
        while self.token == Token::And {
            self.advance();
            operands.push(self.prefixed()?);
        }
        Ok(self.since(operands[0].span.start, Kind::And(operands)))
    }

    fn since(&self, start: usize, kind: Kind<'a>) -> Value<'a> {
        let span = Span::new(start, self.previous_end);
        Value { kind, span }
    }

    fn prefixed(&mut self) -> Result<Value<'a>, Stop> {
        let start = self.span.start;
        if let Token::Prefix(operator) = self.token {
            self.deeper()?;
            self.advance();
            let value = self.prefixed();
            self.depth -= 1;
            let kind = Kind::Prefix(operator, Box::new(value?));
            return Ok(self.since(start, kind));
        }
        let mut value = self.primary()?;
        let mut options = 0;
        while self.token == Token::Open(Bracket::Curly) {
            options += 1;
            if options > 1 {
                self.repeated_options += 1;
                if self.repeated_options > MAX_DEPTH {
                    let message = "too many conditions, one behind the other".to_owned();
                    self.error(self.span, message, None);
                    return Err(Stop);
                }
            }
            let conditions = self.values(Bracket::Curly)?;
            value = self.since(start, Kind::Option(Box::new(value), conditions));
        }
        Ok(value)
    }

    fn primary(&mut self) -> Result<Value<'a>, Stop> {
        let start = self.span.start;
        let kind = match self.token {
            Token::Open(Bracket::Square) => Kind::List(self.values(Bracket::Square)?),
            Token::Open(Bracket::Round) => Kind::Group(self.values(Bracket::Round)?),
            Token::Relation(operator) => {
                self.advance();
                Kind::Compare(operator, Box::new(self.atom()?))
            }
            _ => {
                let left = self.atom()?;
                match self.token {
                    Token::Relation(operator) => {
                        self.advance();
                        Kind::Relation(operator, Box::new([left, self.atom()?]))
                    }
                    Token::Env(operator) => {
                        self.advance();
                        Kind::Env(operator, Box::new([left, self.atom()?]))
                    }
                    _ => return Ok(left),
                }
            }
        };
        Ok(self.since(start, kind))
    }

    fn atom(&mut self) -> Result<Value<'a>, Stop> {
        let kind = match &mut self.token {
            Token::Ident(text) => Kind::Ident(text),
            Token::String(text) => Kind::String(std::mem::take(text)),
            Token::Int(value) => Kind::Int(*value),
            Token::Bool(value) => Kind::Bool(*value),
            _ => return Err(self.unexpected("a value should stand", None)),
        };
        let span = self.span;
        self.advance();
        Ok(Value { kind, span })
    }

    /// Reads `value*` between brackets, the opening one of which is there.
    fn values(&mut self, bracket: Bracket) -> Result<Vec<Value<'a>>, Stop> {
        let open = self.span;
        self.deeper()?;
        self.open.push((bracket, open));
        self.advance();
        let before = self.pending.len();
        loop {
            match self.token {
                Token::Close(found) if found == bracket => break,
                Token::End | Token::Close(_) | Token::Colon => {
                    let (_, wanted) = bracket.pair();
                    let message = format!("a value or `{wanted}` should stand");
                    return Err(self.unexpected(&message, Some((open, "this is still open"))));
                }
                _ => {
                    let value = self.value()?;
                    self.pending.push(value);
                }
            }
        }
        self.depth -= 1;
        self.open.pop();
        self.advance();
        Ok(self.pending.drain(before..).collect())
    }

    /// Reads on elsewhere, at the beginning of a line.
    pub(super) fn resume(&mut self, at: usize) {
        self.blame(at);
        self.lexer.go_to(at);
        self.advance();
    }

    /// Says of the last mistake what it really was, if something new began at `line`, before it was noticed: that a bracket is not closed.
    fn blame(&mut self, line: usize) {
        let is_before = |open: &&(Bracket, Span)| open.1.start < line;
        let Some((bracket, open)) = self.open.iter().rev().find(is_before).copied() else {
            return;
        };
        let innermost = self.open.last().map(|(_, span)| *span);
        if let Some(error) = self.errors.last_mut()
            && error.span.start > line
            && error.related.map(|(span, _)| span) == innermost
        {
            let (opening, closing) = bracket.pair();
            let blanks = self.text[line..].iter().take_while(|byte| **byte == b' ');
            let start = line + blanks.count();
            *error = SyntaxError {
                span: open,
                place: place(self.text, open.start),
                message: format!("this `{opening}` is not closed: `{closing}` is missing"),
                related: Some((Span::new(start, start + 1), "something else begins here")),
            };
        }
    }

    /// Notes `opam-version` where it may not be: above 2.0 it must come first, and once (opam-file-format 2.1).
    fn check_versions(&mut self, items: &[Item<'a>]) {
        let version = |item: &Item<'a>| match item {
            Item::Field(field) if field.name.text == "opam-version" => {
                let version = field.value.as_string().map(major_minor)?;
                Some((version, field.name.span))
            }
            _ => None,
        };
        let mut items = items.iter();
        let first = items.next().and_then(version);
        let strict = first.is_some_and(|(version, _)| version >= (2, 1));
        let wrong: Vec<Span> = items
            .filter_map(version)
            .filter(|(version, _)| strict || *version > (2, 0))
            .map(|(_, span)| span)
            .collect();
        for span in wrong {
            let message = if strict {
                "`opam-version` above 2.0 is given once only"
            } else {
                "`opam-version` above 2.0 must be the first field"
            };
            self.error(span, message.to_owned(), None);
        }
    }
}

/// Returns the first two numbers of a version.
fn major_minor(version: &[u8]) -> (u64, u64) {
    let mut parts = version.split(|byte| *byte == b'.').map(|part| {
        let digits = part.iter().take_while(|byte| byte.is_ascii_digit());
        digits.fold(0_u64, |value, digit| {
            value
                .saturating_mul(10)
                .saturating_add(u64::from(digit - b'0'))
        })
    });
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

fn describe(token: &Token<'_>, text: &[u8], span: Span) -> String {
    match token {
        Token::End => "the end of the file".to_owned(),
        Token::String(_) => "a string".to_owned(),
        Token::Ident(name) => format!("the name `{}`", shortened(name)),
        Token::Int(_) => "a number".to_owned(),
        _ => format!("`{}`", text[span.range()].as_bstr()),
    }
}

fn shortened(name: &BStr) -> &BStr {
    name[..name.len().min(60)].as_bstr()
}
