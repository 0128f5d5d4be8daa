// SPDX-License-Identifier: Apache-2.0
//! Hooks as GitHub sends them: `X-Hub-Signature-256: sha256=…`, the HMAC of the body under a secret that both sides know
//! (docs.github.com, "Validating webhook deliveries"). Forgejo and Gitea send the same field.

use super::metrics::Metrics;
use super::request::Request;
use super::respond::Response;
use super::worker::Worker;
use ring::hmac;

/// GitHub sends no more (docs.github.com, "Webhook events and payloads": 25 MB).
pub(super) const MAX_BYTES: u64 = 25 << 20;

/// The secret of hooks.
pub struct HookSecret(hmac::Key);

impl HookSecret {
    /// Makes a secret of its text; white space at the ends, such as a file's last line end, does not belong to it. `None` if nothing is left.
    pub fn new(text: &[u8]) -> Option<Self> {
        let text = text.trim_ascii();
        (!text.is_empty()).then(|| Self(hmac::Key::new(hmac::HMAC_SHA256, text)))
    }
}

impl std::fmt::Debug for HookSecret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("HookSecret")
    }
}

/// A hook whose body is coming in. It is not kept: only the signature and the event matter.
pub(super) struct Hook {
    context: hmac::Context,
    expected: Vec<u8>,
    event: Option<Vec<u8>>,
}

impl Hook {
    /// Begins with a request's header; `None` when no hooks are configured.
    pub(super) fn begin(worker: &Worker, request: &Request<'_>) -> Option<Self> {
        let secret = worker.shared.hook.as_ref()?;
        let fields = &request.fields;
        Some(Self {
            context: hmac::Context::with_key(&secret.0),
            expected: fields
                .signature
                .and_then(|field| field.trim_ascii().strip_prefix(b"sha256="))
                .and_then(|digits| hex::decode(digits).ok())
                .unwrap_or_default(),
            event: fields.event.map(<[u8]>::to_vec),
        })
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }

    /// Answers, and asks for an update if the signature is good.
    pub(super) fn finish(self, worker: &Worker) -> Response {
        let shared = &worker.shared;
        let Some(secret) = &shared.hook else {
            return Response::status(404);
        };
        let tag = self.context.sign();
        // Their own HMACs are compared, in constant time: how much of a guess is right must not show.
        let expected = hmac::sign(&secret.0, &self.expected);
        if hmac::verify(&secret.0, tag.as_ref(), expected.as_ref()).is_err() {
            Metrics::add(&shared.metrics.hooks_refused, 1);
            return Response::text(403, "the signature is not right");
        }
        Metrics::add(&shared.metrics.hooks, 1);
        match self.event.as_deref() {
            Some(b"push") | None => {
                shared.updates.ask();
                Response::text(202, "an update is on its way")
            }
            Some(b"ping") => Response::text(200, "pong"),
            Some(_) => Response::text(200, "nothing to do for this event"),
        }
    }
}
