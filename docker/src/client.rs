// SPDX-License-Identifier: Apache-2.0
//! The client: one method a request. Docker Engine API v1.41 and later.

use crate::Error;
use bollard::models::{
    ContainerConfig, ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount, MountType,
};
use bollard::query_parameters::{
    CommitContainerOptions, CreateContainerOptions, CreateImageOptions, InspectContainerOptions,
    ListContainersOptions, ListImagesOptions, RemoveContainerOptions, RemoveImageOptions,
    StartContainerOptions, TagImageOptions,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::StreamExt as _;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;
use tokio::runtime::Runtime;

/// A daemon that hangs is as good as one that is not there. The archive of a commit streams inside the daemon and sends nothing
/// until it is done, so this is long.
const DEADLINE: Duration = Duration::from_mins(30);

/// An image of one empty layer, for containers that need none. All stores and sandboxes share it.
const EMPTY: &str = "obuild:empty";

/// A connection to a daemon, made when it is first needed.
pub struct Client {
    socket: PathBuf,
    open: Mutex<Option<Open>>,
}

#[derive(Clone)]
struct Open {
    api: Docker,
    runtime: std::sync::Arc<Background>,
}

/// A runtime that may be dropped anywhere.
struct Background(Option<Runtime>);

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Dropping one inside another's threads panics.
            runtime.shutdown_background();
        }
    }
}

/// What a daemon says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its version, for people.
    pub version: String,
    /// The driver that keeps its layers: `overlay2`, `btrfs`, `overlayfs` (containerd's).
    pub driver: String,
    /// Its data directory.
    pub root: PathBuf,
    /// Whether it puts root inside containers onto another user outside, or is itself not run by root.
    pub remaps_users: bool,
}

/// A container to be made.
#[derive(Clone, Debug, Default)]
pub struct Container {
    /// Its name, unique on the daemon.
    pub name: String,
    /// The image; `None` for the empty one.
    pub image: Option<String>,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Labels.
    pub labels: Vec<(String, String)>,
    /// Files and directories of the host that it sees, read-only if the flag is set.
    pub binds: Vec<(PathBuf, String, bool)>,
    /// Whether it has the host's network; else it has none.
    pub host_network: bool,
    /// Whether its first process makes namespaces and mounts itself; such a container removes itself when that ends.
    pub makes_sandboxes: bool,
    /// Limits of all its processes together.
    pub limits: Limits,
}

/// Limits of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory, without swap beyond it.
    pub memory_bytes: Option<u64>,
    /// Microseconds of processor time in each 100 ms.
    pub cpu_quota: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// Where the overlay2 driver keeps a container's or image's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// Read-only layers, topmost first.
    pub lower: Vec<PathBuf>,
    /// A container's writable layer, an image's own topmost one.
    pub upper: PathBuf,
    /// The kernel's scratch directory for `upper`.
    pub work: PathBuf,
}

/// An image of the daemon's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its id, `sha256:` and so on.
    pub id: String,
    /// What it is called, `repository:tag`.
    pub names: Vec<String>,
    /// What is written on it.
    pub labels: HashMap<String, String>,
}

