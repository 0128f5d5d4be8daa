// SPDX-License-Identifier: Apache-2.0
//! The Huffman code of header fields (RFC 7541 §5.2 and appendix B).

use super::hpack::Malformed;

/// The longest code.
const LONGEST: usize = 30;
/// The symbol that ends nothing: it must not occur (RFC 7541 §5.2).
const EOS: u16 = 256;

/// How many bits each symbol has (RFC 7541 appendix B). The code is canonical, so that this says it all: shorter codes come first, and
/// among those of one length the smaller symbol.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// The code, as it is read.
struct Code {
    /// For each length, the first number that is past its codes, in the upper bits of 32.
    past: [u64; LONGEST + 1],
    /// For each length, its first code in the upper bits of 32,
    first: [u64; LONGEST + 1],
    /// and where that one's symbol is.
    at: [usize; LONGEST + 1],
    symbols: [u16; 257],
}

static CODE: Code = code();

const fn code() -> Code {
    let mut code = Code {
        past: [0; LONGEST + 1],
        first: [0; LONGEST + 1],
        at: [0; LONGEST + 1],
        symbols: [0; 257],
    };
    let mut next = 0_u64;
    let mut count = 0;
    let mut length = 1;
    while length <= LONGEST {
        code.first[length] = next;
        code.at[length] = count;
        let mut symbol = 0_u16;
        while symbol <= EOS {
            if LENGTHS[symbol as usize] as usize == length {
                code.symbols[count] = symbol;
                count += 1;
                next += 1 << (32 - length);
            }
            symbol += 1;
        }
        code.past[length] = next;
        length += 1;
    }
    code
}

/// Appends what `input` stands for, if that is no more than `room` bytes.
pub(super) fn decode(input: &[u8], into: &mut Vec<u8>, room: usize) -> Result<(), Malformed> {
    let end = into.len() + room;
    let mut input = input.iter();
    // The next bits, from the highest on.
    let mut window = 0_u64;
    let mut bits = 0_usize;
    loop {
        while bits <= 56
            && let Some(byte) = input.next()
        {
            window |= u64::from(*byte) << (56 - bits);
            bits += 8;
        }
        let top = window >> 32;
        let length = (1..=LONGEST).find(|length| top < CODE.past[*length]);
        let length = length.unwrap_or(LONGEST + 1);
        if length > bits {
            // What is left has to be the beginning of EOS, which is ones, and less than a byte (RFC 7541 §5.2).
            let is_padding = bits < 8 && window.leading_ones() as usize >= bits;
            return if is_padding { Ok(()) } else { Err(Malformed) };
        }
        if length > LONGEST || into.len() == end {
            return Err(Malformed);
        }
        let number = (top - CODE.first[length]) >> (32 - length);
        let symbol = usize::try_from(number).map_err(|_| Malformed)? + CODE.at[length];
        into.push(u8::try_from(CODE.symbols[symbol]).map_err(|_| Malformed)?);
        window <<= length;
        bits -= length;
    }
}

#[cfg(test)]
mod tests {
    use super::{CODE, LENGTHS, decode};
    use proptest::prelude::*;

    fn decoded(input: &str) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        let input = hex::decode(input).unwrap();
        decode(&input, &mut text, 100).ok().map(|()| text)
    }

    #[test]
    fn the_examples_of_the_rfc() {
        for (input, text) in [
            ("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com"),
            ("a8eb10649cbf", "no-cache"),
            ("25a849e95ba97d7f", "custom-key"),
            ("25a849e95bb8e8b4bf", "custom-value"),
            ("6402", "302"),
            (
                "d07abe941054d444a8200595040b8166e082a62d1bff",
                "Mon, 21 Oct 2013 20:13:21 GMT",
            ),
            (
                "9d29ad171863c78f0b97c8e9ae82ae43d3",
                "https://www.example.com",
            ),
            ("", ""),
        ] {
            assert_eq!(decoded(input).as_deref(), Some(text.as_bytes()), "{input}");
        }
    }

    #[test]
    fn padding_is_less_than_a_byte_of_ones_and_eos_is_none() {
        // `0` is five zeros.
        assert_eq!(decoded("07").as_deref(), Some(b"0".as_slice()));
        for wrong in ["00", "06", "07ff", "ffffffff", "fffffffc"] {
            assert_eq!(decoded(wrong), None, "{wrong}");
        }
        let mut text = Vec::new();
        assert!(decode(&[0x00, 0x01], &mut text, 2).is_err(), "no room");
    }

    /// The other direction, which the server has no use for.
    fn encode(text: &[u8]) -> Vec<u8> {
        let mut bits = Vec::new();
        for byte in text {
            let length = usize::from(LENGTHS[usize::from(*byte)]);
            let place = CODE
                .symbols
                .iter()
                .position(|symbol| *symbol == u16::from(*byte));
            let number = (place.unwrap() - CODE.at[length]) as u64;
            let code = (CODE.first[length] >> (32 - length)) + number;
            bits.extend((0..length).rev().map(|bit| code >> bit & 1 == 1));
        }
        bits.resize(bits.len().next_multiple_of(8), true);
        let byte = |bits: &[bool]| bits.iter().fold(0, |byte, bit| byte << 1 | u8::from(*bit));
        bits.chunks(8).map(byte).collect()
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(text: Vec<u8>) {
            let mut decoded = Vec::new();
            prop_assert!(decode(&encode(&text), &mut decoded, text.len()).is_ok());
            prop_assert_eq!(decoded, text);
        }

        #[test]
        fn nothing_breaks_it(input: Vec<u8>) {
            let mut decoded = Vec::new();
            let _ = decode(&input, &mut decoded, 20);
            prop_assert!(decoded.len() <= 20);
        }
    }
}
