// SPDX-License-Identifier: Apache-2.0
//! Images of a Docker daemon, through the Engine API's socket (docs.docker.com/reference/api/engine, "Images").

use super::archive::read_archive;
use crate::Error;
use crate::layout::{Image, read_configuration};
use crate::registry::Client;
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long the daemon may be silent. It packs an image's layers before it sends the first byte.
const TIMEOUT: Duration = Duration::from_mins(5);

/// An image in a daemon.
#[derive(Clone, Debug)]
pub(crate) struct DaemonImage {
    pub(crate) client: Arc<Client>,
    pub(crate) socket: PathBuf,
    /// The image's own id: its name may mean another one later.
    pub(crate) id: String,
    pub(crate) size: u64,
}

/// What the API tells of an image.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    config: Value,
    #[serde(rename = "RootFS")]
    root_fs: RootFs,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RootFs {
    #[serde(default)]
    layers: Vec<String>,
}

/// Asks the daemon what an image is. Returns it with the digests of its layers, uncompressed, and its configuration.
pub(crate) fn inspect(
    client: &Arc<Client>,
    socket: &Path,
    name: &str,
    cancelled: &dyn Fn() -> bool,
) -> Result<(DaemonImage, Vec<String>, crate::ImageConfig), Error> {
    let body = client.wait_for(cancelled, async {
        let mut response = request(socket, name, "json").await?;
        let mut body = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| failed(socket, &error))?
        {
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    })?;
    let parse = |source| Error::Json {
        path: socket.to_owned(),
        what: "answer of the Docker daemon",
        source,
    };
    let found: Inspected = serde_json::from_slice(&body).map_err(parse)?;
    let configuration = json!({
        "architecture": found.architecture,
        "variant": found.variant,
        "os": found.os,
        "config": found.config,
        "rootfs": {"type": "layers", "diff_ids": found.root_fs.layers},
    });
    let (diff_ids, config) = read_configuration(socket, configuration.to_string().as_bytes())?;
    let image = DaemonImage {
        client: Arc::clone(client),
        socket: socket.to_owned(),
        id: found.id,
        size: found.size,
    };
    Ok((image, diff_ids, config))
}

/// Fetches an image from the daemon into a file without a name. `progress` hears of the bytes that have come.
pub(crate) fn fetch(
    image: &DaemonImage,
    progress: &mut dyn FnMut(u64),
    cancelled: &dyn Fn() -> bool,
) -> Result<Image, Error> {
    let mut file = image.client.scratch()?;
    image.client.wait_for(cancelled, async {
        let mut response = request(&image.socket, &image.id, "get").await?;
        let mut bytes = 0;
        loop {
            let chunk = response.chunk().await;
            let Some(chunk) = chunk.map_err(|error| failed(&image.socket, &error))? else {
                return Ok(());
            };
            let written = file.write_all(&chunk);
            written.map_err(|source| Error::io("save an image of", &image.socket, source))?;
            bytes += chunk.len() as u64;
            progress(bytes);
        }
    })?;
    read_archive(file, &image.socket, None)
}

async fn request(socket: &Path, name: &str, what: &str) -> Result<reqwest::Response, Error> {
    crate::registry::choose_cryptography();
    // No TLS here: no certificates are read.
    let client = reqwest::Client::builder()
        .unix_socket(socket)
        .no_proxy()
        .tls_certs_only([])
        .read_timeout(TIMEOUT)
        .build()
        .map_err(|error| failed(socket, &error))?;
    let response = client
        .get(format!("http://docker/images/{name}/{what}"))
        .send()
        .await;
    let response = response.map_err(|error| failed(socket, &error))?;
    match response.status().as_u16() {
        200 => Ok(response),
        404 => Err(Error::NotUsable {
            path: format!("docker-daemon:{name}").into(),
            wanted: "an image",
            reason: "the Docker daemon has none of that name (see `docker images`)".to_owned(),
        }),
        status => Err(Error::Daemon {
            socket: socket.to_owned(),
            reason: format!("it answered {status}"),
        }),
    }
}

fn failed(socket: &Path, error: &reqwest::Error) -> Error {
    Error::Daemon {
        socket: socket.to_owned(),
        reason: crate::registry::innermost(error),
    }
}
