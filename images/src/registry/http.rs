// SPDX-License-Identifier: Apache-2.0
//! Requests to registries: connections, authorization, redirections, and trying again.
//!
//! Sources: OCI distribution-spec v1.1; RFC 9110 for redirections and `Retry-After`.

use super::answer::{
    Fetched, MAX_WORDS, authority, broken, cut, is_passing, message, read, shown, status_error,
    words,
};
use super::auth::{
    Auth, Challenge, TokenRequest, encode, is_allowed_realm, is_plain, parse_challenges,
    parse_token,
};
use super::connect::connect;
use super::credentials::Credentials;
use super::name::api_host;
use super::retry::{Failure, Retry, parse_retry_after};
use super::{ClientOptions, Error};
use bytes::Bytes;
use reqwest::header::{
    AUTHORIZATION, CONTENT_TYPE, HeaderName, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE,
};
use reqwest::{Body, Method, Response, StatusCode, Url};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

/// Redirections that are followed for one request.
const MAX_REDIRECTIONS: usize = 10;

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    /// The registry, as names have it: credentials are for it alone.
    pub(super) host: String,
    /// A path from `/v2/` on, or a whole address that the registry gave.
    pub(super) address: String,
    /// What a token has to allow.
    pub(super) scopes: Vec<String>,
    pub(super) headers: Vec<(HeaderName, String)>,
    pub(super) body: Bytes,
    /// What is asked for, for messages.
    pub(super) what: String,
}

impl Call {
    pub(super) fn new(method: Method, host: &str, address: impl Into<String>) -> Self {
        Self {
            method,
            host: host.to_owned(),
            address: address.into(),
            scopes: Vec::new(),
            headers: Vec::new(),
            body: Bytes::new(),
            what: String::new(),
        }
    }

    pub(super) fn scope(mut self, repository: &str, actions: &str) -> Self {
        self.scopes
            .push(format!("repository:{repository}:{actions}"));
        self
    }

    pub(super) fn header(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn what(mut self, what: impl Into<String>) -> Self {
        self.what = what.into();
        self
    }
}

/// Connections to hosts, and what is known of them.
pub(super) struct Transport {
    pub(super) options: ClientOptions,
    clients: Mutex<HashMap<(String, bool), reqwest::Client>>,
    auth: Arc<Auth>,
    requests: AtomicU64,
}

impl Transport {
    pub(super) fn new(options: ClientOptions) -> Self {
        Self {
            options,
            clients: Mutex::default(),
            auth: Arc::default(),
            requests: AtomicU64::new(0),
        }
    }

    /// Returns how many requests were sent so far.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    fn is_plain(&self, host: &str) -> bool {
        is_plain(host, self.options.hosts.get(host))
    }

    /// Returns the address of a registry's API.
    fn base(&self, host: &str) -> Result<Url, Error> {
        let scheme = if self.is_plain(host) { "http" } else { "https" };
        Url::parse(&format!("{scheme}://{}", api_host(host))).map_err(|error| Error::Setup {
            host: host.to_owned(),
            reason: error.to_string(),
        })
    }

    /// Returns the whole address of a path, or of what a registry said in `Location`.
    pub(super) fn url(&self, host: &str, address: &str) -> Result<Url, Error> {
        let base = self.base(host)?;
        base.join(address).map_err(|error| Error::Redirect {
            url: shown(&base),
            what: format!("names an address that is none ({error})"),
        })
    }

    /// Sends a request until there is a whole answer of no more than `limit` bytes.
    pub(super) async fn fetch(&self, call: &Call, limit: usize) -> Result<Fetched, Error> {
        let mut retry = Retry::default();
        loop {
            let fetched = self.once(call, limit).await;
            match fetched {
                Ok(fetched) => return Ok(fetched),
                Err(failure) => retry.pause(failure).await?,
            }
        }
    }

    /// Sends a request once, and reads the answer.
    pub(super) async fn once(&self, call: &Call, limit: usize) -> Result<Fetched, Failure> {
        let response = self.attempt(call, None).await?;
        read(call, response, limit).await
    }

    /// Sends a request with a body that can be sent only once, and reads the answer.
    pub(super) async fn once_with(
        &self,
        call: &Call,
        body: Body,
        limit: usize,
    ) -> Result<Fetched, Failure> {
        let response = self.attempt(call, Some(body)).await?;
        read(call, response, limit).await
    }

