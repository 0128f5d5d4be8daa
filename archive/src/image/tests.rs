// SPDX-License-Identifier: Apache-2.0
//! Images of archives that are made for it.

use super::stream::Reader;
use super::*;
use crate::cache::{self, Incoming};
use sha2::{Digest as _, Sha256};
use std::io::Read as _;
use tempfile::TempDir;

struct World {
    directory: TempDir,
    seed: u64,
}

impl World {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().expect("a directory"),
            seed: 1,
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Puts an archive of this size in.
    fn add(&mut self, size: usize) -> Vec<u8> {
        let cache = Cache::open(self.path()).expect("a cache");
        let mut data = Vec::with_capacity(size + 8);
        while data.len() < size {
            self.seed = self
                .seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            data.extend_from_slice(&self.seed.to_le_bytes());
        }
        data.truncate(size);
        let mut incoming: Incoming = cache.receive(false).expect("room");
        incoming.write(&data).expect("written");
        let added = cache.add(vec![incoming.finish().expect("complete")]);
        assert!(added[0].as_ref().expect("added").new);
        data
    }

    /// Puts this archive in again.
    fn put(&self, data: &[u8]) {
        let cache = Cache::open(self.path()).expect("a cache");
        let mut incoming = cache.receive(false).expect("room");
        incoming.write(data).expect("written");
        cache
            .add(vec![incoming.finish().expect("complete")])
            .remove(0)
            .expect("added");
    }

    /// Removes an archive under all of its names, as a collection does.
    fn remove(&self, data: &[u8]) {
        let cache = Cache::open(self.path()).expect("a cache");
        let sha512 = hex::encode(sha2::Sha512::digest(data));
        for entry in cache.walk().expect("a cache").files {
            if entry.names.iter().any(|name| name.digest() == sha512) {
                for name in &entry.names {
                    fs_err::remove_file(cache.path(name)).expect("removed");
                }
            }
        }
    }

    fn plan(&self) -> Plan {
        plan(self.path(), &ImageOptions::default()).expect("a plan")
    }

    fn make(&self) -> ArchiveImage {
        self.plan().make(&mut |_| false).expect("an image")
    }
}

fn bytes(layer: &BaseLayer) -> Vec<u8> {
    let mut bytes = Vec::new();
    layer
        .data
        .reader(layer.digest)
        .and_then(|mut reader| reader.read_to_end(&mut bytes))
        .expect("readable");
    bytes
}

#[test]
fn a_layer_is_what_its_digest_says_and_holds_every_name() {
    let mut world = World::new();
    let contents = [
        world.add(1),
        world.add(0),
        world.add(70_000),
        world.add(512),
    ];
    let image = world.make();
    assert_eq!(image.image.layers.len(), 1);
    let layer = &image.image.layers[0];
    let bytes = bytes(layer);
    assert_eq!(bytes.len() as u64, layer.size);
    assert_eq!(Digest::of(&bytes), layer.digest);
    let target = tempfile::tempdir().expect("a directory");
    tar::Archive::new(&bytes[..])
        .unpack(target.path())
        .expect("a tar archive");
    for content in contents {
        let sha256 = hex::encode(Sha256::digest(&content));
        let sha512 = hex::encode(sha2::Sha512::digest(&content));
        for (kind, digest) in [("sha256", sha256), ("sha512", sha512)] {
            let path = target
                .path()
                .join("srv/cache")
                .join(kind)
                .join(&digest[..2])
                .join(digest);
            assert_eq!(fs_err::read(path).expect("there"), content);
        }
    }
}

#[test]
fn a_layer_can_be_read_from_any_place_on() {
    let mut world = World::new();
    for size in [3, 600, 1024] {
        world.add(size);
    }
    let image = world.make();
    let whole = bytes(&image.image.layers[0]);
    let plan = world.plan();
    let parts = &plan.layers[0].parts;
    for offset in (0..=whole.len()).step_by(7).chain([whole.len()]) {
        let mut rest = Vec::new();
        Reader::new(parts.pieces(&plan.places), offset as u64)
            .and_then(|mut reader| reader.read_to_end(&mut rest))
            .expect("readable");
        assert!(rest == whole[offset..], "from {offset} on");
    }
}

