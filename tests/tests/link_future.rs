//! The link as a future in the application's own runtime.
#![allow(clippy::unwrap_used)] // helpers of tests may panic, as tests may

use std::{
    sync::{Mutex, mpsc},
    time::{Duration, Instant},
};

use rusqlite::Connection;
use synddb_client::{
    Config, Error, LinkFuture, LinkState, NotStored, Reason, Receipt, SyndDB, TokenProvider,
};
use synddb_tests::{
    proxy::{Mode, Proxy},
    world::World,
};

/// A runtime of one thread, on which nothing moves while anything blocks it.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn start(world: &World, name: &str, config: Config) -> (SyndDB<Connection>, LinkFuture) {
    let connection = world.open(name);
    connection.execute_batch("CREATE TABLE IF NOT EXISTS item(id INTEGER PRIMARY KEY, v)").unwrap();
    SyndDB::own_with_link(connection, config).unwrap()
}

fn write(synddb: &SyndDB<Connection>, rows: usize) {
    for _ in 0..rows {
        synddb.connection().execute("INSERT INTO item(v) VALUES (randomblob(100))", []).unwrap();
    }
}

/// Pushes until the sequencer is there again.
async fn push(synddb: &SyndDB<Connection>) -> Receipt {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match synddb.push_async().await {
            Ok(receipt) => return receipt,
            Err(error) => assert!(Instant::now() < deadline, "{error}, {:?}", synddb.stats()),
        }
    }
}

fn reason(pushed: Result<Receipt, Error>) -> Reason {
    match pushed {
        Err(Error::NotStored(NotStored { reason, .. })) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_databases_in_a_runtime_of_one_thread_live_through_restarts_and_breaks() {
    let mut world = World::new();
    let proxy = Proxy::start(world.address());
    runtime().block_on(async {
        let config = Config {
            sequencer_url: proxy.url(),
            response_timeout: Duration::from_secs(1),
            ..world.config()
        };
        let (one, link) = start(&world, "one.db", world.config());
        let one_ends = tokio::spawn(link);
        let (other, link) = start(&world, "other.db", config);
        let other_ends = tokio::spawn(link);
        write(&one, 20);
        write(&other, 20);
        let (first, second) = tokio::join!(push(&one), push(&other));
        world.compare(one.connection(), &first, "one");
        world.compare(other.connection(), &second, "the other");
        assert_eq!(one.stats().link, LinkState::Up);

        world.stop();
        write(&one, 20);
        assert!(matches!(reason(one.push_async().await), Reason::LinkDown(_)));
        world.start();
        world.compare(one.connection(), &push(&one).await, "after a restart");

        for mode in [Mode::HangUp, Mode::BlackHole, Mode::LoseAnswers] {
            let context = format!("{mode:?}");
            proxy.set(mode);
            write(&other, 20);
            assert!(matches!(reason(other.push_async().await), Reason::LinkDown(_)), "{context}");
            proxy.set(Mode::Pass);
            world.compare(other.connection(), &push(&other).await, &context);
        }
        for (synddb, ends) in [(one, one_ends), (other, other_ends)] {
            assert_eq!(synddb.stats().resyncs.len(), 1, "no other snapshot was needed");
            write(&synddb, 5);
            let report = synddb.shutdown_async().await.unwrap();
            assert_eq!((report.left, report.clean), (None, true));
            ends.await.unwrap();
        }
    });
}

#[test]
fn a_future_that_is_dropped_loses_nothing() {
    let world = World::new();
    runtime().block_on(async {
        let (synddb, link) = start(&world, "app.db", world.config());
        let task = tokio::spawn(link);
        write(&synddb, 20);
        push(&synddb).await;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert_eq!(synddb.stats().link, LinkState::NotDriven);
        write(&synddb, 20);
        // At once, and not after `push_timeout`.
        match reason(synddb.push_async().await) {
            Reason::LinkDown(why) => assert!(why.contains("dropped"), "{why}"),
            other => panic!("{other:?}"),
        }
        assert!(reason(synddb.push()).to_string().contains("dropped"));
        let report = synddb.shutdown_async().await.unwrap();
        assert_eq!(report.left.map(|left| left.commits), Some(20));
        assert!(report.clean, "all of it is in the outbox");

        let (synddb, link) = start(&world, "app.db", world.config());
        tokio::spawn(link);
        world.compare(synddb.connection(), &push(&synddb).await, "attached again");
        assert!(synddb.stats().resyncs.is_empty(), "{:?}", synddb.stats());
        assert_eq!(synddb.shutdown_async().await.unwrap().left, None);
    });
}

#[test]
fn a_future_that_is_not_spawned_yet_is_told_and_catches_up() {
    let world = World::new();
    runtime().block_on(async {
        let (synddb, link) = start(&world, "app.db", world.config());
        write(&synddb, 20);
        assert_eq!(synddb.stats().link, LinkState::NotDriven);
        match reason(synddb.push_timeout(Duration::from_millis(50))) {
            Reason::TimedOut(Some(why)) => assert!(why.contains("spawn"), "{why}"),
            other => panic!("{other:?}"),
        }
        tokio::spawn(link);
        world.compare(synddb.connection(), &push(&synddb).await, "spawned late");
        assert_eq!(synddb.shutdown_async().await.unwrap().left, None);
    });
}

#[test]
fn whoever_blocks_needs_another_thread_for_the_link() {
    let world = World::new();
    let builder = &mut tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).enable_all().build().unwrap();
    let (synddb, link) = start(&world, "app.db", world.config());
    let ends = runtime.spawn(link);
    write(&synddb, 20);
    world.check(&synddb, "pushed from outside of the runtime");
    let report = synddb.shutdown().unwrap();
    assert_eq!((report.left, report.clean), (None, true));
    runtime.block_on(ends).unwrap();
}

/// The provider waits for a task that runs on the only thread of the runtime.
#[test]
fn a_token_provider_may_block() {
    let world = World::new();
    runtime().block_on(async {
        let (sender, tokens) = mpsc::channel();
        let tokens = Mutex::new(tokens);
        let provider = TokenProvider::new(move |_| {
            let patience = Duration::from_secs(60);
            tokens.lock().unwrap().recv_timeout(patience).map_err(|error| error.to_string())
        });
        let config = Config { token_provider: Some(provider), ..world.config() };
        let (synddb, link) = start(&world, "app.db", config);
        tokio::spawn(link);
        tokio::task::yield_now().await;
        tokio::spawn(async move { sender.send("secret".to_owned()).unwrap() });
        world.compare(synddb.connection(), &push(&synddb).await, "with a token");
        assert_eq!(synddb.shutdown_async().await.unwrap().left, None);
    });
}

#[test]
fn an_address_without_http_is_refused() {
    let world = World::new();
    for url in ["unix:/run/synddb.sock", "vsock://host:8433"] {
        let config = Config { sequencer_url: url.into(), ..world.config() };
        let refused = SyndDB::own_with_link(world.open("app.db"), config).unwrap_err().to_string();
        assert!(refused.contains("http+unix:"), "{refused}");
    }
}
