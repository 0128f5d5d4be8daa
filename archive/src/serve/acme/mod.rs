// SPDX-License-Identifier: Apache-2.0
//! Certificates from an authority that speaks ACME (RFC 8555): ordered when there is none, renewed before they end.
//!
//! It goes on beside the serving and never holds it up. Whatever goes wrong, the certificate that is there stays, and it is tried again later and later. The
//! account's key and the certificate are in files of the archive's own directory that only their owner reads.

mod client;
mod error;
mod keep;
mod order;
mod value;

pub use value::{Authority, Challenge, HostName};

use super::certificate::Pair;
use super::clock::seconds;
use super::metrics::Metrics;
use super::tls::Tls;
use crate::fetch::chain;
use error::OrderError;
use keep::Keep;
use rustls::sign::CertifiedKey;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// The protocol by which an authority asks for a proof over TLS (RFC 8737 §6.2).
pub(super) const PROTOCOL: &[u8] = b"acme-tls/1";
/// Where an authority asks for a proof over HTTP (RFC 8555 §8.3).
pub(super) const WELL_KNOWN: &str = "/.well-known/acme-challenge/";
/// What all of an order may take.
const DEADLINE: Duration = Duration::from_mins(5);
/// The pause after the first failure; twice as long after each further one. Let's Encrypt allows five failed proofs an hour
/// (letsencrypt.org/docs/rate-limits): the sixth comes after that.
const BACK_OFF: Duration = Duration::from_mins(1);
/// The longest pause, but for one that the authority itself asks for.
const LONGEST_BACK_OFF: Duration = Duration::from_hours(6);
/// The longest pause that an authority may ask for.
const LONGEST_ASKED: Duration = Duration::from_hours(48);
/// After a certificate came, the next is not ordered before, however short its life.
const AT_LEAST: Duration = Duration::from_mins(1);
/// The time is looked at again this often: the clock may be set meanwhile.
const LOOK: Duration = Duration::from_mins(10);

/// From whom the certificate comes, and for whom.
#[derive(Clone, Debug)]
pub struct AcmeOptions {
    /// The server's names.
    pub names: Vec<HostName>,
    /// Whom to ask.
    pub authority: Authority,
    /// Where the authority can write to: addresses of mail.
    pub contacts: Vec<String>,
    /// How it is proved that the names are ours.
    pub challenge: Challenge,
}

/// The orders, and how they stand.
pub(super) struct Acme {
    options: AcmeOptions,
    keep: Keep,
    answers: Mutex<Answers>,
    failure: Mutex<Option<String>>,
    next: AtomicU64,
    wanted: Notify,
}

/// What is shown to an authority that asks for a proof.
#[derive(Default)]
struct Answers {
    /// By token.
    http: HashMap<String, String>,
    /// By the server's name.
    tls: HashMap<String, Arc<CertifiedKey>>,
}

impl Acme {
    /// `directory` is the archive's.
    pub(super) fn new(options: AcmeOptions, directory: &Path) -> Self {
        Self {
            keep: Keep::new(directory, &options.authority),
            options,
            answers: Mutex::default(),
            failure: Mutex::default(),
            next: AtomicU64::new(0),
            wanted: Notify::new(),
        }
    }

    /// Returns the file of the certificate and its key, which may not be there yet.
    pub(super) fn file(&self) -> PathBuf {
        self.keep.certificate()
    }

    /// Returns what to answer when an authority asks for this token.
    pub(super) fn http_answer(&self, token: &str) -> Option<String> {
        lock(&self.answers).http.get(token).cloned()
    }

    /// Returns the certificate to show when an authority asks for this name.
    pub(super) fn tls_answer(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let name = name.to_ascii_lowercase();
        lock(&self.answers).tls.get(&name).cloned()
    }

    /// Returns why the last order failed, if it did.
    pub(super) fn failure(&self) -> Option<String> {
        lock(&self.failure).clone()
    }

