// SPDX-License-Identifier: Apache-2.0
//! `obuild shell ID [-- CMD]`: look into any step's result. What is changed there is thrown away.

use super::{open_sandbox, open_store, runtime};
use crate::cli::{Global, Shell};
use crate::config::Config;
use crate::failure::Failure;
use anyhow::Result;
use bstr::{BString, ByteSlice};
use obuild_engine::{Engine, Kind};
use obuild_sandboxes::{Cancel, Command, Exit, Limits, Network, Stdio, User};
use obuild_stores::SnapshotId;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// What a shell in a tree finds when the tree's own files say nothing else.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(crate) fn run(global: &Global, options: &Shell) -> Result<()> {
    let config = Config::read(global)?;
    let store = open_store(global, &config)?;
    let sandbox = open_sandbox(global, &options.sandbox, &config, &*store)?;
    let engine = Engine::open(store, sandbox, 1)?;
    let (id, around) = runtime()?.block_on(async {
        let id = engine.find(&options.id).await?;
        Ok::<_, obuild_engine::Error>((id, engine.image_config(id).await?))
    })?;
    let mut digest = [0; 32];
    rustix::rand::getrandom(&mut digest, rustix::rand::GetRandomFlags::empty())?;
    let draft = engine
        .store()
        .prepare(SnapshotId::from_digest(digest), Some(id))?;
    let command = Command {
        argv: if options.command.is_empty() {
            // Whichever the tree has; a login shell would read files that change PATH.
            ["/bin/sh", "-c", "exec bash 2>/dev/null || exec sh"]
                .map(BString::from)
                .to_vec()
        } else {
            options.command.iter().map(|word| bytes(word)).collect()
        },
        workdir: match &options.workdir {
            Some(workdir) => bytes(workdir),
            None if around.workdir.is_empty() => BString::from("/"),
            None => around.workdir,
        },
        user: match &options.user {
            Some(name) => user(name)?,
            None if around.user.is_empty() => User::Ids { uid: 0, gid: 0 },
            // What an image says may name a group as well: a name stands for all of the user's.
            None => match around.user.split_once_str(":") {
                Some((name, _)) if name.first().is_some_and(|first| !first.is_ascii_digit()) => {
                    user(&name.to_str_lossy())?
                }
                _ => user(&around.user.to_str_lossy())?,
            },
        },
        env: environment(around.env, &options.env)?,
        hostname: "builder".to_owned(),
        network: if options.network_host {
            Network::Host
        } else {
            Network::None
        },
        mounts: Vec::new(),
        secrets: Vec::new(),
        limits: Limits::default(),
        fast_sync: true,
        no_new_privs: false,
        variation: None,
    };
    let cancel = Cancel::new()?;
    let exit = engine.sandbox().run(
        &command,
        &obuild_engine::sandbox_rootfs(draft.rootfs()),
        Stdio::Inherit,
        &cancel,
    );
    engine.store().discard(draft)?;
    let reason = match exit? {
        Exit::Status(0) => return Ok(()),
        Exit::Status(status) => format!("the command ended with exit status {status}"),
        Exit::Signal(signal) => format!("the command was killed by signal {signal}"),
        Exit::OutOfMemory | Exit::TimedOut | Exit::Cancelled => "the command was ended".to_owned(),
    };
    Err(Failure {
        kind: Kind::Build,
        message: reason,
        hint: None,
    }
    .into())
}

fn bytes(text: &OsStr) -> BString {
    BString::from(text.as_bytes())
}

/// Returns the step's environment with what is given besides. `HOME` is the user's, unless one of them says otherwise.
fn environment(
    mut env: Vec<(BString, BString)>,
    given: &[std::ffi::OsString],
) -> Result<Vec<(BString, BString)>> {
    let mut default = |name: &str, value: Option<BString>| {
        if let Some(value) = value
            && !env.iter().any(|(known, _)| known == name)
        {
            env.push((BString::from(name), value));
        }
    };
    default("PATH", Some(BString::from(PATH)));
    default("TERM", std::env::var_os("TERM").map(|term| bytes(&term)));
    for text in given {
        let text = text.as_bytes();
        let at = text
            .iter()
            .position(|byte| *byte == b'=')
            .filter(|at| *at > 0);
        let at = at.ok_or_else(|| {
            Failure::usage(format!("--env {:?} is not NAME=VALUE", BString::from(text)))
        })?;
        let name = BString::from(&text[..at]);
        env.retain(|(known, _)| *known != name);
        env.push((name, BString::from(&text[at + 1..])));
    }
    Ok(env)
}

fn user(text: &str) -> Result<User> {
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        return Ok(User::Name(BString::from(text)));
    }
    let (uid, gid) = text.split_once(':').unwrap_or((text, "0"));
    match (uid.parse(), gid.parse()) {
        (Ok(uid), Ok(gid)) => Ok(User::Ids { uid, gid }),
        _ => Err(Failure::usage(format!("{text:?} is no user; give a name, or uid:gid")).into()),
    }
}