#[test]
fn what_is_new_becomes_one_small_layer_and_the_rest_stays() {
    let mut world = World::new();
    for _ in 0..20 {
        world.add(10_000);
    }
    let first = world.make();
    world.add(5_000);
    let plan = world.plan();
    assert_eq!(plan.new, (1, 5_000));
    let actions: Vec<Action> = plan.layers.iter().map(|layer| layer.action).collect();
    assert_eq!(actions, [Action::Keep, Action::Add]);
    let second = plan.make(&mut |_| false).expect("an image");
    assert_eq!(second.image.layers[0].digest, first.image.layers[0].digest);
    assert!(second.image.layers[1].size < 5_000 + 12_000, "{second:?}");
    assert_eq!(world.make().digest(), second.digest(), "nothing is new");
}

#[test]
fn layers_stay_few_and_lose_nothing() {
    let mut world = World::new();
    world.add(100_000);
    let base = world.make().image.layers[0].digest;
    for round in 1..=80_u64 {
        world.add(100 + usize::try_from(round % 7).expect("small") * 1000);
        let image = world.make();
        assert_eq!(image.image.layers[0].digest, base, "the first stays");
        assert!(image.image.layers.len() <= PACKS + 1);
    }
    let plan = world.plan();
    let archives: u64 = plan
        .layers
        .iter()
        .map(|layer| match layer.contents {
            Contents::Archives(number, ..) => number,
            _ => 0,
        })
        .sum();
    assert_eq!((archives, plan.new.0), (81, 0));
}

#[test]
fn archives_that_were_removed_leave_their_layer() {
    let mut world = World::new();
    let lost = world.add(2000);
    world.add(3000);
    world.make();
    let sha512 = hex::encode(sha2::Sha512::digest(&lost));
    let cache = Cache::open(world.path()).expect("a cache");
    let walked = cache.walk().expect("a cache").files;
    let entry = walked
        .iter()
        .find(|entry| entry.names.iter().any(|name| name.digest() == sha512))
        .expect("it is there");
    for name in &entry.names {
        fs_err::remove_file(cache.path(name)).expect("removed");
    }
    let plan = world.plan();
    assert_eq!(plan.layers[0].action, Action::Renew);
    let image = plan.make(&mut |_| false).expect("an image");
    assert_eq!(
        bytes(&image.image.layers[0]).len() as u64,
        image.image.layers[0].size
    );
}

/// Applies a layer to a tree, as those who pull it do (OCI image-spec v1.1 layer.md).
fn apply(layer: &[u8], root: &Path) {
    let names = || {
        let mut archive = tar::Archive::new(layer);
        let entries = archive.entries().expect("an archive");
        let name = |entry: io::Result<tar::Entry<'_, &[u8]>>| {
            let entry = entry.expect("an entry");
            entry.path().expect("a path").display().to_string()
        };
        entries.map(name).collect::<Vec<_>>()
    };
    let hides = |name: &str| {
        Some(root.join(name.replacen(".wh.", "", 1))).filter(|_| name.contains("/.wh."))
    };
    for hidden in names().iter().filter_map(|name| hides(name)) {
        // What is not there is hidden, too.
        let _ = fs_err::remove_file(hidden);
    }
    for name in names().iter().filter(|name| !name.ends_with('/')) {
        // What is there already is replaced.
        let _ = fs_err::remove_file(root.join(name));
    }
    tar::Archive::new(layer)
        .unpack(root)
        .expect("a tar archive");
    for name in names().iter().filter(|name| name.contains("/.wh.")) {
        fs_err::remove_file(root.join(name)).expect("no archive has such a name");
    }
}

fn tree(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs_err::read_dir(&directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                left.push(path);
            } else {
                let name = path.strip_prefix(root).expect("below").to_owned();
                files.insert(name, fs_err::read(&path).expect("a file"));
            }
        }
    }
    files
}