    /// Returns when the next order is due, in seconds since 1970.
    pub(super) fn next(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Has it looked at once whether a certificate is to be ordered, even if it is not time to try again.
    pub(super) fn ask(&self) {
        self.wanted.notify_one();
    }

    /// Orders certificates for ever, when it is time to.
    pub(super) async fn run(&self, tls: &Tls, metrics: &Metrics) {
        let mut failures = 0;
        loop {
            let due = self.due();
            if due > seconds() {
                self.wait(due).await;
                continue;
            }
            self.next.store(seconds(), Ordering::Relaxed);
            let client = client::Client::new();
            let ordered = tokio::time::timeout(DEADLINE, async {
                let pem = order::order(&self.options, &self.keep, &client, &self.answers).await?;
                self.check(&pem)?;
                self.keep.write_certificate(&pem)
            });
            let result = ordered.await.unwrap_or(Err(OrderError::Deadline(DEADLINE)));
            *lock(&self.answers) = Answers::default();
            Metrics::add(&metrics.orders, 1);
            let pause = if let Ok(()) = &result {
                failures = 0;
                tls.refresh();
                Duration::from_secs(self.due().saturating_sub(seconds())).max(AT_LEAST)
            } else {
                failures += 1;
                Metrics::add(&metrics.orders_failed, 1);
                back_off(failures, client.retry_after())
            };
            *lock(&self.failure) = result.err().map(|error| told(&error));
            let next = seconds() + pause.as_secs();
            if let Some(failure) = self.failure() {
                tracing::error!(failure, again_in = ?pause, "no certificate came");
            }
            // Not before, unless somebody asks; then it is looked at again what is due.
            self.wait(next).await;
        }
    }

    /// Waits until a time comes, or somebody asks.
    async fn wait(&self, until: u64) {
        self.next.store(until, Ordering::Relaxed);
        let asked = self.wanted.notified();
        tokio::pin!(asked);
        while let Some(left) = until.checked_sub(seconds()).filter(|left| *left > 0) {
            let look = Duration::from_secs(left).min(LOOK);
            if tokio::time::timeout(look, &mut asked).await.is_ok() {
                return;
            }
        }
    }

    /// Returns when the next certificate is to be ordered: now, if there is none or one for other names.
    fn due(&self) -> u64 {
        let Ok(text) = fs_err::read(self.file()) else {
            return 0;
        };
        match Pair::parse(&text, &text) {
            Ok(pair) if self.is_for_all(&pair) => renewal(pair.validity.from, pair.validity.until),
            _ => 0,
        }
    }

    /// Judges what an authority sent: it is a program of somebody else's.
    fn check(&self, pem: &str) -> Result<(), OrderError> {
        let pair = Pair::parse(pem.as_bytes(), pem.as_bytes()).map_err(OrderError::Wrong)?;
        if !self.is_for_all(&pair) {
            return Err(OrderError::Names);
        }
        if pair.validity.until <= seconds() {
            return Err(OrderError::Over);
        }
        Ok(())
    }

    fn is_for_all(&self, pair: &Pair) -> bool {
        let mut names = self.options.names.iter();
        names.all(|name| pair.is_for(name.as_str()))
    }
}

/// Returns when a certificate is renewed: when two thirds of its life are over, as the authorities advise (letsencrypt.org/docs/integration-guide).
fn renewal(from: u64, until: u64) -> u64 {
    let life = until.saturating_sub(from);
    from.saturating_add(life - life / 3)
}

/// Returns the pause after so many failures in a row.
fn back_off(failures: u32, asked: Option<Duration>) -> Duration {
    let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
    let ours = BACK_OFF.saturating_mul(doubled).min(LONGEST_BACK_OFF);
    ours.max(asked.unwrap_or_default().min(LONGEST_ASKED))
}

/// Writes an error and its reasons in one line, for the page and the log. What an authority says is cut short.
fn told(error: &OrderError) -> String {
    let text = chain(error);
    match text.char_indices().nth(400) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    fn acme(directory: &Path, names: &[&str]) -> Acme {
        let options = AcmeOptions {
            names: names.iter().map(|name| name.parse().unwrap()).collect(),
            authority: "https://ca.example/dir".parse().unwrap(),
            contacts: Vec::new(),
            challenge: Challenge::Http01,
        };
        Acme::new(options, directory)
    }

    fn pem(names: &[&str], years: (i32, i32)) -> String {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        format!("{}{}", key.serialize_pem(), certificate.pem())
    }

    #[test]
    fn what_an_authority_sends_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let acme = acme(directory.path(), &["a.example", "b.example"]);
        let good = pem(&["a.example", "b.example"], (2000, 4000));
        assert!(acme.check(&good).is_ok());
        let judge = |pem: &str| acme.check(pem).unwrap_err();
        let one = judge(&pem(&["a.example"], (2000, 4000)));
        assert!(matches!(one, OrderError::Names));
        let old = judge(&pem(&["a.example", "b.example"], (2000, 2001)));
        assert!(matches!(old, OrderError::Over));
        // Somebody else's certificate with our key.
        let other = pem(&["a.example", "b.example"], (2000, 4000));
        let chain = &other[other.find("-----BEGIN CERTIFICATE").unwrap()..];
        let key = &good[..good.find("-----BEGIN CERTIFICATE").unwrap()];
        assert!(matches!(
            judge(&format!("{key}{chain}")),
            OrderError::Wrong(_)
        ));
        assert!(matches!(judge("<html>"), OrderError::Wrong(_)));
    }

    #[test]
    fn an_order_is_due_without_a_certificate_for_all_names_and_after_two_thirds_of_its_life() {
        let directory = tempfile::tempdir().unwrap();
        let one = acme(directory.path(), &["a.example"]);
        assert_eq!(one.due(), 0);
        one.keep
            .write_certificate(&pem(&["a.example"], (2000, 2003)))
            .unwrap();
        let years = |count: u64| count * 86_400 * 365;
        assert!((years(31)..years(33)).contains(&one.due()), "2002");
        let two = acme(directory.path(), &["a.example", "b.example"]);
        assert_eq!(two.due(), 0, "the new name is missing");
        fs_err::write(one.file(), "damaged").unwrap();
        assert_eq!(one.due(), 0);
    }

    #[test]
    fn pauses_grow_and_are_as_long_as_an_authority_asks_within_reason() {
        let minutes = |count| Duration::from_mins(count);
        let pauses: Vec<_> = (1..=12).map(|count| back_off(count, None)).collect();
        assert_eq!(pauses[..4], [1, 2, 4, 8].map(minutes));
        assert_eq!(pauses[11], LONGEST_BACK_OFF);
        assert_eq!(back_off(1000, None), LONGEST_BACK_OFF);
        assert_eq!(back_off(1, Some(minutes(90))), minutes(90));
        assert_eq!(back_off(4, Some(minutes(1))), minutes(8));
        assert_eq!(back_off(1, Some(Duration::MAX)), LONGEST_ASKED);
    }
}
