// SPDX-License-Identifier: Apache-2.0
//! Builds on the store and the sandbox that are made for tests: what is shared, cancelled, cached, removed.

use crate::{BuildResult, Engine, Error, Event, NoCache, Outcome, PruneOptions, Settings};
use bstr::BString;
use obuild_images::Resolved;
use obuild_sandboxes::{Cancel, Command, Exit, Features, Limits, Rootfs, Sandbox, Stdio};
use obuild_specs::{Network, Node, Operation, Plan, Run, StepId, User};
use obuild_stores::Memory;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Does what a step's words say, without isolating anything: `write NAME TEXT`, `say TEXT`, `fail STATUS`, or `wait`
/// until the test lets it go.
#[derive(Default)]
struct Words {
    runs: AtomicUsize,
    running: AtomicUsize,
    most: AtomicUsize,
    go: AtomicBool,
    ended: Mutex<Vec<Exit>>,
}

impl Sandbox for Words {
    fn name(&self) -> &'static str {
        "words"
    }

    fn features(&self) -> Features {
        Features::default()
    }

    fn run(
        &self,
        command: &Command,
        rootfs: &Rootfs,
        stdio: Stdio<'_>,
        cancel: &Cancel,
    ) -> Result<Exit, obuild_sandboxes::Error> {
        self.runs.fetch_add(1, Ordering::SeqCst);
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(running, Ordering::SeqCst);
        let Rootfs::Directory(root) = rootfs else {
            panic!("the store for tests has directories")
        };
        let Stdio::Capture(sink) = stdio else {
            panic!("steps are captured")
        };
        let words: Vec<String> = command.argv.iter().map(ToString::to_string).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let exit = match words.as_slice() {
            ["write", name, text] => {
                fs_err::write(root.join(name), text).unwrap();
                Exit::Status(0)
            }
            ["say", text] => {
                sink(text.as_bytes());
                Exit::Status(0)
            }
            ["fail", status] => Exit::Status(status.parse().unwrap()),
            ["wait"] => {
                sink(b"waiting\n");
                loop {
                    if cancel.is_cancelled() {
                        break Exit::Cancelled;
                    }
                    if self.go.load(Ordering::SeqCst) {
                        break Exit::Status(0);
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            words => panic!("{words:?}"),
        };
        self.running.fetch_sub(1, Ordering::SeqCst);
        self.ended.lock().unwrap().push(exit);
        Ok(exit)
    }
}

struct World {
    engine: Arc<Engine>,
    words: Arc<Words>,
    base: Arc<Resolved>,
    _directory: TempDir,
}

impl World {
    async fn new(jobs: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let words = Arc::new(Words::default());
        let store = Arc::new(Memory::create(directory.path()).unwrap());
        let engine = Engine::open(store, Arc::<Words>::clone(&words), jobs).unwrap();
        let base = engine
            .resolve(
                "scratch",
                directory.path(),
                obuild_images::Tools::default(),
                &CancellationToken::new(),
            )
            .await
            .unwrap();
        Self {
            engine,
            words,
            base: Arc::new(base),
            _directory: directory,
        }
    }

    /// A plan of one chain of steps on `scratch`.
    fn chain(&self, steps: &[&str]) -> Plan {
        let mut nodes = vec![node(Operation::Base {
            reference: "scratch".to_owned(),
            id: StepId::from_digest(*self.base.id.as_bytes()),
        })];
        for (parent, step) in steps.iter().enumerate() {
            nodes.push(node(Operation::Run {
                parent,
                run: run(step),
            }));
        }
        Plan {
            target: nodes.len() - 1,
            nodes,
            names: Vec::new(),
            surroundings: HashMap::new(),
        }
    }

    fn start(&self, plan: Plan, no_cache: NoCache) -> Started {
        let cancel = CancellationToken::new();
        let (sender, events) = mpsc::channel(1024);
        let engine = Arc::clone(&self.engine);
        let bases = HashMap::from([("scratch".to_owned(), Arc::clone(&self.base))]);
        let token = cancel.clone();
        let settings = Settings {
            context: PathBuf::from("/"),
            secrets: HashMap::new(),
            limits: Limits::default(),
            fast_sync: false,
            no_new_privs: false,
            elsewhere: false,
            keep_failed: false,
            no_cache,
            replay: true,
            imports: Vec::new(),
        };
        let task =
            tokio::spawn(async move { engine.build(plan, bases, settings, sender, token).await });
        Started {
            task,
            events,
            cancel,
            text: Vec::new(),
            outcomes: Vec::new(),
        }
    }

    async fn build(&self, steps: &[&str]) -> Result<BuildResult, Error> {
        self.start(self.chain(steps), NoCache::Never)
            .task
            .await
            .unwrap()
    }

    fn read(&self, result: &BuildResult, name: &str) -> String {
        let snapshot = self.engine.store().get(result.snapshot).unwrap().unwrap();
        let obuild_stores::Rootfs::Directory(root) = snapshot.rootfs else {
            panic!("a directory")
        };
        fs_err::read_to_string(root.join(name)).unwrap()
    }

    async fn running(&self, count: usize) {
        while self.words.running.load(Ordering::SeqCst) != count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

struct Started {
    task: tokio::task::JoinHandle<Result<BuildResult, Error>>,
    events: mpsc::Receiver<Event>,
    cancel: CancellationToken,
    /// What has come so far.
    text: Vec<u8>,
    outcomes: Vec<Outcome>,
}

impl Started {
    /// Takes the next event; `false` when there is none any more.
    async fn event(&mut self) -> bool {
        match self.events.recv().await {
            Some(Event::StepOutput { data, .. }) => self.text.extend(data),
            Some(Event::StepFinished { outcome, .. }) => self.outcomes.push(outcome),
            Some(_) => {}
            None => return false,
        }
        true
    }

    /// Waits until a step of it has said something: then the build takes part in that step.
    async fn says_something(&mut self) {
        while self.text.is_empty() {
            assert!(self.event().await, "it has ended without a word");
        }
    }

    async fn output(mut self) -> (Result<BuildResult, Error>, String, Vec<Outcome>) {
        while self.event().await {}
        (
            self.task.await.unwrap(),
            String::from_utf8(self.text).unwrap(),
            self.outcomes,
        )
    }
}

fn node(operation: Operation) -> Node {
    let heading = match &operation {
        Operation::Run { run, .. } => bstr::join(" ", &run.argv),
        _ => b"base".to_vec(),
    };
    Node {
        operation,
        heading: String::from_utf8(heading).unwrap(),
        preamble: Vec::new(),
        build: Vec::new(),
        span: 0..0,
    }
}

fn run(words: &str) -> Run {
    Run {
        argv: words.split(' ').map(BString::from).collect(),
        env: Vec::new(),
        user: User::Ids { uid: 0, gid: 0 },
        workdir: BString::from("/"),
        network: Network::None,
        caches: Vec::new(),
        secrets: Vec::new(),
    }
}

#[tokio::test]
async fn steps_run_once_and_are_told_again() {
    let world = World::new(1).await;
    let steps = ["write a one", "say hello", "write b two"];
    let (first, said, outcomes) = world
        .start(world.chain(&steps), NoCache::Never)
        .output()
        .await;
    let first = first.unwrap();
    assert_eq!((first.built, first.cached, said.as_str()), (4, 0, "hello"));
    assert_eq!(outcomes, [Outcome::Built; 4]);
    let (second, said, outcomes) = world
        .start(world.chain(&steps), NoCache::Never)
        .output()
        .await;
    let second = second.unwrap();
    assert_eq!(
        (second.built, second.cached, said.as_str()),
        (0, 4, "hello")
    );
    assert_eq!(outcomes, [Outcome::Cached; 4]);
    assert_eq!(second.snapshot, first.snapshot);
    assert_eq!(world.words.runs.load(Ordering::SeqCst), 3);
    assert_eq!(
        world.read(&second, "a") + &world.read(&second, "b"),
        "onetwo"
    );
}

#[tokio::test]
async fn builds_share_a_step_in_flight_and_see_all_of_its_log() {
    let world = World::new(4).await;
    let one = world.start(world.chain(&["wait"]), NoCache::Never);
    world.running(1).await;
    let mut others: Vec<_> = (0..5)
        .map(|_| world.start(world.chain(&["wait"]), NoCache::Never))
        .collect();
    for started in &mut others {
        started.says_something().await;
    }
    world.words.go.store(true, Ordering::SeqCst);
    for started in [one].into_iter().chain(others) {
        let (result, said, _) = started.output().await;
        result.unwrap();
        assert_eq!(said, "waiting\n");
    }
    assert_eq!(world.words.runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_step_goes_on_while_anybody_wants_it() {
    let world = World::new(4).await;
    let mut builds: Vec<_> = (0..5)
        .map(|_| world.start(world.chain(&["wait"]), NoCache::Never))
        .collect();
    for started in &mut builds {
        started.says_something().await;
    }
    let last = builds.pop().unwrap();
    for started in builds {
        started.cancel.cancel();
        let (result, _, _) = started.output().await;
        assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    }
    assert_eq!(
        world.words.running.load(Ordering::SeqCst),
        1,
        "one build still wants it"
    );
    last.cancel.cancel();
    let (result, _, _) = last.output().await;
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    assert_eq!(
        *world.words.ended.lock().unwrap(),
        [Exit::Cancelled],
        "it has ended when the build has"
    );
    assert!(
        world.engine.store().list().unwrap().len() <= 1,
        "nothing but the base is there"
    );
}

#[tokio::test]
async fn who_comes_while_a_step_is_cancelled_runs_it_anew() {
    let world = World::new(4).await;
    let one = world.start(world.chain(&["wait"]), NoCache::Never);
    world.running(1).await;
    one.cancel.cancel();
    let two = world.start(world.chain(&["wait"]), NoCache::Never);
    assert!(matches!(one.output().await.0, Err(Error::Cancelled)));
    world.words.go.store(true, Ordering::SeqCst);
    two.output().await.0.unwrap();
}

#[tokio::test]
async fn a_failure_is_told_to_all_and_not_kept() {
    let world = World::new(2).await;
    for _ in 0..2 {
        let error = world
            .build(&["write a one", "fail 7", "write b two"])
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "fail 7: exit status 7");
        assert_eq!(error.kind(), crate::Kind::Build);
    }
    assert_eq!(
        world.words.runs.load(Ordering::SeqCst),
        3,
        "what went well before is cached"
    );
}

#[tokio::test]
async fn no_more_than_the_jobs_run_at_once() {
    let world = World::new(2).await;
    let builds: Vec<_> = (0..6)
        .map(|n| {
            world.start(
                world.chain(&[&format!("write a {n}"), "wait"]),
                NoCache::Never,
            )
        })
        .collect();
    world.running(2).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    world.words.go.store(true, Ordering::SeqCst);
    for started in builds {
        started.output().await.0.unwrap();
    }
    assert_eq!(world.words.most.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_step_run_again_replaces_the_result_for_later_builds() {
    let world = World::new(1).await;
    let steps = ["write a one", "write b two"];
    let first = world.build(&steps).await.unwrap();
    let again = world
        .start(world.chain(&steps), NoCache::From(2))
        .output()
        .await
        .0
        .unwrap();
    assert_eq!((again.built, again.cached), (1, 2));
    assert_eq!(again.step, first.step);
    assert_ne!(again.snapshot, first.snapshot);
    assert_eq!(world.build(&steps).await.unwrap().snapshot, again.snapshot);
    assert_eq!(
        world.engine.find(&first.step.to_string()).await.unwrap(),
        again.snapshot
    );
}

#[tokio::test]
async fn pruning_goes_from_the_leaves() {
    let world = World::new(1).await;
    world.build(&["write a one", "write b two"]).await.unwrap();
    world
        .build(&["write a one", "write c three"])
        .await
        .unwrap();
    let options = PruneOptions {
        dry_run: true,
        ..PruneOptions::default()
    };
    let pruned = world.engine.prune(options, |_, _| true).await.unwrap();
    let headings: Vec<_> = pruned
        .steps
        .iter()
        .map(|step| step.heading.as_str())
        .collect();
    assert_eq!(headings.len(), 4);
    assert_eq!(
        headings[2..],
        ["write a one", "base"],
        "what others stand on goes last"
    );
    assert_eq!(world.engine.steps().await.unwrap().len(), 4);
    world
        .engine
        .prune(PruneOptions::default(), |_, _| true)
        .await
        .unwrap();
    assert_eq!(world.engine.steps().await.unwrap().len(), 0);
    // And all of it can be built again.
    world.build(&["write a one", "write b two"]).await.unwrap();
}

#[tokio::test]
async fn a_step_that_others_stand_on_is_not_deleted_alone() {
    let world = World::new(1).await;
    let result = world.build(&["write a one", "write b two"]).await.unwrap();
    let parent = world
        .engine
        .store()
        .get(result.snapshot)
        .unwrap()
        .unwrap()
        .parent
        .unwrap();
    assert!(matches!(
        world.engine.delete(parent, false).await,
        Err(Error::HasChildren { count: 1, .. })
    ));
    assert_eq!(world.engine.delete(parent, true).await.unwrap().len(), 2);
    assert_eq!(world.engine.steps().await.unwrap().len(), 1);
}

#[tokio::test]
async fn ids_can_be_shortened() {
    let world = World::new(1).await;
    let result = world.build(&["write a one"]).await.unwrap();
    let id = result.snapshot.to_string();
    assert_eq!(world.engine.find(&id[..8]).await.unwrap(), result.snapshot);
    for wrong in ["", "abc", "zzzz", "0000000000000000"] {
        assert!(
            matches!(world.engine.find(wrong).await, Err(Error::NoSuchStep(_))),
            "{wrong}"
        );
    }
}
