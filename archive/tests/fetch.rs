// SPDX-License-Identifier: Apache-2.0
//! Fetching from servers that behave and from those that do not.

use obuild_archive::cache::{Cache, Counters};
use obuild_archive::fetch::{FetchError, FetchOptions, Fetched, Fetcher};
use obuild_fixtures::PATIENCE;
use obuild_fixtures::server::{Behaviour, Server};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tempfile::TempDir;

struct Bench {
    server: Server,
    directory: TempDir,
    cache: Cache,
    options: FetchOptions,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        Self {
            server: Server::start(),
            cache: Cache::open(directory.path()).expect("room"),
            directory,
            options: FetchOptions {
                back_off: Duration::from_millis(10),
                longest_wait: Duration::from_secs(2),
                largest: 4 << 20,
                slowest: 100,
                ..FetchOptions::default()
            },
        }
    }

    fn fetcher(&self) -> (Fetcher, Arc<Counters>) {
        let counters = Arc::default();
        let fetcher = Fetcher::new(self.options.clone(), Arc::clone(&counters));
        (fetcher.expect("a client"), counters)
    }

    async fn fetch(&self, path: &str) -> Result<Fetched, FetchError> {
        let url = self.server.url(path);
        self.fetcher()
            .0
            .fetch(&url, false, &self.cache, false)
            .await
    }

    fn leftovers(&self) -> usize {
        let incoming = self.directory.path().join(".obuild/incoming");
        fs_err::read_dir(incoming).expect("it is there").count()
    }
}

