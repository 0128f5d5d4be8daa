// SPDX-License-Identifier: Apache-2.0
//! The docker kind: a snapshot is an image of a docker daemon on this host, a draft a container that is never started.
//!
//! The daemon's overlay2 driver keeps a container as an overlay, and tells its directories: they are the draft's recipe. A
//! commit is a `docker commit`. Anyone can `docker run obuild-KEY:ID` any step. What the store itself keeps is in the slot:
//!
//! ```text
//! fs      an empty directory with the attributes of the tree's top one, which docker's archives do not hold
//! docker  "container NAME", "upper PATH", "image ID", "name NAME:TAG", then "layer PATH" for each layer, topmost first
//! ```
//!
//! The file `docker` of the store itself names the data directory of the daemon. Nothing is asked of the daemon to read a
//! snapshot or to find that there is one. Names are written down before what they name is made, so that whoever finds
//! a slot without an owner can remove all of it. See `docs/decisions/0011-docker.md`.

use crate::overlay::Overlay;
use crate::place::Place;
use crate::trees::{self, Layers, Trees};
use crate::{Error, Kind, OverlayMount, Rootfs, SnapshotId, Space, Upper, tree};
use obuild_docker::{Client, Container};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, RenameFlags, XattrFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use std::ffi::CString;
use std::fmt::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The docker kind.
pub(crate) struct Docker {
    client: Client,
    /// Whether the daemon was found to be the store's.
    checked: Mutex<bool>,
}

const FILE: &str = "docker";

/// moby `layer/layer_store.go`, `maxLayerDepth`, is 125, and people may want to build on a step. What stands on this many is
/// made one layer.
const DEEPEST: usize = 60;

/// Marks a layer's directory as one whose files are the very ones that a draft had.
const ADOPTED: &str = "trusted.obuild.adopted";

/// What the store knows of a container and its image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Facts {
    containers: Vec<String>,
    /// Where the container's own files are.
    upper: Option<PathBuf>,
    image: Option<String>,
    /// The image's name.
    name: Option<String>,
    /// A draft's are those of its parent.
    layers: Vec<PathBuf>,
}

impl Facts {
    fn to_text(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: &str| {
            writeln!(text, "{key} {value}").expect("a string takes all");
        };
        for container in &self.containers {
            line("container", container);
        }
        if let Some(upper) = &self.upper {
            line("upper", &upper.to_string_lossy());
        }
        if let Some(image) = &self.image {
            line("image", image);
        }
        if let Some(name) = &self.name {
            line("name", name);
        }
        for layer in &self.layers {
            line("layer", &layer.to_string_lossy());
        }
        text
    }

    fn parse(text: &str) -> Self {
        let mut facts = Self::default();
        for line in text.lines() {
            match line.split_once(' ') {
                Some(("container", name)) => facts.containers.push(name.to_owned()),
                Some(("upper", path)) => facts.upper = Some(path.into()),
                Some(("image", image)) => facts.image = Some(image.to_owned()),
                Some(("name", name)) => facts.name = Some(name.to_owned()),
                Some(("layer", path)) => facts.layers.push(path.into()),
                _ => {}
            }
        }
        facts
    }

    fn read(place: &Place, slot: &str) -> Result<Option<Self>, Error> {
        let text = place.read(&format!("{slot}/{FILE}"))?;
        Ok(text.as_deref().map(Self::parse))
    }

    /// Returns the facts of a tree that was there; without them it would pass for an empty one.
    fn of_tree(place: &Place, name: &str) -> Result<Self, Error> {
        let slot = slot_of(name);
        Self::read(place, slot)?.ok_or_else(|| place.error("read", slot, Errno::NOENT))
    }

    fn write(&self, place: &Place, slot: &str) -> Result<(), Error> {
        // At once: whoever cleans up after a killed process has to know the names.
        place.replace(&format!("{slot}/{FILE}"), &self.to_text(), false)
    }
}

/// Returns the store's directory as its labels have it.
fn home(place: &Place) -> String {
    let path = place.path("").to_string_lossy().into_owned();
    path.trim_end_matches('/').to_owned()
}

/// Returns the repository of a store's images.
fn repository(place: &Place) -> String {
    let digest = Sha256::digest(home(place).as_bytes());
    format!("obuild-{}", &hex::encode(digest)[..7])
}

/// Returns the slot of a tree's name.
fn slot_of(name: &str) -> &str {
    name.strip_suffix("/fs").unwrap_or(name)
}

fn open(path: &Path) -> Result<OwnedFd, Error> {
    tree::open(CWD, path).map_err(|errno| Error::io("open", path, errno))
}

