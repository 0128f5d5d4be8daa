// SPDX-License-Identifier: Apache-2.0
//! What is counted, and how Prometheus reads it.

use super::Shared;
use super::tls::Tls;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters since the start.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// By the first digit of the status, from 2xx on.
    pub(super) responses: [AtomicU64; 4],
    /// By protocol: HTTP/1, HTTP/2.
    pub(super) protocols: [AtomicU64; 2],
    pub(super) sent_bytes: AtomicU64,
    pub(super) accepted: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) evicted: AtomicU64,
    pub(super) timed_out: AtomicU64,
    pub(super) handshakes_failed: AtomicU64,
    pub(super) log_lines_lost: AtomicU64,
    pub(super) hooks: AtomicU64,
    pub(super) hooks_refused: AtomicU64,
    pub(super) updates: AtomicU64,
    pub(super) updates_failed: AtomicU64,
    pub(super) orders: AtomicU64,
    pub(super) orders_failed: AtomicU64,
}

impl Metrics {
    pub(super) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn response(&self, status: u16, protocol: usize, sent_bytes: u64) {
        let class = usize::from(status / 100).clamp(2, 5) - 2;
        Self::add(&self.responses[class], 1);
        Self::add(&self.protocols[protocol], 1);
        Self::add(&self.sent_bytes, sent_bytes);
    }

    /// Returns how many requests were answered.
    pub(super) fn requests(&self) -> u64 {
        let classes = self.responses.iter();
        classes.map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

/// Renders the counters in the text format of Prometheus, version 0.0.4.
pub(super) fn render(shared: &Shared) -> String {
    let metrics = &shared.metrics;
    let mut text = String::with_capacity(4096);
    let mut family = |name: &str, kind: &str, help: &str, samples: &[(&str, u64)]| {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "# HELP obuild_{name} {help}\n# TYPE obuild_{name} {kind}"
        );
        for (labels, value) in samples {
            let _ = writeln!(text, "obuild_{name}{labels} {value}");
        }
    };
    let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let classes = ["2xx", "3xx", "4xx", "5xx"].map(|class| format!("{{class=\"{class}\"}}"));
    let responses: Vec<_> = classes
        .iter()
        .zip(&metrics.responses)
        .map(|(labels, count)| (labels.as_str(), value(count)))
        .collect();
    family(
        "http_responses_total",
        "counter",
        "Responses by class of status.",
        &responses,
    );
    family(
        "http_requests_total",
        "counter",
        "Requests by protocol.",
        &[
            ("{protocol=\"http1\"}", value(&metrics.protocols[0])),
            ("{protocol=\"http2\"}", value(&metrics.protocols[1])),
        ],
    );
    let counters = [
        (
            "http_sent_bytes_total",
            "Bytes of bodies that were sent.",
            &metrics.sent_bytes,
        ),
        (
            "connections_accepted_total",
            "Connections that came in.",
            &metrics.accepted,
        ),
        (
            "connections_refused_total",
            "Connections that found no room.",
            &metrics.refused,
        ),
        (
            "connections_evicted_total",
            "Idle connections that made room.",
            &metrics.evicted,
        ),
        (
            "connections_timed_out_total",
            "Connections that took too long.",
            &metrics.timed_out,
        ),
        (
            "tls_handshakes_failed_total",
            "TLS handshakes that failed.",
            &metrics.handshakes_failed,
        ),
        (
            "access_log_lost_total",
            "Lines that the log could not take.",
            &metrics.log_lines_lost,
        ),
        (
            "hooks_total",
            "Hooks with a good signature.",
            &metrics.hooks,
        ),
        (
            "hooks_refused_total",
            "Hooks without one.",
            &metrics.hooks_refused,
        ),
        ("updates_total", "Updates that were run.", &metrics.updates),
        (
            "updates_failed_total",
            "Updates that failed.",
            &metrics.updates_failed,
        ),
        (
            "acme_orders_total",
            "Certificates that were ordered.",
            &metrics.orders,
        ),
        (
            "acme_orders_failed_total",
            "Orders that failed.",
            &metrics.orders_failed,
        ),
    ];
    for (name, help, counter) in counters {
        family(name, "counter", help, &[("", value(counter))]);
    }
    let gauges = [
        (
            "connections_open",
            "Connections that are open.",
            shared.table.open() as u64,
        ),
        (
            "update_running",
            "Whether an update is going on.",
            u64::from(shared.updates.running()),
        ),
        (
            "update_last_success_timestamp_seconds",
            "When an update last succeeded, 0 for never.",
            shared.updates.last_success(),
        ),
        (
            "tls_certificate_expiry_timestamp_seconds",
            "Until when the certificate is good, 0 for none.",
            shared.tls.as_ref().and_then(Tls::expiry).unwrap_or(0),
        ),
        (
            "acme_next_order_timestamp_seconds",
            "When the next certificate is ordered, 0 for never.",
            shared.acme.as_ref().map_or(0, |acme| acme.next()),
        ),
        (
            "start_timestamp_seconds",
            "When the server was started.",
            shared.started,
        ),
    ];
    for (name, help, gauge) in gauges {
        family(name, "gauge", help, &[("", gauge)]);
    }
    text
}
