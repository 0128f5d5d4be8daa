// SPDX-License-Identifier: Apache-2.0
//! The ids that a user may give out: `/etc/subuid` and `/etc/subgid`, subuid(5).

use crate::mapping::Extent;

/// The kernel takes 340 extents: `user_namespaces(7)`. No user has nearly as many.
const MOST: usize = 300;

/// Returns the map of a user: its own id as root's, and its ranges after that; `None` when it has no range.
pub(crate) fn map(file: &str, name: Option<&str>, uid: u32, own: u32) -> Option<Vec<Extent>> {
    let number = uid.to_string();
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for line in file.lines() {
        let mut fields = line.trim().split(':');
        let (Some(user), Some(Ok(first)), Some(Ok(count)), None) = (
            fields.next(),
            fields.next().map(str::parse::<u32>),
            fields.next().map(str::parse::<u32>),
            fields.next(),
        ) else {
            continue;
        };
        let range = (first, count);
        if (user == number || Some(user) == name) && count > 0 && !ranges.contains(&range) {
            ranges.push(range);
        }
    }
    if ranges.is_empty() {
        return None;
    }
    let mut extents = vec![Extent {
        inside: 0,
        outside: own,
        count: 1,
    }];
    let mut inside = 1_u32;
    for (outside, count) in ranges.into_iter().take(MOST) {
        extents.push(Extent {
            inside,
            outside,
            count,
        });
        inside = inside.checked_add(count)?;
    }
    Some(extents)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(inside: u32, outside: u32, count: u32) -> Extent {
        Extent {
            inside,
            outside,
            count,
        }
    }

    #[test]
    fn ranges_follow_the_users_own_id() {
        let file =
            "other:1:2\nme:100000:65536\n# me:5:5\n1000:300000:10\nme:100000:65536\nme:x:1\n";
        assert_eq!(
            map(file, Some("me"), 1000, 1001),
            Some(vec![
                extent(0, 1001, 1),
                extent(1, 100_000, 65536),
                extent(65537, 300_000, 10)
            ])
        );
        assert_eq!(map(file, None, 1000, 1000).map(|map| map.len()), Some(2));
    }

    #[test]
    fn without_a_range_there_is_no_map() {
        assert_eq!(map("me:1:0\nme\nme:1:2:3\n", Some("me"), 1000, 1000), None);
        assert_eq!(
            map("me:1:4294967295\nme:7:9\n", Some("me"), 1000, 1000),
            None
        );
    }
}
