// SPDX-License-Identifier: Apache-2.0
//! Cache names as file names.

use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;

/// Longer ones are cut and hashed: the name must leave room for an owner and a number in 255 bytes (`NAME_MAX`).
const LONGEST: usize = 180;

/// Returns the directory name of a cache: `c-`, then the name with each byte outside `[A-Za-z0-9._-]` as `%` and two
/// hexadecimal digits (OBuilder `lib/escape.ml`, which does not pad them, so that two names could meet).
pub(super) fn encode(name: &[u8]) -> String {
    let mut encoded = String::from("c-");
    for byte in name {
        if byte.is_ascii_alphanumeric() || b"._-".contains(byte) {
            encoded.push(char::from(*byte));
        } else {
            write!(encoded, "%{byte:02x}").expect("a string takes all");
        }
    }
    if encoded.len() > LONGEST {
        encoded.truncate(LONGEST - 65);
        // A sign that no encoded name has, so that none can look like a cut one.
        write!(encoded, "+{}", hex::encode(Sha256::digest(name))).expect("a string takes all");
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::encode;
    use std::collections::HashSet;

    #[test]
    fn names_become_safe_file_names() {
        assert_eq!(encode(b"opam-archives"), "c-opam-archives");
        assert_eq!(encode(b"../../etc"), "c-..%2f..%2fetc");
        assert_eq!(encode(b".."), "c-..");
        assert_eq!(encode(b""), "c-");
        assert_eq!(encode(b"a%2fb"), "c-a%252fb");
        assert_eq!(encode(b"\x00\n\xff"), "c-%00%0a%ff");
    }

    #[test]
    fn no_two_names_meet() {
        let long = |last: &str| format!("{}{last}", "x".repeat(300)).into_bytes();
        let cut = encode(&long("a"));
        let names = [
            &b"\x01"[..],
            b"%1",
            b"%01",
            b"1",
            &long("a"),
            &long("b"),
            &cut.as_bytes()[2..],
        ];
        let encoded: HashSet<String> = names.iter().map(|name| encode(name)).collect();
        assert_eq!(encoded.len(), names.len());
        assert!(encoded.iter().all(|name| name.len() <= super::LONGEST));
    }
}