impl Client {
    /// Names the daemon at a unix socket. Nothing is sent yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            open: Mutex::new(None),
        }
    }

    /// Returns the daemon's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    fn open(&self) -> Result<Open, Error> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = &*open {
            return Ok(open.clone());
        }
        self.probe()?;
        let unreachable = |reason: String| Error::Unreachable {
            socket: self.socket.clone(),
            reason,
        };
        let path = self
            .socket
            .to_str()
            .ok_or_else(|| unreachable("its path is not UTF-8".to_owned()))?;
        let api = Docker::connect_with_unix(path, DEADLINE.as_secs(), API_DEFAULT_VERSION)
            .map_err(|error| unreachable(error.to_string()))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("obuild-docker")
            .enable_all()
            .build()
            .map_err(|error| unreachable(error.to_string()))?;
        let runtime = std::sync::Arc::new(Background(Some(runtime)));
        let api = answer(&runtime, api.negotiate_version())
            .and_then(|api| api.map_err(|error| error.to_string()))
            .map_err(unreachable)?;
        Ok(open.insert(Open { api, runtime }).clone())
    }

    /// Says what is wrong with a socket in words that help; the client's own are about HTTP.
    fn probe(&self) -> Result<(), Error> {
        let Err(error) = UnixStream::connect(&self.socket) else {
            return Ok(());
        };
        let advice = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                "run obuild as root, or as a member of the socket's group"
            }
            _ => "",
        };
        Err(Error::Unreachable {
            socket: self.socket.clone(),
            reason: if advice.is_empty() {
                error.to_string()
            } else {
                format!("{error}; {advice}")
            },
        })
    }

    /// Makes a request and waits for its answer.
    fn call<T, F>(
        &self,
        action: impl FnOnce() -> String,
        request: impl FnOnce(Docker) -> F,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, bollard::errors::Error>> + Send + 'static,
    {
        use bollard::errors::Error as Cause;
        let open = self.open()?;
        match answer(&open.runtime, request(open.api.clone())) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Cause::DockerResponseServerError {
                status_code,
                message,
            })) => Err(Error::Refused {
                action: action(),
                status: status_code,
                message: message.trim().to_owned(),
            }),
            Ok(Err(Cause::DockerStreamError { error })) => Err(Error::Refused {
                action: action(),
                status: 500,
                message: error,
            }),
            Ok(Err(cause)) => {
                // A daemon that has gone is told as such.
                self.probe()?;
                Err(Error::Broken {
                    action: action(),
                    reason: chain(&cause),
                })
            }
            Err(reason) => Err(Error::Broken {
                action: action(),
                reason,
            }),
        }
    }

    /// Asks the daemon about itself.
    pub fn server(&self) -> Result<Server, Error> {
        let info = self.call(
            || "say what it is".to_owned(),
            |api| async move { api.info().await },
        )?;
        let remaps_users = info
            .security_options
            .unwrap_or_default()
            .iter()
            .any(|option| option.contains("name=userns") || option.contains("name=rootless"));
        Ok(Server {
            version: info.server_version.unwrap_or_default(),
            driver: info.driver.unwrap_or_default(),
            root: info.docker_root_dir.unwrap_or_default().into(),
            remaps_users,
        })
    }

    /// Makes a container and does not start it. Returns its id.
    pub fn create_container(&self, container: &Container) -> Result<String, Error> {
        let action = || format!("create the container {}", container.name);
        let create = || {
            let (options, body) = described(container);
            self.call(action, |api| async move {
                Ok(api.create_container(Some(options), body).await?.id)
            })
        };
        match create() {
            Err(error) if error.is_missing() && container.image.is_none() => {
                self.import_empty()?;
                create()
            }
            result => result,
        }
    }

    /// Makes the empty image.
    fn import_empty(&self) -> Result<(), Error> {
        let (repository, tag) = EMPTY.split_once(':').expect("it has a tag");
        let options = CreateImageOptions {
            from_src: Some("-".to_owned()),
            repo: Some(repository.to_owned()),
            tag: Some(tag.to_owned()),
            ..CreateImageOptions::default()
        };
        // POSIX pax, "ustar Interchange Format": an archive ends with two blocks of zeroes, and an empty one is nothing else.
        let archive = bollard::body_full(vec![0; 1024].into());
        self.call(
            || format!("make the image {EMPTY}"),
            |api| async move {
                let mut replies = Box::pin(api.create_image(Some(options), Some(archive), None));
                while let Some(reply) = replies.next().await {
                    reply?;
                }
                Ok(())
            },
        )
    }

    /// Starts a container.
    pub fn start_container(&self, name: &str) -> Result<(), Error> {
        let container = name.to_owned();
        self.call(
            || format!("start the container {name}"),
            |api| async move {
                api.start_container(&container, None::<StartContainerOptions>)
                    .await
            },
        )
    }

    /// Removes a container, running or not, and its volumes. One that is not there is no error.
    pub fn remove_container(&self, name: &str) -> Result<(), Error> {
        let container = name.to_owned();
        let removed = self.call(
            || format!("remove the container {name}"),
            |api| async move {
                let options = RemoveContainerOptions {
                    force: true,
                    v: true,
                    link: false,
                };
                api.remove_container(&container, Some(options)).await
            },
        );
        match removed {
            Err(error) if error.is_missing() => Ok(()),
            // It is about to remove itself: 409, "removal of container x is already in progress".
            Err(Error::Refused {
                status: 409,
                message,
                ..
            }) if message.contains("already in progress") => Ok(()),
            result => result,
        }
    }

    /// Returns where a container's files are, without what docker itself puts into it.
    pub fn container_tree(&self, name: &str) -> Result<Tree, Error> {
        let container = name.to_owned();
        let data = self.call(
            || format!("look at the container {name}"),
            |api| async move {
                let inspected = api
                    .inspect_container(&container, None::<InspectContainerOptions>)
                    .await?;
                Ok(inspected.graph_driver.map(|driver| driver.data))
            },
        )?;
        let mut tree = tree(name, data)?;
        // The layer with /.dockerenv, /etc/hosts and the like: moby daemon/graphdriver/overlay2, "ID-init".
        tree.lower.retain(|layer| {
            let parent = layer.parent().and_then(Path::file_name);
            parent.is_none_or(|name| !name.to_string_lossy().ends_with("-init"))
        });
        Ok(tree)
    }

    /// Makes an image of a container's files, with the labels of the container and nothing else that it did not inherit from its
    /// own image. Returns the image's id.
    pub fn commit(&self, name: &str) -> Result<String, Error> {
        let options = CommitContainerOptions {
            container: Some(name.to_owned()),
            pause: false,
            ..CommitContainerOptions::default()
        };
        self.call(
            || format!("make an image of the container {name}"),
            |api| async move {
                let made = api
                    .commit_container(options, ContainerConfig::default())
                    .await?;
                Ok(made.id)
            },
        )
    }

    /// Returns where an image's files are.
    pub fn image_tree(&self, image: &str) -> Result<Tree, Error> {
        let name = image.to_owned();
        let data = self.call(
            || format!("look at the image {image}"),
            |api| async move {
                let inspected = api.inspect_image(&name).await?;
                Ok(inspected.graph_driver.map(|driver| driver.data))
            },
        )?;
        tree(image, data)
    }

    /// Returns the id of the image of this name.
    pub fn image_id(&self, image: &str) -> Result<Option<String>, Error> {
        let name = image.to_owned();
        let found = self.call(
            || format!("look at the image {image}"),
            |api| async move { Ok(api.inspect_image(&name).await?.id) },
        );
        match found {
            Err(error) if error.is_missing() => Ok(None),
            result => result,
        }
    }

    /// Gives an image a name; another of that name loses it.
    pub fn tag_image(&self, image: &str, repository: &str, tag: &str) -> Result<(), Error> {
        let name = image.to_owned();
        let options = TagImageOptions {
            repo: Some(repository.to_owned()),
            tag: Some(tag.to_owned()),
        };
        self.call(
            || format!("name the image {repository}:{tag}"),
            |api| async move { api.tag_image(&name, Some(options)).await },
        )
    }

    /// Takes a name from an image, and removes the image when it was the last. One that is not there is no error.
    pub fn remove_image(&self, image: &str) -> Result<(), Error> {
        let name = image.to_owned();
        let removed = self.call(
            || format!("remove the image {image}"),
            |api| async move {
                let options = RemoveImageOptions {
                    // Containers of other people that are not running do not keep it.
                    force: true,
                    // Parents that lost their names while this stood on them go with it; others have names.
                    noprune: false,
                    platforms: None,
                };
                api.remove_image(&name, Some(options), None).await.map(drop)
            },
        );
        match removed {
            Err(error) if error.is_missing() => Ok(()),
            result => result,
        }
    }

    /// Returns the names of all containers, running or not, that have the label.
    pub fn containers(&self, label: &str) -> Result<Vec<String>, Error> {
        let filters = HashMap::from([("label".to_owned(), vec![label.to_owned()])]);
        self.call(
            || "list its containers".to_owned(),
            |api| async move {
                let options = ListContainersOptions {
                    all: true,
                    filters: Some(filters),
                    ..ListContainersOptions::default()
                };
                let found = api.list_containers(Some(options)).await?;
                let names = found
                    .into_iter()
                    .flat_map(|one| one.names.unwrap_or_default());
                Ok(names
                    .map(|name| name.trim_start_matches('/').to_owned())
                    .collect())
            },
        )
    }

    /// Returns all images that have the label, but for nameless ones that others stand on.
    pub fn images(&self, label: &str) -> Result<Vec<Image>, Error> {
        let filters = HashMap::from([("label".to_owned(), vec![label.to_owned()])]);
        self.call(
            || "list its images".to_owned(),
            |api| async move {
                let options = ListImagesOptions {
                    filters: Some(filters),
                    ..ListImagesOptions::default()
                };
                let found = api.list_images(Some(options)).await?;
                let images = found.into_iter().map(|image| Image {
                    id: image.id,
                    // Older daemons say so of an image without a name.
                    names: image
                        .repo_tags
                        .into_iter()
                        .filter(|name| name != "<none>:<none>")
                        .collect(),
                    labels: image.labels,
                });
                Ok(images.collect())
            },
        )
    }
}