/// Gives one directory the attributes of another.
fn copy_top(from: &Path, to: &Path) -> Result<(), Error> {
    let (source, target) = (open(from)?, open(to)?);
    rustix::fs::fstat(&source)
        .and_then(|stat| tree::copy_attributes(&source, &target, &stat))
        .map_err(|errno| Error::io("copy the attributes of", from, errno))
}

/// Takes away the mark of a volatile mount, with which the kernel refuses docker's own: it mounts what it makes an image of.
/// linux v6.18 Documentation/filesystems/overlayfs.rst "Volatile mount".
fn settle(upper: &Path) -> Result<(), Error> {
    // moby daemon/graphdriver/overlay2: `work` is beside `diff`.
    let work = upper.with_file_name("work/work");
    let Ok(work) = tree::open(CWD, &work) else {
        // It was never mounted.
        return Ok(());
    };
    match tree::remove(work.as_fd(), c"incompat", None) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(Error::io("clean up beside", upper, errno)),
    }
}

impl Docker {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self {
            client: Client::new(socket),
            checked: Mutex::new(false),
        }
    }

    fn unsuitable(place: &Place, reason: String) -> Error {
        Error::Unsuitable {
            path: place.path(""),
            kind: Kind::Docker.name(),
            reason,
        }
    }

    /// Returns the daemon's data directory, if the daemon can hold a store.
    fn root(&self, place: &Place) -> Result<PathBuf, Error> {
        let server = self
            .client
            .server()
            .map_err(|error| place.error("use docker for", ".", error))?;
        let at = self.client.socket().display();
        let refuse = |reason: String| Err(Self::unsuitable(place, reason));
        if server.driver != "overlay2" {
            return refuse(format!(
                "the daemon at {at} keeps its layers with {:?}, and only overlay2 tells where they are: set \
                 {{\"storage-driver\": \"overlay2\", \"features\": {{\"containerd-snapshotter\": false}}}} in \
                 /etc/docker/daemon.json, or use overlay:{}, which --sandbox docker takes as well",
                server.driver,
                home(place)
            ));
        }
        if server.remaps_users {
            return refuse(format!(
                "the daemon at {at} runs without root or maps users, so its files have other owners: use a daemon that does neither"
            ));
        }
        if !server.root.join("overlay2").is_dir() {
            return refuse(format!(
                "the daemon at {at} has its data in {}, which is not there: it must be of this host",
                server.root.display()
            ));
        }
        Ok(server.root)
    }

    /// Returns the client once the daemon is known to be the store's.
    fn client(&self, place: &Place) -> Result<&Client, Error> {
        let mut checked = self
            .checked
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if !*checked {
            let root = self.root(place)?;
            let root = root.to_string_lossy();
            match place.read(FILE)? {
                Some(known) if known.trim_end() == root => {}
                Some(known) => {
                    return Err(Self::unsuitable(
                        place,
                        format!(
                            "its images are with the daemon that has its data in {}, and the one at {} has it in {root}: \
                             name the right one with --docker-host",
                            known.trim_end(),
                            self.client.socket().display()
                        ),
                    ));
                }
                None => place.replace(FILE, &format!("{root}\n"), true)?,
            }
            *checked = true;
        }
        Ok(&self.client)
    }

    /// Makes a container for the slot and notes it there.
    fn container(
        &self,
        place: &Place,
        slot: &str,
        facts: &mut Facts,
        image: Option<String>,
    ) -> Result<obuild_docker::Tree, Error> {
        let fail = |error| place.error("use docker for", slot, error);
        let client = self.client(place)?;
        // drafts/OWNER/ID.N
        let mut parts = slot.rsplit('/');
        let (own, owner) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let (id, number) = own.split_once('.').unwrap_or((own, ""));
        let mut name = format!(
            "{}-{owner}-{}.{number}",
            repository(place),
            &id[..id.len().min(12)]
        );
        if !facts.containers.is_empty() {
            name.push_str("-squashed");
        }
        facts.containers.push(name.clone());
        facts.write(place, slot)?;
        let label = |key: &str, value: &str| (format!("obuild.{key}"), value.to_owned());
        let container = Container {
            name: name.clone(),
            image,
            // What `docker run` of the image starts when nothing is named.
            argv: vec!["/bin/sh".to_owned()],
            labels: vec![
                label("store", &home(place)),
                label("draft", &name),
                label("step", id),
            ],
            ..Container::default()
        };
        client.create_container(&container).map_err(fail)?;
        client.container_tree(&name).map_err(fail)
    }

    /// Makes an image of a container whose own files are in `upper`, and has the image's layer be these very files.
    ///
    /// A docker archive holds times in whole seconds, no attributes of users, and no path longer than the kernel takes at once;
    /// the layer that docker unpacks from it is exchanged for the directory that it packed. A layer that was there already,
    /// since its archive is the same to the byte, stays what it is.
    fn image(
        &self,
        place: &Place,
        slot: &str,
        container: &str,
        upper: &Path,
    ) -> Result<(String, Vec<PathBuf>), Error> {
        let fail = |error| place.error("use docker for", slot, error);
        let client = self.client(place)?;
        let image = client.commit(container).map_err(fail)?;
        let mut made = client.image_tree(&image).map_err(fail)?;
        let layer = open(&made.upper)?;
        rustix::fs::flock(&layer, FlockOperation::LockExclusive)
            .map_err(|errno| Error::io("lock", &made.upper, errno))?;
        if rustix::fs::fgetxattr(&layer, ADOPTED, &mut [0; 1][..]) == Err(Errno::NODATA) {
            let own = open(upper)?;
            rustix::fs::fsetxattr(&own, ADOPTED, b"y", XattrFlags::empty())
                .and_then(|()| {
                    let flags = RenameFlags::EXCHANGE;
                    rustix::fs::renameat_with(CWD, upper, CWD, &made.upper, flags)
                })
                .map_err(|errno| Error::io("exchange", upper, errno))?;
        }
        made.lower.insert(0, made.upper);
        Ok((image, made.lower))
    }

    /// Makes one layer of all that a deep draft consists of. Returns its container and where that has its files.
    fn squash(
        &self,
        place: &Place,
        slot: &str,
        facts: &mut Facts,
        upper: &Path,
    ) -> Result<(String, PathBuf), Error> {
        let made = self.container(place, slot, facts, None)?;
        let layers = facts.layers.iter().rev().map(PathBuf::as_path);
        for layer in layers.chain([upper]) {
            tree::merge(open(layer)?, open(&made.upper)?, tree::Whiteouts::Drop)
                .map_err(|errno| Error::io("squash", layer, errno))?;
        }
        copy_top(upper, &made.upper)?;
        let name = facts.containers.last().expect("it was just added").clone();
        Ok((name, made.upper))
    }

    /// Removes what the facts name from the daemon.
    fn discard(&self, place: &Place, slot: &str, facts: &Facts) -> Result<(), Error> {
        let fail = |error| place.error("use docker for", slot, error);
        let client = self.client(place)?;
        for container in &facts.containers {
            let remove = || client.remove_container(container);
            insist(remove, facts.upper.as_deref()).map_err(fail)?;
            // An image has no name, and is not written down, between its making and its owner's next two acts.
            let made = client.images(&format!("obuild.draft={container}"));
            for image in made.map_err(fail)? {
                if image.names.is_empty() {
                    client.remove_image(&image.id).map_err(fail)?;
                }
            }
        }
        let Some(image) = &facts.image else {
            return Ok(());
        };
        // By its name: somebody may have given it another, and then it is theirs. The name may be another image's by now, of a step
        // that was run again.
        if let Some(name) = &facts.name
            && client.image_id(name).map_err(fail)?.as_ref() == Some(image)
        {
            let remove = || client.remove_image(name);
            return insist(remove, facts.layers.first().map(PathBuf::as_path)).map_err(fail);
        }
        let found = client.images(&of_store(place)).map_err(fail)?;
        if found
            .iter()
            .any(|found| found.id == *image && found.names.is_empty())
        {
            client.remove_image(image).map_err(fail)?;
        }
        Ok(())
    }

    /// Returns the facts of all slots in a directory of the store, or one below.
    fn facts_in(place: &Place, directory: &str, depth: u32) -> Result<Vec<Facts>, Error> {
        let mut all: Vec<Facts> = Facts::read(place, directory)?.into_iter().collect();
        if all.is_empty() && depth > 0 {
            for name in place.names(directory)? {
                all.extend(Self::facts_in(
                    place,
                    &format!("{directory}/{name}"),
                    depth - 1,
                )?);
            }
        }
        Ok(all)
    }

    /// Returns a descriptor of the daemon's data directory.
    fn data(&self, place: &Place) -> Result<OwnedFd, Error> {
        match place.read(FILE)? {
            Some(root) => open(Path::new(root.trim_end())),
            // No tree was made yet.
            None => open(&self.root(place)?),
        }
    }
}