    /// Sends a request once, answering a challenge and following redirections. `body` goes instead of the call's own, and only once.
    pub(super) async fn attempt(
        &self,
        call: &Call,
        mut body: Option<Body>,
    ) -> Result<Response, Failure> {
        let home = self.base(&call.host)?;
        let mut url = self.url(&call.host, &call.address)?;
        let mut visited = Vec::new();
        let mut challenged = false;
        let streams = body.is_some();
        loop {
            let at_home = url.origin() == home.origin();
            let client = self.client(&url, streams)?;
            let mut request = client.request(call.method.clone(), url.clone());
            for (name, value) in &call.headers {
                request = request.header(name, value);
            }
            request = match body.take() {
                Some(body) => request.body(body),
                None if call.body.is_empty() => request,
                None => request.body(call.body.clone()),
            };
            let scopes = call.scopes.join(" ");
            let sent = at_home
                .then(|| self.auth.header(&call.host, &scopes))
                .flatten();
            if let Some(value) = &sent {
                request = request.header(AUTHORIZATION, value);
            }
            self.requests.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(method = %call.method, url = %shown(&url), "request");
            let response = request
                .send()
                .await
                .map_err(|error| broken(&call.method, &url, &error))?;
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED && at_home && !challenged {
                challenged = true;
                self.answer(call, &scopes, sent.as_deref(), response)
                    .await?;
                if streams {
                    // The body is spent: the caller begins again, with the new token.
                    return Err(Failure::transient(cut(
                        &call.method,
                        &url,
                        1,
                        "the token had run out",
                    )));
                }
                continue;
            }
            let follows = matches!(call.method, Method::GET | Method::HEAD);
            if status.is_redirection() && follows && status != StatusCode::NOT_MODIFIED {
                visited.push(url.clone());
                url = self.next(&url, &response, &visited)?;
                continue;
            }
            if is_passing(status) {
                let after = response
                    .headers()
                    .get(RETRY_AFTER)
                    .and_then(|value| parse_retry_after(value.to_str().ok()?, SystemTime::now()));
                let error = status_error(call, response).await;
                return Err(Failure::Transient { error, after });
            }
            return Ok(response);
        }
    }

    /// Finds out where a redirection leads.
    fn next(&self, url: &Url, response: &Response, visited: &[Url]) -> Result<Url, Error> {
        let wrong = |what: String| Error::Redirect {
            url: shown(url),
            what,
        };
        let target = response
            .headers()
            .get(LOCATION)
            .and_then(|value| value.to_str().ok());
        let target = target.ok_or_else(|| wrong("redirects to nowhere".to_owned()))?;
        let next = url
            .join(target)
            .map_err(|error| wrong(format!("redirects to an address that is none ({error})")))?;
        if visited.contains(&next) || visited.len() > MAX_REDIRECTIONS {
            return Err(wrong(format!(
                "redirects in a circle, or more than {MAX_REDIRECTIONS} times"
            )));
        }
        let plain = next
            .host_str()
            .is_some_and(|_| self.is_plain(&authority(&next)));
        match next.scheme() {
            "https" => Ok(next),
            "http" if url.scheme() == "http" || plain => Ok(next),
            scheme => Err(wrong(format!("redirects away from TLS, to {scheme}"))),
        }
    }