/// Runs a request on the client's own thread and waits for it, which any other thread may do.
fn answer<T: Send + 'static>(
    runtime: &Background,
    request: impl Future<Output = T> + Send + 'static,
) -> Result<T, String> {
    let (sender, receiver) = mpsc::channel();
    let runtime = runtime.0.as_ref().expect("only dropping takes it");
    runtime.spawn(async move {
        // Nobody waits any more: nothing to tell.
        let _ = sender.send(request.await);
    });
    receiver
        .recv()
        .map_err(|_| "the request was given up".to_owned())
}

fn described(container: &Container) -> (CreateContainerOptions, ContainerCreateBody) {
    let options = CreateContainerOptions {
        name: Some(container.name.clone()),
        platform: String::new(),
    };
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let limits = &container.limits;
    let binds = container
        .binds
        .iter()
        .map(|(source, target, read_only)| Mount {
            typ: Some(MountType::BIND),
            source: Some(source.to_string_lossy().into_owned()),
            target: Some(target.clone()),
            read_only: Some(*read_only),
            ..Mount::default()
        });
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    let host = HostConfig {
        network_mode: Some(
            if container.host_network {
                "host"
            } else {
                "none"
            }
            .to_owned(),
        ),
        auto_remove: Some(container.makes_sandboxes),
        userns_mode: container.makes_sandboxes.then(|| "host".to_owned()),
        // Beside the usual ones. Not all (`privileged`): the daemon itself may not have all.
        cap_add: container
            .makes_sandboxes
            .then(|| words(&["SYS_ADMIN", "NET_ADMIN"])),
        // The sandboxes have filters of their own; these would forbid making them.
        security_opt: container
            .makes_sandboxes
            .then(|| words(&["seccomp=unconfined", "apparmor=unconfined", "label=disable"])),
        mounts: Some(binds.collect()),
        log_config: Some(HostConfigLogConfig {
            typ: Some("none".to_owned()),
            config: None,
        }),
        memory: limits.memory_bytes.map(number),
        // Memory and swap together: none of the latter.
        memory_swap: limits.memory_bytes.map(number),
        // As a quota, for which more processors than there are is no error.
        cpu_period: limits.cpu_quota.map(|_| 100_000),
        cpu_quota: limits.cpu_quota.map(number),
        pids_limit: limits.pids.map(number),
        ..HostConfig::default()
    };
    let body = ContainerCreateBody {
        image: Some(container.image.clone().unwrap_or_else(|| EMPTY.to_owned())),
        cmd: Some(container.argv.clone()),
        labels: Some(container.labels.iter().cloned().collect()),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    };
    (options, body)
}