#[test]
fn what_gc_removes_is_hidden_and_the_first_layer_is_never_sent_again() {
    const PLACE: &str = "registry.test/archive:live";
    let mut world = World::new();
    let mut kept = Vec::new();
    let mut lost = Vec::new();
    for _ in 0..12 {
        kept.push(world.add(900));
    }
    let options = ImageOptions {
        places: vec![PLACE.to_owned()],
        ..ImageOptions::default()
    };
    // What the registry has, by digest.
    let mut registry: HashMap<Digest, Vec<u8>> = HashMap::new();
    let mut base = None;
    let mut most_hidden = 0;
    for turn in 0_usize..48 {
        let mut plan = plan(world.path(), &options).expect("a plan");
        for layer in &plan.layers {
            if let Contents::Archives(_, _, hidden) = layer.contents {
                most_hidden = most_hidden.max(hidden);
            }
        }
        plan.ledger.pushed.clear();
        let mut image = plan.make(&mut |_| false).expect("an image");
        let layers = &image.image.layers;
        assert!(layers.len() <= PACKS + 1, "{}", layers.len());
        let first = *base.get_or_insert(layers[0].digest);
        assert_eq!(layers[0].digest, first, "turn {turn}");
        for layer in layers {
            registry.entry(layer.digest).or_insert_with(|| bytes(layer));
        }
        if turn % 4 == 3 {
            let pulled = tempfile::tempdir().expect("a directory");
            for layer in layers {
                apply(&registry[&layer.digest], pulled.path());
            }
            let pulled = tree(&pulled.path().join("srv/cache"));
            let own = tree(&world.path().join("cache"));
            assert!(pulled == own, "turn {turn}: {} {}", pulled.len(), own.len());
        }
        let pushed = ledger::Pushed {
            manifest: image.digest().to_string(),
            layers: layers
                .iter()
                .map(|layer| layer.digest.to_string())
                .collect(),
            at: 0,
        };
        image.ledger.pushed.insert(PLACE.to_owned(), pushed);
        image.ledger.write(world.path()).expect("written");
        // Of the first ones and of later ones, some go; some come again.
        if turn % 3 == 0 {
            let content = kept.remove(turn * 7 % kept.len());
            world.remove(&content);
            lost.push(content);
        }
        if turn % 10 == 9 {
            let content = lost.remove(turn % lost.len());
            world.put(&content);
            kept.push(content);
        }
        kept.push(world.add(100 + turn * 37 % 700));
    }
    assert!(most_hidden > 0);
    // Whoever has none of it gets layers that can be made, and none that only hides.
    let plan = plan(world.path(), &ImageOptions::default()).expect("a plan");
    let hides = |layer: &PlannedLayer| matches!(layer.contents, Contents::Archives(0, 0, _));
    assert!(!plan.layers.iter().any(hides));
    let image = plan.make(&mut |_| false).expect("an image");
    let pulled = tempfile::tempdir().expect("a directory");
    for layer in &image.image.layers {
        apply(&bytes(layer), pulled.path());
    }
    assert!(tree(&pulled.path().join("srv/cache")) == tree(&world.path().join("cache")));
}

#[test]
fn the_index_has_a_time_that_grows_when_it_changes_and_only_then() {
    let mut world = World::new();
    world.add(10);
    let publish = |text: &str| {
        fs_err::write(world.path().join("index.tar.gz"), text).expect("written");
    };
    let commit = |time| {
        let mut state = State::read(world.path()).expect("a state");
        state.committed = Some(time);
        state.write(world.path(), None).expect("written");
    };
    let make = || {
        let image = world.make();
        let top = bytes(image.image.layers.last().expect("layers"));
        let mut archive = tar::Archive::new(&top[..]);
        let mut entries = archive
            .entries()
            .expect("an archive")
            .map(|entry| entry.expect("an entry"));
        let index = entries.find(|entry| entry.path().expect("a path").ends_with("index.tar.gz"));
        index
            .expect("it is there")
            .header()
            .mtime()
            .expect("a time")
    };
    publish("one");
    commit(5_000);
    assert_eq!(make(), 5_000);
    assert_eq!(make(), 5_000);
    // Another commit that changed nothing, and a change that no commit made.
    commit(6_000);
    assert_eq!(make(), 5_000);
    publish("two");
    assert_eq!(make(), 6_000);
    publish("six");
    assert_eq!(make(), 6_001);
    // Times of commits go back now and then.
    commit(4_000);
    publish("ten");
    assert_eq!(make(), 6_002);
    assert_eq!(make(), 6_002);
}