/// Returns the label of all that belongs to a store.
fn of_store(place: &Place) -> String {
    format!("obuild.store={}", home(place))
}

/// Removes something; when the daemon cannot, for example because of a file that a build made immutable, its files go first.
fn insist(
    remove: impl Fn() -> Result<(), obuild_docker::Error>,
    files: Option<&Path>,
) -> Result<(), obuild_docker::Error> {
    let error = match remove() {
        Err(error @ obuild_docker::Error::Refused { status: 500, .. }) => error,
        result => return result,
    };
    let Some((directory, name)) = files.and_then(|path| {
        Some((
            path.parent()?,
            CString::new(path.file_name()?.as_bytes()).ok()?,
        ))
    }) else {
        return Err(error);
    };
    match tree::open(CWD, directory).and_then(|parent| tree::remove(parent.as_fd(), &name, None)) {
        Ok(()) => remove(),
        Err(_) => Err(error),
    }
}

impl Trees for Docker {
    fn kind(&self) -> Kind {
        Kind::Docker
    }

    fn probe(&self, place: &Place) -> Result<(), Error> {
        // Caches are overlays in the store's directory, and a draft is mounted as one.
        Overlay.probe(place).map_err(|error| match error {
            Error::Unsuitable { path, reason, .. } => Error::Unsuitable {
                path,
                kind: Kind::Docker.name(),
                reason,
            },
            other => other,
        })?;
        self.root(place).map(drop)
    }

