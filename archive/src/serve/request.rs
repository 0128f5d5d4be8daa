// SPDX-License-Identifier: Apache-2.0
//! A request as the rest of the server sees it, whichever protocol it came by.

/// The methods that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Head,
    Post,
    Other,
}

impl Method {
    /// Methods are case-sensitive (RFC 9110 §9.1).
    pub(super) fn from_verb(verb: &str) -> Self {
        match verb {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "POST" => Self::Post,
            _ => Self::Other,
        }
    }
}

/// The protocol that a request came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Http10,
    Http11,
    Http2,
}

impl Version {
    /// Returns the name, as in an access log.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2.0",
        }
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) method: Method,
    /// Path and query, still percent-encoded.
    pub(super) target: &'a str,
    pub(super) fields: Fields<'a>,
}

impl Request<'_> {
    /// Returns the target without its query.
    pub(super) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }
}

/// The header fields that matter for what is answered. Of a repeated one the first counts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fields<'a> {
    pub(super) if_match: Option<&'a [u8]>,
    pub(super) if_none_match: Option<&'a [u8]>,
    pub(super) if_modified_since: Option<&'a [u8]>,
    pub(super) if_unmodified_since: Option<&'a [u8]>,
    pub(super) if_range: Option<&'a [u8]>,
    pub(super) range: Option<&'a [u8]>,
    pub(super) referer: Option<&'a [u8]>,
    pub(super) user_agent: Option<&'a [u8]>,
    pub(super) signature: Option<&'a [u8]>,
    pub(super) event: Option<&'a [u8]>,
}

impl<'a> Fields<'a> {
    /// Keeps the field if it is one that matters.
    pub(super) fn take(&mut self, name: &str, value: &'a [u8]) {
        // The length first: most fields of most requests end there.
        let place = match name.len() {
            5 if name.eq_ignore_ascii_case("range") => &mut self.range,
            7 if name.eq_ignore_ascii_case("referer") => &mut self.referer,
            8 if name.eq_ignore_ascii_case("if-match") => &mut self.if_match,
            8 if name.eq_ignore_ascii_case("if-range") => &mut self.if_range,
            10 if name.eq_ignore_ascii_case("user-agent") => &mut self.user_agent,
            13 if name.eq_ignore_ascii_case("if-none-match") => &mut self.if_none_match,
            14 if name.eq_ignore_ascii_case("x-github-event") => &mut self.event,
            17 if name.eq_ignore_ascii_case("if-modified-since") => &mut self.if_modified_since,
            19 if name.eq_ignore_ascii_case("if-unmodified-since") => &mut self.if_unmodified_since,
            19 if name.eq_ignore_ascii_case("x-hub-signature-256") => &mut self.signature,
            _ => return,
        };
        place.get_or_insert(value);
    }
}

#[cfg(test)]
mod tests {
    use super::Fields;

    #[test]
    fn the_first_of_a_field_counts_in_any_case() {
        let mut fields = Fields::default();
        fields.take("IF-None-match", b"\"a\"");
        fields.take("if-none-match", b"\"b\"");
        fields.take("if-none-matcx", b"\"c\"");
        assert_eq!(fields.if_none_match, Some(b"\"a\"".as_slice()));
    }
}