fn data(length: usize) -> Vec<u8> {
    (0..length)
        .map(|index| u8::try_from(index * 31 % 251).expect("small"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_is_continued_where_it_broke_off() {
    let bench = Bench::new();
    let body = data(900_000);
    bench.server.put("/a", &body);
    bench
        .server
        .behave("/a", [Behaviour::Cut(300_000), Behaviour::Cut(200_000)]);
    let (client, counters) = bench.fetcher();
    let url = bench.server.url("/a");
    let fetched = client
        .fetch(&url, false, &bench.cache, false)
        .await
        .expect("in the end");
    assert_eq!(fetched.file.hashes().size(), 900_000);
    let mut whole = bench.cache.receive(false).expect("room");
    whole.write(&body).expect("room");
    assert_eq!(
        *whole.finish().expect("room").hashes(),
        *fetched.file.hashes()
    );
    let requests = bench.server.requests();
    assert_eq!(requests.len(), 3);
    assert_eq!(requests[1].headers["if-range"], "\"one\"");
    let start = |index: usize| {
        let range: &str = &requests[index].headers["range"];
        range["bytes=".len()..range.len() - 1]
            .parse::<u64>()
            .expect("a number")
    };
    assert!(start(1) > 0 && start(2) >= start(1));
    // Nothing came twice, but for what was lost on the way.
    assert!(counters.bytes.load(Ordering::Relaxed) <= 900_000 + 600_000);
    drop(fetched);
    assert_eq!(bench.leftovers(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_or_a_wrong_range_begins_anew() {
    for second in [Behaviour::Changed, Behaviour::WrongRange] {
        let bench = Bench::new();
        let body = data(500_000);
        bench.server.put("/a", &body);
        bench
            .server
            .behave("/a", [Behaviour::Cut(300_000), second.clone()]);
        let fetched = bench
            .fetch("/a")
            .await
            .unwrap_or_else(|error| panic!("{second:?}: {error}"));
        let mut whole = bench.cache.receive(false).expect("room");
        whole.write(&body).expect("room");
        assert_eq!(
            *whole.finish().expect("room").hashes(),
            *fetched.file.hashes(),
            "{second:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_process_goes_on_with_a_long_archive_if_it_is_the_same() {
    for second in [Behaviour::Good, Behaviour::Changed] {
        let mut bench = Bench::new();
        bench.options.attempts = 1;
        let body = data(3 << 20);
        bench.server.put("/a", &body);
        bench
            .server
            .behave("/a", [Behaviour::Cut(2 << 20), second.clone()]);
        bench.fetch("/a").await.expect_err("it is cut");
        assert_eq!(bench.leftovers(), 2, "the beginning and its note");
        // As a process that begins anew; one with another URL has nothing to do with it.
        bench.cache = Cache::open(bench.directory.path()).expect("room");
        bench.cache.recover().expect("it can be read");
        bench.server.put("/b", &body);
        let other = bench.fetch("/b").await.expect("it comes");
        assert!(!other.resumed);
        let fetched = bench.fetch("/a").await.expect("it comes");
        assert_eq!(fetched.file.hashes(), other.file.hashes(), "{second:?}");
        assert_eq!(fetched.resumed, matches!(second, Behaviour::Good));
        let last = bench.server.requests().pop().expect("one");
        assert_eq!(last.headers["if-range"], "\"one\"");
        let start: usize = last.headers["range"]["bytes=".len()..]
            .trim_end_matches('-')
            .parse()
            .expect("a number");
        assert!(start > 1 << 20 && start <= 2 << 20, "{start}");
        drop((fetched, other));
        assert_eq!(bench.leftovers(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn beginnings_without_a_use_are_removed() {
    let mut bench = Bench::new();
    bench.options.attempts = 1;
    bench.server.put("/a", &data(3 << 20));
    bench.server.always("/a", Behaviour::Cut(2 << 20));
    let incoming = bench.directory.path().join(".obuild/incoming");
    let recover = || {
        let cache = Cache::open(bench.directory.path()).expect("room");
        cache.recover().expect("it can be read");
    };
    let file = || {
        let mut entries = fs_err::read_dir(&incoming).expect("it is there");
        let path = entries.find_map(|entry| {
            let path = entry.expect("an entry").path();
            path.extension().is_none().then_some(path)
        });
        path.expect("a beginning")
    };
    bench.fetch("/a").await.expect_err("it is cut");
    recover();
    assert_eq!(bench.leftovers(), 2);
    // Nobody came for it in a week.
    let old = std::time::SystemTime::now() - Duration::from_hours(8 * 24);
    let opened = fs_err::File::options().write(true).open(file());
    opened
        .and_then(|file| file.set_modified(old))
        .expect("it is ours");
    recover();
    assert_eq!(bench.leftovers(), 0);
    // A note that says nothing.
    bench.fetch("/a").await.expect_err("it is cut");
    fs_err::write(file().with_extension("of"), "{").expect("room");
    recover();
    assert_eq!(bench.leftovers(), 0);
    // What the server does not have any more is of no use to anybody.
    bench.fetch("/a").await.expect_err("it is cut");
    bench.cache = Cache::open(bench.directory.path()).expect("room");
    bench.cache.recover().expect("it can be read");
    bench.server.always("/a", Behaviour::Status(404, None));
    bench.fetch("/a").await.expect_err("it is gone");
    assert_eq!(bench.leftovers(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_do_not_send_are_given_up() {
    let mut bench = Bench::new();
    // Elsewhere patience is as usual: a busy machine is no server that does not send.
    bench.options.stall_timeout = Duration::from_millis(400);
    bench.options.connect_timeout = Duration::from_secs(2);
    bench.options.attempts = 2;
    bench.server.put("/a", &data(100_000));
    for behaviour in [
        Behaviour::Stall(10),
        Behaviour::Crawl(Duration::from_millis(100)),
    ] {
        bench.server.always("/a", behaviour.clone());
        let error = bench.fetch("/a").await.expect_err("it never comes");
        assert!(
            matches!(error, FetchError::Stalled { .. }),
            "{behaviour:?}: {error}"
        );
    }
    bench
        .server
        .always("/a", Behaviour::Late(Duration::from_secs(10)));
    let error = bench.fetch("/a").await.expect_err("it never answers");
    assert!(
        matches!(error, FetchError::Stalled { bytes: 0, .. }),
        "{error}"
    );
    assert_eq!(bench.leftovers(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crawl_that_is_fast_enough_still_has_a_deadline() {
    let mut bench = Bench::new();
    bench.options.slowest = 1;
    bench.options.deadline = Duration::from_secs(1);
    bench.server.put("/a", &data(100_000));
    bench
        .server
        .always("/a", Behaviour::Crawl(Duration::from_millis(20)));
    let error = bench.fetch("/a").await.expect_err("it takes too long");
    assert!(matches!(error, FetchError::Deadline(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_larger_than_allowed_comes() {
    let bench = Bench::new();
    bench.server.put("/a", &data(100));
    bench.server.always("/a", Behaviour::Endless);
    let error = bench.fetch("/a").await.expect_err("it never ends");
    assert!(matches!(error, FetchError::TooLarge(_)), "{error}");
    bench.server.always("/a", Behaviour::Promise(1 << 40));
    let error = bench.fetch("/a").await.expect_err("a terabyte");
    assert!(matches!(error, FetchError::TooLarge(_)), "{error}");
    assert_eq!(bench.server.hits("/a"), 2, "it is not tried again");
    assert_eq!(bench.leftovers(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_pass_is_tried_again_and_what_may_not_is_not() {
    let bench = Bench::new();
    bench.server.put("/a", b"here");
    let busy = |status| Behaviour::Status(status, None);
    bench.server.behave("/a", [busy(503), busy(500), busy(429)]);
    assert_eq!(
        bench
            .fetch("/a")
            .await
            .expect("then it comes")
            .file
            .hashes()
            .size(),
        4
    );
    assert_eq!(bench.server.hits("/a"), 4);

    bench.server.always("/b", busy(502));
    let error = bench.fetch("/b").await.expect_err("it never comes");
    assert_eq!(error.to_string(), "the server answers 502 Bad Gateway");
    assert_eq!(bench.server.hits("/b"), 4);
    for status in [404, 403, 410, 501] {
        let path = format!("/{status}");
        bench.server.always(&path, busy(status));
        bench.fetch(&path).await.expect_err("it is not there");
        assert_eq!(bench.server.hits(&path), 1, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_honoured_or_left_for_another_day() {
    let bench = Bench::new();
    bench.server.put("/a", b"here");
    bench
        .server
        .behave("/a", [Behaviour::Status(429, Some("1".to_owned()))]);
    let begun = Instant::now();
    bench.fetch("/a").await.expect("then it comes");
    assert!(begun.elapsed() >= Duration::from_secs(1));
    bench
        .server
        .behave("/a", [Behaviour::Status(503, Some("3600".to_owned()))]);
    let begun = Instant::now();
    let error = bench.fetch("/a").await.expect_err("not today");
    assert!(begun.elapsed() < PATIENCE);
    assert_eq!(error.retry_after(), Some(Duration::from_hours(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_followed_but_not_round_and_round_or_to_files() {
    let bench = Bench::new();
    bench.server.put("/a", b"here");
    bench
        .server
        .always("/moved", Behaviour::Redirect("/a".to_owned()));
    bench.fetch("/moved").await.expect("it is elsewhere");
    bench
        .server
        .always("/loop", Behaviour::Redirect("/loop".to_owned()));
    let error = bench.fetch("/loop").await.expect_err("it is nowhere");
    assert!(matches!(error, FetchError::Redirects), "{error}");
    let file = bench.directory.path().join("secret");
    fs_err::write(&file, "secret").expect("room");
    let url = format!("file://{}", file.display());
    bench
        .server
        .always("/file", Behaviour::Redirect(url.clone()));
    bench
        .fetch("/file")
        .await
        .expect_err("a server has no business there");
    // A repository from elsewhere neither; what the user names is fine, but for pipes.
    let (client, _) = bench.fetcher();
    let refused = client.fetch(&url, false, &bench.cache, false).await;
    assert!(matches!(refused, Err(FetchError::FilesForbidden)));
    let fetched = client
        .fetch(&url, true, &bench.cache, false)
        .await
        .expect("it is there");
    assert_eq!(fetched.file.hashes().size(), 6);
    let null = client
        .fetch("file:///dev/zero", true, &bench.cache, false)
        .await;
    assert!(matches!(null, Err(FetchError::File(_))));
    let scheme = client
        .fetch("ftp://a.example/a", true, &bench.cache, false)
        .await;
    assert!(matches!(scheme, Err(FetchError::Scheme(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_host_gets_so_many_requests_and_no_more() {
    let mut bench = Bench::new();
    bench.options.per_host = 3;
    let (client, _) = bench.fetcher();
    let fetcher = Arc::new(client);
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..12 {
        let path = format!("/{index}");
        bench.server.put(&path, b"here");
        bench
            .server
            .always(&path, Behaviour::Late(Duration::from_millis(150)));
        let (fetcher, cache) = (Arc::clone(&fetcher), bench.cache.clone());
        let url = bench.server.url(&path);
        tasks.spawn(async move { fetcher.fetch(&url, false, &cache, false).await.map(drop) });
    }
    for result in tasks.join_all().await {
        result.expect("they come");
    }
    assert_eq!(bench.server.most(), 3);
}
