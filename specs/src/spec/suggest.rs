// SPDX-License-Identifier: Apache-2.0
//! "Did you mean": the nearest of some names.

/// Longer names are not compared: nobody mistypes them, and the comparison is quadratic in the length.
const LONGEST: usize = 64;
/// How many single-character changes apart a suggestion may be.
const FARTHEST: usize = 2;

/// Returns the candidate nearest to `name`, if one is near enough to be meant.
pub(crate) fn nearest<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let name: Vec<char> = name.chars().take(LONGEST + 1).collect();
    candidates
        .into_iter()
        .filter_map(|candidate| {
            let length = candidate.chars().count();
            if name.len().max(length) > LONGEST || name.len().abs_diff(length) > FARTHEST {
                return None;
            }
            let distance = distance(&name, &candidate.chars().collect::<Vec<_>>());
            // A name that would change altogether is not a slip of the finger.
            (distance <= FARTHEST && distance < length.max(name.len()))
                .then_some((distance, candidate))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Returns a help line that suggests the nearest candidate.
pub(crate) fn did_you_mean<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    nearest(name, candidates).map(|nearest| format!("did you mean `{nearest}`?"))
}

/// Counts insertions, deletions, substitutions and swaps of neighbours between two names (Damerau and
/// Levenshtein's distance in its "optimal string alignment" form).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before = vec![0; b.len() + 1];
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            row[j] = (above[j] + 1)
                .min(row[j - 1] + 1)
                .min(above[j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_slips_only() {
        let ops = ["comment", "workdir", "shell", "run", "copy", "user", "env"];
        for (name, expected) in [
            ("rnu", Some("run")),
            ("Run", Some("run")),
            ("cpoy", Some("copy")),
            ("shel", Some("shell")),
            ("enviroment", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, ops), expected, "{name}");
        }
        assert_eq!(nearest(&"a".repeat(70), [&*"a".repeat(71)]), None);
    }

    #[test]
    fn a_swap_counts_once() {
        let chars = |text: &str| text.chars().collect::<Vec<_>>();
        assert_eq!(distance(&chars("abcd"), &chars("abdc")), 1);
        assert_eq!(distance(&chars(""), &chars("abc")), 3);
        assert_eq!(distance(&chars("kitten"), &chars("sitting")), 3);
    }
}