    /// Answers a challenge: gets a token, or remembers that the password itself is wanted.
    async fn answer(
        &self,
        call: &Call,
        scopes: &str,
        refused: Option<&str>,
        response: Response,
    ) -> Result<(), Failure> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE);
        let challenge = parse_challenges(headers.iter().filter_map(|value| value.to_str().ok()));
        let message = words(response).await;
        let _one = self.auth.fetching.lock().await;
        // Somebody else has answered meanwhile.
        if let Some(now) = self.auth.header(&call.host, scopes)
            && Some(now.as_str()) != refused
        {
            return Ok(());
        }
        let credentials = self.credentials(&call.host).await?;
        let unauthorized = |message: String| Error::Unauthorized {
            host: call.host.clone(),
            what: call.what.clone(),
            message,
            with_credentials: credentials.is_some(),
        };
        match (challenge, &credentials) {
            (Some(Challenge::Basic), Some(Credentials::Password { user, password })) => {
                let value = Credentials::basic(user, password);
                if refused == Some(&value) {
                    return Err(unauthorized(message).into());
                }
                self.auth.set(&call.host, "", value, None);
                Ok(())
            }
            (
                Some(Challenge::Bearer {
                    realm,
                    service,
                    scope,
                }),
                credentials,
            ) => {
                if !is_allowed_realm(&realm, self.is_plain(&call.host)) {
                    let what = format!("asks for credentials without TLS, at {realm}");
                    return Err(Error::Redirect {
                        url: call.host.clone(),
                        what,
                    }
                    .into());
                }
                let mut wanted: Vec<&str> = call.scopes.iter().map(String::as_str).collect();
                if wanted.is_empty() {
                    wanted.extend(scope.as_deref());
                }
                let request =
                    TokenRequest::new(&realm, service.as_deref(), &wanted, credentials.as_ref());
                let (token, life) = self.token(call, &request, credentials.is_some()).await?;
                self.auth
                    .set(&call.host, scopes, format!("Bearer {token}"), Some(life));
                Ok(())
            }
            _ => Err(unauthorized(message).into()),
        }
    }

    async fn credentials(&self, host: &str) -> Result<Option<Credentials>, Error> {
        let (auth, host) = (Arc::clone(&self.auth), host.to_owned());
        let (file, path) = (
            self.options.credentials.clone(),
            self.options.search_path.clone(),
        );
        // A helper is a program that may ask the user.
        tokio::task::spawn_blocking(move || auth.credentials(file.as_ref(), &path, &host))
            .await
            .unwrap_or(Err(Error::Cancelled))
    }

    async fn token(
        &self,
        call: &Call,
        request: &TokenRequest,
        with_credentials: bool,
    ) -> Result<(String, Duration), Failure> {
        let url = Url::parse(&request.url).map_err(|error| Error::Redirect {
            url: call.host.clone(),
            what: format!("names an address for tokens that is none ({error})"),
        })?;
        let client = self.client(&url, false)?;
        let method = if request.form.is_some() {
            Method::POST
        } else {
            Method::GET
        };
        let mut built = client.request(method.clone(), url.clone());
        if let Some(form) = &request.form {
            let kind = "application/x-www-form-urlencoded";
            built = built.header(CONTENT_TYPE, kind).body(form.clone());
        }
        if let Some(value) = &request.authorization {
            built = built.header(AUTHORIZATION, value);
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        let response = built
            .send()
            .await
            .map_err(|error| broken(&method, &url, &error))?;
        let token_call = Call {
            method,
            ..call.clone()
        };
        let status = response.status();
        if is_passing(status) {
            let error = status_error(&token_call, response).await;
            return Err(Failure::transient(error));
        }
        let fetched = read(&token_call, response, MAX_WORDS).await?;
        if !status.is_success() {
            let message = message(&fetched.body);
            return Err(match status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::Unauthorized {
                    host: authority(&url),
                    what: call.what.clone(),
                    message,
                    with_credentials,
                },
                _ => Error::Status {
                    method: token_call.method.to_string(),
                    url: shown(&url),
                    status: status.to_string(),
                    message,
                },
            }
            .into());
        }
        let parsed = parse_token(&fetched.body);
        parsed.ok_or_else(|| {
            Failure::Final(Error::Lied {
                url: shown(&url),
                what: "it has no token".to_owned(),
            })
        })
    }

    /// Returns the client for an address; `streams` are requests whose body may take long.
    fn client(&self, url: &Url, streams: bool) -> Result<reqwest::Client, Error> {
        let authority = authority(url);
        let key = (format!("{}://{authority}", url.scheme()), streams);
        let mut clients = self.clients.lock().expect("no holder of this lock panics");
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let client = connect(&self.options, url, streams)?;
        clients.insert(key, client.clone());
        Ok(client)
    }
}

/// Puts parameters behind an address that may have some.
pub(super) fn with_query(address: &str, parameters: &[(&str, &str)]) -> String {
    let separator = if address.contains('?') { '&' } else { '?' };
    format!("{address}{separator}{}", encode(parameters))
}
