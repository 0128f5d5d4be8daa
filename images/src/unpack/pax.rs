// SPDX-License-Identifier: Apache-2.0
//! Records of PAX extended headers (POSIX.1-2017, pax, "pax Extended Header").
//!
//! Read by their length field: values of extended attributes are binary and may hold line feeds.

use super::archive::Extent;

/// The prefix of extended attributes, as star, GNU tar, bsdtar and the OCI layer format write them.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// What the records of one entry say.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: SparseRecords,
}

/// The `GNU.sparse.*` records: GNU tar manual, "Storing Sparse Files", formats 0.0, 0.1 and 1.0.
#[derive(Debug, Default)]
pub(super) struct SparseRecords {
    pub(super) major: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    pub(super) map: Vec<Extent>,
    pub(super) present: bool,
    offset: Option<u64>,
}

/// Parses the records; the error says what is wrong.
pub(super) fn parse(mut data: &[u8]) -> Result<Pax, String> {
    let mut pax = Pax::default();
    // Some writers pad the data with zeros.
    while data.first().is_some_and(|&byte| byte != 0) {
        let (key, value, rest) = record(data).ok_or("a PAX record does not parse")?;
        data = rest;
        take(&mut pax, key, value)?;
    }
    Ok(pax)
}

/// Splits `"LENGTH KEY=VALUE\n"` off; the length counts the whole record.
fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(20).position(|&byte| byte == b' ')?;
    let length = usize::try_from(decimal(&data[..space])?).ok()?;
    let record = data.get(space + 1..length)?;
    let (&last, record) = record.split_last()?;
    let equals = record.iter().position(|&byte| byte == b'=')?;
    (last == b'\n' && equals > 0)
        .then(|| (&record[..equals], &record[equals + 1..], &data[length..]))
}

fn take(pax: &mut Pax, key: &[u8], value: &[u8]) -> Result<(), String> {
    let bad = || format!("the PAX record {:?} has a bad value", bstr::BStr::new(key));
    let number = || decimal(value).ok_or_else(bad);
    match key {
        // An empty value takes the record back (POSIX.1-2017, pax).
        b"path" => pax.path = text(value).ok_or_else(bad)?,
        b"linkpath" => pax.link = text(value).ok_or_else(bad)?,
        b"size" => pax.size = Some(number()?),
        b"uid" => pax.uid = Some(number()?),
        b"gid" => pax.gid = Some(number()?),
        b"mtime" => pax.mtime = Some(time(value).ok_or_else(bad)?),
        b"GNU.sparse.major" => pax.sparse.major = Some(number()?),
        b"GNU.sparse.name" => pax.sparse.name = text(value).ok_or_else(bad)?,
        b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
            pax.sparse.present = true;
            pax.sparse.real_size = Some(number()?);
        }
        b"GNU.sparse.offset" => pax.sparse.offset = Some(number()?),
        b"GNU.sparse.numbytes" => {
            let offset = pax.sparse.offset.take().ok_or_else(bad)?;
            let length = number()?;
            pax.sparse.map.push(Extent { offset, length });
        }
        b"GNU.sparse.map" => {
            pax.sparse.map.clear();
            let mut numbers = value.split(|&byte| byte == b',').map(decimal);
            while let Some(offset) = numbers.next() {
                let (Some(offset), Some(Some(length))) = (offset, numbers.next()) else {
                    return Err(bad());
                };
                pax.sparse.map.push(Extent { offset, length });
            }
        }
        _ => {
            if let Some(name) = key.strip_prefix(XATTR) {
                if name.is_empty() || name.contains(&0) {
                    return Err(bad());
                }
                pax.xattrs.push((name.to_vec(), value.to_vec()));
            }
        }
    }
    Ok(())
}

/// A name: no NUL inside; empty means that there is none.
#[expect(
    clippy::option_option,
    reason = "the outer one is the error, the inner one the value"
)]
fn text(value: &[u8]) -> Option<Option<Vec<u8>>> {
    (!value.contains(&0)).then(|| (!value.is_empty()).then(|| value.to_vec()))
}

/// Parses an unsigned decimal number without sign or blanks.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

/// Parses seconds with an optional sign and fraction into seconds and nanoseconds.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.split_first()? {
        (b'-', rest) => (true, rest),
        _ => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|&byte| byte == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &b""[..]),
    };
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    let mut nanoseconds = 0;
    for place in 0..9 {
        let digit = fraction.get(place).copied().unwrap_or(b'0');
        nanoseconds = nanoseconds * 10 + digit.is_ascii_digit().then(|| u32::from(digit - b'0'))?;
    }
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::{parse, time};

    #[test]
    fn values_may_hold_line_feeds_and_zeros() {
        let pax =
            parse(b"40 SCHILY.xattr.security.capability=\n\0\n\n12 path=a=b\n").expect("parses");
        let attribute = (b"security.capability".to_vec(), b"\n\0\n".to_vec());
        assert_eq!(pax.xattrs, [attribute]);
        assert_eq!(pax.path.as_deref(), Some(&b"a=b"[..]));
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        for data in [
            "5 path=a\n",
            "999 path=a\n",
            "0 path=a\n",
            "x path=a\n",
            "9 patha\n\n",
            "10 path=ab",
        ] {
            assert!(parse(data.as_bytes()).is_err(), "{data:?}");
        }
    }

    #[test]
    fn times_before_the_epoch_count_down() {
        assert_eq!(
            time(b"1700000000.123456789123"),
            Some((1_700_000_000, 123_456_789))
        );
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"12"), Some((12, 0)));
        assert_eq!(time(b"1.x"), None);
        assert_eq!(time(b""), None);
    }
}