#[test]
fn a_damaged_archive_stops_it() {
    let mut world = World::new();
    let data = world.add(2000);
    let cache = Cache::open(world.path()).expect("a cache");
    let name = cache.walk().expect("a cache").files[0].names[0].clone();
    let mut damaged = data;
    damaged[7] ^= 1;
    fs_err::write(cache.path(&name), damaged).expect("written");
    let error = world.plan().make(&mut |_| false).expect_err("damage");
    assert!(matches!(error, ImageError::Damaged { .. }), "{error}");
    assert!(Ledger::read(world.path()).expect("none").packs.is_empty());
}

#[test]
fn a_lost_list_or_ledger_costs_a_layer_and_nothing_else() {
    let mut world = World::new();
    world.add(2000);
    let image = world.make();
    fs_err::remove_dir_all(world.path().join(".obuild/image/packs")).expect("removed");
    assert_eq!(world.make().digest(), image.digest());
    fs_err::write(world.path().join(".obuild/image/ledger.json"), "{").expect("written");
    assert_eq!(world.make().digest(), image.digest());
}

#[test]
fn the_index_the_site_the_program_and_what_never_changes_have_their_places() {
    let mut world = World::new();
    world.add(10);
    fs_err::write(world.path().join("repo"), "opam-version: \"2.0\"\n").expect("written");
    fs_err::write(world.path().join("index.tar.gz"), "index").expect("written");
    let other = tempfile::tempdir().expect("a directory");
    let old = other.path().join("old");
    fs_err::create_dir_all(old.join("1.1")).expect("made");
    fs_err::write(old.join("1.1/index.html"), "old").expect("written");
    std::os::unix::fs::symlink("1.1", old.join("latest")).expect("made");
    let program = other.path().join("program");
    fs_err::write(&program, "#!").expect("written");
    let options = ImageOptions {
        program: Some(program),
        legacy: Some(old.clone()),
        site: Some(old.clone()),
        ..ImageOptions::default()
    };
    let make = || {
        let plan = plan(world.path(), &options).expect("a plan");
        let kept = plan.layers[1].action == Action::Keep;
        (plan.make(&mut |_| false).expect("an image"), kept)
    };
    let (image, kept) = make();
    assert!(!kept);
    let mut names = Vec::new();
    for layer in &image.image.layers {
        let bytes = bytes(layer);
        let mut archive = tar::Archive::new(&bytes[..]);
        for entry in archive.entries().expect("an archive") {
            let entry = entry.expect("an entry");
            let name = entry.path().expect("a path").display().to_string();
            let is_top = ["srv/index.tar.gz", "srv/repo", "srv/www/1.1/index.html"];
            let is_dated = entry.header().mtime().expect("a time") > 1_700_000_000;
            assert_eq!(is_dated, is_top.contains(&name.as_str()), "{name}");
            names.push(name);
        }
    }
    for name in [
        "usr/bin/obuild",
        "srv/legacy/1.1/index.html",
        "srv/legacy/latest",
        "srv/www/1.1/index.html",
        "srv/index.tar.gz",
        "srv/repo",
    ] {
        assert!(
            names.iter().any(|found| found == name),
            "{name} in {names:?}"
        );
    }
    let (again, kept) = make();
    assert!(kept, "the directory is not read again");
    assert_eq!(again.digest(), image.digest());
    fs_err::write(old.join("1.1/index.html"), "new").expect("written");
    assert!(!make().1, "it did change");
}