    fn layers(&self) -> Option<Layers> {
        None
    }

    fn create(&self, place: &Place, slot: &str, below: &[String]) -> Result<Rootfs, Error> {
        let parent = match below.first() {
            Some(name) => Facts::of_tree(place, name)?,
            None => Facts::default(),
        };
        let mut facts = Facts {
            layers: parent.layers,
            ..Facts::default()
        };
        let made = self.container(place, slot, &mut facts, parent.image)?;
        facts.upper = Some(made.upper.clone());
        facts.write(place, slot)?;
        place.make_directory(&format!("{slot}/fs"), 0o755)?;
        let Some(below) = below.first() else {
            // Whatever the umask is.
            rustix::fs::chmodat(
                CWD,
                &made.upper,
                Mode::from_raw_mode(0o755),
                AtFlags::empty(),
            )
            .map_err(|errno| Error::io("set the mode of", &made.upper, errno))?;
            return Ok(Rootfs::Directory(made.upper));
        };
        copy_top(&place.path(below), &made.upper)?;
        Ok(Rootfs::Overlay(OverlayMount {
            lower: facts.layers,
            upper: Some(Upper {
                upper: made.upper,
                work: made.work,
            }),
            points: None,
        }))
    }

    fn destroy(&self, place: &Place, name: &str) -> Result<(), Error> {
        if let Some(facts) = Facts::read(place, name)? {
            self.discard(place, name, &facts)?;
        } else {
            // The directory of an owner, or a cache.
            for slot in place.names(name)? {
                let slot = format!("{name}/{slot}");
                if let Some(facts) = Facts::read(place, &slot)? {
                    self.discard(place, &slot, &facts)?;
                }
            }
        }
        trees::destroy(place, name, None)
    }

    fn size(&self, place: &Place, name: &str, _parent: Option<&str>) -> Result<u64, Error> {
        let facts = Facts::read(place, slot_of(name))?.unwrap_or_default();
        let Some(layer) = facts.layers.first() else {
            return Ok(0);
        };
        tree::size(open(layer)?).map_err(|errno| Error::io("measure", layer, errno))
    }

    fn readable(&self, place: &Place, layers: &[String]) -> Result<Rootfs, Error> {
        let mut lower: Vec<PathBuf> = layers.iter().map(|layer| place.path(layer)).collect();
        for layer in layers {
            lower.extend(Facts::of_tree(place, layer)?.layers);
        }
        Ok(Rootfs::Overlay(OverlayMount {
            lower,
            upper: None,
            points: None,
        }))
    }

    /// Makes the image.
    fn finish(
        &self,
        place: &Place,
        slot: &str,
        _parent: Option<&str>,
        id: Option<SnapshotId>,
    ) -> Result<(), Error> {
        let id = id.expect("caches are kept another way");
        let fail = |error| place.error("use docker for", slot, error);
        let mut facts = Facts::read(place, slot)?.unwrap_or_default();
        let upper = facts.upper.clone().unwrap_or_default();
        copy_top(&upper, &place.path(&format!("{slot}/fs")))?;
        settle(&upper)?;
        let name = facts.containers.first().cloned().unwrap_or_default();
        let (container, files) = if facts.layers.len() < DEEPEST {
            (name, upper)
        } else {
            self.squash(place, slot, &mut facts, &upper)?
        };
        let (image, layers) = self.image(place, slot, &container, &files)?;
        let (repository, tag) = (repository(place), id.to_string());
        let sealed = Facts {
            image: Some(image.clone()),
            name: Some(format!("{repository}:{tag}")),
            layers,
            ..facts
        };
        sealed.write(place, slot)?;
        let client = self.client(place)?;
        client.tag_image(&image, &repository, &tag).map_err(fail)?;
        for container in &sealed.containers {
            client.remove_container(container).map_err(fail)?;
        }
        let done = Facts {
            containers: Vec::new(),
            upper: None,
            ..sealed
        };
        done.write(place, slot)
    }

