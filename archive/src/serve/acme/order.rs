// SPDX-License-Identifier: Apache-2.0
//! One order, from the account to the certificate (RFC 8555 §7).

use super::client::Client;
use super::error::OrderError;
use super::keep::Keep;
use super::value::Challenge;
use super::{AcmeOptions, Answers, lock};
use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Error, Identifier, KeyAuthorization, NewAccount,
    NewOrder, Order, OrderStatus, Problem, RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How the authority is asked whether it is done, each time.
const POLLING: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(500))
    .backoff(1.5)
    .timeout(Duration::from_mins(2));

/// Orders a certificate; returns a new key and the chain, in PEM. While the authority looks, `answers` has the proofs.
pub(super) async fn order(
    options: &AcmeOptions,
    keep: &Keep,
    client: &Client,
    answers: &Mutex<Answers>,
) -> Result<String, OrderError> {
    let identifiers: Vec<_> = options
        .names
        .iter()
        .map(|name| Identifier::Dns(name.as_str().to_owned()))
        .collect();
    let new = NewOrder::new(&identifiers);
    let mut order = match account(options, keep, client).await?.new_order(&new).await {
        Err(Error::Api(problem)) if is_unknown_account(&problem) => {
            tracing::warn!("the certificate authority has lost our account; another is made");
            let account = new_account(options, keep, client).await?;
            account.new_order(&new).await?
        }
        result => result?,
    };
    let kind = match options.challenge {
        Challenge::Http01 => ChallengeType::Http01,
        Challenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
    };
    let mut refused = None;
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        let name = authorization.identifier().to_string();
        if !options.names.iter().any(|ours| ours.as_str() == name) {
            return Err(OrderError::NotOrdered(name));
        }
        match authorization.status {
            AuthorizationStatus::Valid => continue,
            AuthorizationStatus::Pending => {}
            _ => {
                return Err(OrderError::Unproved {
                    name,
                    problem: None,
                });
            }
        }
        let Some(mut challenge) = authorization.challenge(kind.clone()) else {
            let challenge = match options.challenge {
                Challenge::Http01 => "http-01",
                Challenge::TlsAlpn01 => "tls-alpn-01",
            };
            return Err(OrderError::NotOffered { name, challenge });
        };
        let proof = challenge.key_authorization();
        match options.challenge {
            Challenge::Http01 => {
                let token = challenge.token.clone();
                let proof = proof.as_str().to_owned();
                lock(answers).http.insert(token, proof);
            }
            Challenge::TlsAlpn01 => {
                let shown = certificate_for_proof(&name, &proof)?;
                lock(answers).tls.insert(name, Arc::new(shown));
            }
        }
        if let Err(error) = challenge.set_ready().await {
            refused = Some(error);
            break;
        }
    }
    let status = match refused {
        None => order.poll_ready(&POLLING).await,
        // An authority may have looked in vain before it answers.
        Some(error) => Err(error),
    };
    match status {
        Ok(OrderStatus::Ready | OrderStatus::Valid) => {}
        Ok(_) => return Err(unproved(&mut order).await.unwrap_or(invalid())),
        Err(error @ Error::Api(_)) => {
            return Err(unproved(&mut order).await.unwrap_or(error.into()));
        }
        Err(error) => return Err(error.into()),
    }
    let key = order.finalize().await?;
    let chain = order.poll_certificate(&POLLING).await?;
    Ok(format!("{key}{chain}"))
}

async fn account(
    options: &AcmeOptions,
    keep: &Keep,
    client: &Client,
) -> Result<Account, OrderError> {
    match keep.account() {
        Some(credentials) => {
            let builder = Account::builder_with_http(Box::new(client.clone()));
            Ok(builder.from_credentials(credentials).await?)
        }
        None => new_account(options, keep, client).await,
    }
}

async fn new_account(
    options: &AcmeOptions,
    keep: &Keep,
    client: &Client,
) -> Result<Account, OrderError> {
    let contacts: Vec<_> = options
        .contacts
        .iter()
        .map(|address| format!("mailto:{address}"))
        .collect();
    let contacts: Vec<_> = contacts.iter().map(String::as_str).collect();
    let new = NewAccount {
        contact: &contacts,
        terms_of_service_agreed: true,
        only_return_existing: false,
    };
    let url = options.authority.url().to_string();
    let builder = Account::builder_with_http(Box::new(client.clone()));
    let (account, credentials) = builder.create(&new, url, None).await?;
    keep.write_account(&credentials)?;
    Ok(account)
}

fn is_unknown_account(problem: &Problem) -> bool {
    // RFC 8555 §6.7.
    problem.r#type.as_deref() == Some("urn:ietf:params:acme:error:accountDoesNotExist")
}

/// Finds out which name was not proved, and why.
async fn unproved(order: &mut Order) -> Option<OrderError> {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let state = authorization.refresh().await.ok()?;
        if state.status == AuthorizationStatus::Valid {
            continue;
        }
        let name = state.identifier().to_string();
        let mut errors = state
            .challenges
            .iter()
            .filter_map(|challenge| challenge.error.clone());
        if let Some(problem) = errors.next() {
            let problem = Some(problem);
            return Some(OrderError::Unproved { name, problem });
        }
    }
    None
}

fn invalid() -> OrderError {
    Error::Other("the order has become invalid".into()).into()
}

/// Makes the certificate that proves a name over TLS (RFC 8737 §3).
fn certificate_for_proof(name: &str, proof: &KeyAuthorization) -> Result<CertifiedKey, OrderError> {
    let make = || -> Result<CertifiedKey, Box<dyn std::error::Error + Send + Sync>> {
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.distinguished_name = DistinguishedName::new();
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(
            proof.digest().as_ref(),
        )];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let chain = vec![certificate.der().clone()];
        // Not by `from_der`: it refuses the extension, which is critical and only the authority understands.
        let key = ring::default_provider()
            .key_provider
            .load_private_key(key)?;
        Ok(CertifiedKey::new(chain, key))
    };
    make().map_err(OrderError::Proof)
}
