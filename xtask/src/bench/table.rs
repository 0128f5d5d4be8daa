// SPDX-License-Identifier: Apache-2.0
//! Medians, spreads and ratios, as a Markdown table.

use super::measure::Sample;
use std::fmt::Write as _;
use std::time::Duration;

/// The samples of one contestant in one scenario.
pub(crate) struct Row {
    /// Who.
    pub(crate) label: String,
    /// In the order they were taken.
    pub(crate) samples: Vec<Sample>,
    /// Why there are none, or fewer than asked for.
    pub(crate) note: String,
}

/// One scenario's rows, the first being what the others are compared with.
pub(crate) struct Table {
    /// What was done.
    pub(crate) title: String,
    /// By how many steps times are divided.
    pub(crate) per: u32,
    /// The contestants.
    pub(crate) rows: Vec<Row>,
}

impl Row {
    /// Returns the median wall time.
    pub(crate) fn wall(&self) -> Option<Duration> {
        median(self.samples.iter().map(|sample| sample.wall).collect())
    }

    /// Returns the median processor time.
    pub(crate) fn cpu(&self) -> Option<Duration> {
        median(self.samples.iter().map(|sample| sample.cpu).collect())
    }

    /// Returns the highest peak memory in MB.
    pub(crate) fn peak_mb(&self) -> Option<f64> {
        let kib = self.samples.iter().map(|sample| sample.peak_kib).max()?;
        if kib == 0 {
            return None;
        }
        Some(f64::from(u32::try_from(kib).unwrap_or(u32::MAX)) * 1024.0 / 1e6)
    }
}

impl Table {
    /// Returns the row of that contestant.
    pub(crate) fn row(&self, label: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.label == label)
    }

    /// Returns the table as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("## {}\n\n", self.title);
        text.push_str(
            "| builder | runs | wall ms | min–max | cpu ms | peak MB | wall × | cpu × | |\n",
        );
        text.push_str("|---|--:|--:|--:|--:|--:|--:|--:|---|\n");
        let first = self.rows.first();
        for row in &self.rows {
            let walls: Vec<Duration> = row.samples.iter().map(|sample| sample.wall).collect();
            let spread = match (walls.iter().min(), walls.iter().max()) {
                (Some(min), Some(max)) => format!("{}–{}", self.ms(*min), self.ms(*max)),
                _ => String::new(),
            };
            // Where nothing was measured there is no figure.
            let shown = |time: Option<Duration>| {
                time.filter(|time| !time.is_zero())
                    .map_or(String::new(), |time| self.ms(time))
            };
            writeln!(
                text,
                "| {} | {} | {} | {spread} | {} | {} | {} | {} | {} |",
                row.label,
                row.samples.len(),
                shown(row.wall()),
                shown(row.cpu()),
                row.peak_mb()
                    .map_or(String::new(), |peak| format!("{peak:.0}")),
                ratio(row.wall(), first.and_then(Row::wall)),
                ratio(row.cpu(), first.and_then(Row::cpu)),
                row.note,
            )
            .expect("a string takes everything");
        }
        text
    }

    fn ms(&self, time: Duration) -> String {
        let ms = time.as_secs_f64() * 1e3 / f64::from(self.per);
        if ms < 100.0 {
            format!("{ms:.2}")
        } else {
            format!("{ms:.0}")
        }
    }
}

fn ratio(time: Option<Duration>, first: Option<Duration>) -> String {
    match (time, first) {
        (Some(time), Some(first)) if !first.is_zero() => {
            format!("{:.2}", time.as_secs_f64() / first.as_secs_f64())
        }
        _ => String::new(),
    }
}

/// Returns the median; of an even number the mean of the two in the middle.
fn median(mut times: Vec<Duration>) -> Option<Duration> {
    times.sort();
    let upper = *times.get(times.len() / 2)?;
    if times.len() % 2 == 1 {
        return Some(upper);
    }
    Some((times[times.len() / 2 - 1] + upper) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let of = |ms: &[u64]| median(ms.iter().copied().map(Duration::from_millis).collect());
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[3, 1, 2]), Some(Duration::from_millis(2)));
        assert_eq!(of(&[4, 1, 2, 3]), Some(Duration::from_micros(2500)));
    }

    #[test]
    fn ratios_are_against_the_first() {
        let sample = |ms| Sample {
            wall: Duration::from_millis(ms),
            cpu: Duration::from_millis(ms),
            peak_kib: 1000,
        };
        let row = |label: &str, ms| Row {
            label: label.to_owned(),
            samples: vec![sample(ms)],
            note: String::new(),
        };
        let table = Table {
            title: "t".into(),
            per: 10,
            rows: vec![row("a", 20), row("b", 50)],
        };
        let text = table.markdown();
        assert!(
            text.contains("| b | 1 | 5.00 | 5.00–5.00 | 5.00 | 1 | 2.50 | 2.50 |"),
            "{text}"
        );
    }
}