    fn is_there(&self, place: &Place, name: &str) -> Result<bool, Error> {
        let facts = Facts::read(place, slot_of(name))?.unwrap_or_default();
        // Only the topmost can be missing: docker keeps what others stand on. Without an image they are the parent's.
        Ok(facts.image.is_some()
            && place.exists(name)?
            && facts.layers.first().is_some_and(|layer| layer.is_dir()))
    }

    fn space(&self, place: &Place) -> Result<Space, Error> {
        let statvfs = rustix::fs::fstatvfs(self.data(place)?)
            .map_err(|errno| place.error("look at the images of", ".", errno))?;
        Ok(Space {
            total: statvfs.f_blocks * statvfs.f_frsize,
            available: statvfs.f_bavail * statvfs.f_frsize,
        })
    }

    fn sync(&self, place: &Place) -> Result<(), Error> {
        // Often both are on one file system, and the second costs nothing.
        rustix::fs::syncfs(place.descriptor())
            .map_err(|errno| place.error("write out", ".", errno))?;
        rustix::fs::syncfs(self.data(place)?)
            .map_err(|errno| place.error("write out the images of", ".", errno))
    }

    fn strays(&self, place: &Place, delete: bool) -> Result<usize, Error> {
        if place.read(FILE)?.is_none() {
            return Ok(0);
        }
        let fail = |error| place.error("use docker for", ".", error);
        let client = self.client(place)?;
        let label = of_store(place);
        let ours = format!("{}:", repository(place));
        let images = client.images(&label).map_err(fail)?;
        let containers = client.containers(&label).map_err(fail)?;
        // In the order in which a slot goes through them, after the listing: none is missed on its way.
        let mut known = Vec::new();
        for (directory, depth) in [("drafts", 2), ("snapshots", 1), ("trash", 3)] {
            known.extend(Self::facts_in(place, directory, depth)?);
        }
        let is_known = |container: &String| {
            let mut all = known.iter().flat_map(|facts| &facts.containers);
            all.any(|known| known == container)
        };
        let mut images: Vec<_> = images
            .into_iter()
            // Images that others have built on ours carry our labels.
            .filter(|image| {
                image.names.is_empty() || image.names.iter().any(|name| name.starts_with(&ours))
            })
            // One that was just made is not written down yet.
            .filter(|image| !image.labels.get("obuild.draft").is_some_and(is_known))
            .filter(|image| {
                let mut all = known.iter().filter_map(|facts| facts.image.as_ref());
                !all.any(|known| *known == image.id)
            })
            .collect();
        let containers: Vec<_> = containers
            .into_iter()
            .filter(|name| !is_known(name))
            .collect();
        let found = images.len() + containers.len();
        if !delete {
            return Ok(found);
        }
        for container in &containers {
            client.remove_container(container).map_err(fail)?;
        }
        // Those that others stand on go after them.
        loop {
            let before = images.len();
            let mut rest = Vec::new();
            for image in images {
                let name = image.names.iter().find(|name| name.starts_with(&ours));
                match client.remove_image(name.unwrap_or(&image.id)) {
                    Ok(()) => {}
                    Err(error) if error.is_conflict() => rest.push(image),
                    Err(error) => return Err(fail(error)),
                }
            }
            if rest.is_empty() || rest.len() == before {
                return Ok(found);
            }
            images = rest;
        }
    }

    fn for_caches(&self) -> Option<&dyn Trees> {
        Some(&Overlay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_read_back_as_written() {
        let facts = Facts {
            containers: vec!["a".to_owned(), "a-squashed".to_owned()],
            upper: Some("/var/lib/docker/overlay2/x y/diff".into()),
            image: Some("sha256:00".to_owned()),
            name: Some("obuild-0123456:ab".to_owned()),
            layers: vec!["/top".into(), "/bottom".into()],
        };
        assert_eq!(Facts::parse(&facts.to_text()), facts);
        assert_eq!(
            Facts::parse(
                "nonsense
"
            ),
            Facts::default()
        );
    }
}