#[test]
fn an_image_layout_has_this_image_alone() {
    let mut world = World::new();
    world.add(3000);
    let root = tempfile::tempdir().expect("a directory");
    world
        .make()
        .write_layout(root.path(), Some("live"))
        .expect("written");
    world.add(10);
    let image = world.make();
    image
        .write_layout(root.path(), Some("live"))
        .expect("written");
    let blobs = fs_err::read_dir(root.path().join("blobs/sha256"))
        .expect("blobs")
        .count();
    // Two layers, a configuration, a manifest.
    assert_eq!(blobs, 4);
    let reference = format!("oci:{}:live", root.path().display());
    let resolved = obuild_images::resolve(
        &reference.parse().expect("a reference"),
        &obuild_images::ResolveOptions {
            base_dir: root.path(),
            digests: &obuild_images::NoDigests,
            tools: obuild_images::Tools::default(),
            remembered: None,
            cancelled: &|| false,
        },
    )
    .expect("an image");
    let layers = resolved.layers().expect("layers");
    assert_eq!(layers.len(), 2);
    assert_eq!(layers[1].digest, image.image.layers[1].digest);
}

#[test]
fn an_index_in_parts_sends_what_changed_and_is_served_as_it_was() {
    use crate::index::{Fields, Index, Parts};
    use crate::repository::{Options, Repository};
    let mut world = World::new();
    world.add(1000);
    let source = tempfile::tempdir().expect("a directory");
    let package = |number: u32, text: &str| {
        let directory = source
            .path()
            .join(format!("packages/p{number}/p{number}.1"));
        fs_err::create_dir_all(&directory).expect("made");
        fs_err::write(
            directory.join("opam"),
            format!("{text}{number}").repeat(200),
        )
        .expect("written");
    };
    let publish = |root: &Path| {
        let state = cache::private(root).join("index");
        let location = source.path().to_str().expect("text");
        let kept = cache::private(root).join("repository");
        let mut repository = Repository::open(location, &kept, Options::default()).expect("opened");
        let commit = repository.head().expect("a head");
        let cancel = tokio_util::sync::CancellationToken::new();
        let (index, _) = Index::update(
            &state,
            &mut repository,
            &commit,
            &Fields::default(),
            None,
            &cancel,
        )
        .expect("updated");
        index.publish(root).expect("published");
        fs_err::read(root.join("index.tar.gz")).expect("read")
    };
    let options = ImageOptions {
        parts: true,
        ..ImageOptions::default()
    };
    let mut length = 0;
    let mut last: Option<ArchiveImage> = None;
    for turn in 0..60 {
        for number in 0..(if turn == 0 { 400 } else { 1 }) {
            package(number * 7 + turn, &format!("synopsis: \"turn {turn}\" # "));
        }
        let file = publish(world.path());
        let image = plan(world.path(), &options)
            .and_then(|plan| plan.make(&mut |_| false))
            .expect("an image");
        assert!(
            image.image.layers.len() <= PACKS + 2,
            "{}",
            image.image.layers.len()
        );
        if let Some(last) = last {
            assert_eq!(
                last.image.layers[0].digest, image.image.layers[0].digest,
                "the first stays"
            );
        }
        let unpacked = tempfile::tempdir().expect("a directory");
        for layer in &image.image.layers {
            let bytes = bytes(layer);
            assert_eq!(Digest::of(&bytes), layer.digest);
            tar::Archive::new(&bytes[..])
                .unpack(unpacked.path())
                .expect("a tar archive");
        }
        let root = unpacked.path().join("srv");
        assert!(!root.join("index.tar.gz").exists());
        let mut served = Vec::new();
        Parts::open(&root.join("index"))
            .and_then(|parts| parts.write(&mut served))
            .expect("whole");
        assert!(served == file, "turn {turn}");
        length = file.len();
        last = Some(image);
    }
    let kept = fs_err::read_dir(world.path().join(".obuild/image/index")).expect("parts");
    let known = Index::published(world.path())
        .expect("read")
        .expect("known");
    assert!(kept.count() < known.parts().len() * 4, "old parts go");
    // Something else made the index: it goes as it is.
    fs_err::write(world.path().join("index.tar.gz"), vec![0; length]).expect("written");
    let plan = plan(world.path(), &options).expect("a plan");
    assert!(plan.index.is_none());
}