/// Reads the overlay2 driver's data.
fn tree(of: &str, data: Option<HashMap<String, String>>) -> Result<Tree, Error> {
    let data = data.unwrap_or_default();
    let path = |key: &str| data.get(key).filter(|path| path.starts_with('/'));
    let (Some(upper), Some(work)) = (path("UpperDir"), path("WorkDir")) else {
        return Err(Error::Unsuitable(format!(
            "docker does not say where the files of {of} are: its storage driver is not overlay2"
        )));
    };
    let lower = path("LowerDir").map_or_else(Vec::new, |lower| {
        // moby daemon/graphdriver/overlay2: joined with colons, which its own paths do not hold.
        lower.split(':').map(PathBuf::from).collect()
    });
    Ok(Tree {
        lower,
        upper: upper.into(),
        work: work.into(),
    })
}

/// Writes an error with its causes, as far as they say more.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_daemon_is_said_in_words_that_help() {
        let scratch = tempfile::tempdir().expect("a directory");
        let socket = scratch.path().join("docker.sock");
        let error = Client::new(&socket).server().expect_err("nobody is there");
        assert_eq!(error.kind(), io::ErrorKind::NotConnected, "{error}");
        assert!(error.to_string().contains("docker.sock"), "{error}");
        // A socket that somebody left.
        drop(std::os::unix::net::UnixListener::bind(&socket).expect("bound"));
        let error = Client::new(&socket).server().expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::NotConnected, "{error}");
    }

    #[test]
    fn a_daemon_that_is_none_is_an_error() {
        use std::io::Write as _;
        let scratch = tempfile::tempdir().expect("a directory");
        let socket = scratch.path().join("docker.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut stream = stream;
                let _ = stream.write_all(b"220 mail.example.org\r\n");
            }
        });
        let error = Client::new(&socket).server().expect_err("it is no daemon");
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    }

    #[test]
    fn a_full_disk_is_known() {
        let error = Error::Refused {
            action: "x".to_owned(),
            status: 500,
            message: "write /x: no space left on device".to_owned(),
        };
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn another_driver_is_refused() {
        let data = HashMap::from([("Dir".to_owned(), "/x".to_owned())]);
        assert!(matches!(tree("x", Some(data)), Err(Error::Unsuitable(_))));
        assert!(matches!(tree("x", None), Err(Error::Unsuitable(_))));
    }
}
