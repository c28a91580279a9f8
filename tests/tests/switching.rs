//! The client against a sequencer of the existing kind, with all of its flaws: what arrives leads to
//! the source, or the client says what the far side broke.
#![allow(clippy::unwrap_used)] // helpers of tests may panic, as tests may

use std::{path::Path, time::Duration};

use rusqlite::Connection;
use synddb_client::{
    CborConfig, CborStats, Config, Error, HttpClient, OnDoubt, Protocol, Reason, Receipt,
    ResyncReason, SyndDB, TokenProvider,
};
use synddb_core::Rng;
use synddb_sequencer::replica::differences;
use synddb_tests::{
    standin::{Faults, MAX_BODY, Message, StandIn},
    world::push,
};

fn config(url: String) -> Config {
    Config {
        sequencer_url: url,
        protocol: Protocol::SyndDbCbor,
        push_interval: Duration::from_millis(5),
        response_timeout: Duration::from_secs(30),
        shutdown_timeout: Duration::from_secs(30),
        max_retries: 1,
        ..Default::default()
    }
}

fn open(path: &Path, config: Config) -> SyndDB<Connection> {
    SyndDB::open_with_config(path, config).unwrap()
}

fn create(db: &Connection) {
    db.execute_batch(
        "CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT UNIQUE, data BLOB);
         CREATE TABLE pair(a INTEGER, b TEXT, c, PRIMARY KEY (a, b)) WITHOUT ROWID",
    )
    .unwrap();
}

fn write(db: &Connection, rng: &mut Rng, commits: u64) {
    for _ in 0..commits {
        let row = rng.up_to(200) as i64;
        let len = rng.up_to(2000) as i64;
        match rng.up_to(4) {
            0 => drop(db.execute("DELETE FROM item WHERE id = ?1", [row]).unwrap()),
            1 => drop(
                db.execute(
                    "UPDATE item SET data = randomblob(?1) WHERE id % 7 = ?2 % 7",
                    [len, row],
                )
                .unwrap(),
            ),
            2 => drop(db.execute("REPLACE INTO pair VALUES (?1, ?1 % 3, ?2)", [row, len]).unwrap()),
            _ => drop(
                db.execute(
                    "REPLACE INTO item(id, name, data) VALUES (?1, 'name ' || ?1, randomblob(?2))",
                    [row, len],
                )
                .unwrap(),
            ),
        }
    }
}

fn compare(source: &Connection, far: &StandIn, context: &str) {
    let replica = far.replay().unwrap_or_else(|| panic!("{context}: the log does not apply"));
    let found = differences(source, &replica).unwrap();
    assert!(found.is_empty(), "{context}: {found:#?}");
}

fn stats(synddb: &SyndDB<Connection>) -> CborStats {
    synddb.stats().cbor.unwrap()
}

/// The changesets' numbers, in the order in which they arrived.
fn numbers(far: &StandIn) -> Vec<u64> {
    far.log()
        .into_iter()
        .flat_map(|message| match message {
            Message::Changesets(changesets) => changesets.iter().map(|(_, n, _)| *n).collect(),
            _ => Vec::new(),
        })
        .collect()
}

fn snapshots(far: &StandIn) -> usize {
    far.log().iter().filter(|message| matches!(message, Message::Snapshot(..))).count()
}

#[test]
fn one_setting_switches_over_every_client_and_goes_on_after_a_restart() {
    for way in ["ureq", "hyper", "unix", "prefix"] {
        let dir = tempfile::tempdir().unwrap();
        let far = StandIn::start(1);
        let socket = dir.path().join("far.sock");
        far.listen_on(&socket);
        let mut config = config(far.url());
        match way {
            "hyper" => config.http_client = HttpClient::Hyper,
            "unix" => config.sequencer_url = format!("synddb+http+unix:{}", socket.display()),
            "prefix" => {
                config.protocol = Protocol::Frames;
                config.sequencer_url = format!("synddb+{}", far.url());
            }
            _ => {}
        }
        let path = dir.path().join("app.db");
        let mut rng = Rng::new(7);
        let synddb = open(&path, config.clone());
        create(synddb.connection());
        write(synddb.connection(), &mut rng, 30);
        push(&synddb, way);
        write(synddb.connection(), &mut rng, 30);
        let receipt = push(&synddb, way);
        let signed = receipt.signed.clone().unwrap();
        assert_eq!(signed.sequence, far.log().len() as u64, "{way}");
        assert_eq!(signed.signature, format!("0xsignature{}", signed.sequence), "{way}");
        assert_eq!((signed.signer.as_str(), signed.message_hash.is_empty()), ("0xsigner", false));
        compare(synddb.connection(), &far, way);
        let before = snapshots(&far);
        let report = synddb.shutdown().unwrap();
        assert_eq!((report.left, report.clean), (None, true), "{way}");

        let synddb = open(&path, config);
        write(synddb.connection(), &mut rng, 30);
        push(&synddb, way);
        compare(synddb.connection(), &far, way);
        assert_eq!(snapshots(&far), before, "{way}: it goes on where it was");
        let numbers = numbers(&far);
        assert!(numbers.len() > 30, "{way}");
        let expected: Vec<_> = (1..=numbers.len() as u64).collect();
        assert_eq!(numbers, expected, "{way}: numbers go on");
        assert_eq!(far.refusals(), 0, "{way}");
    }
}

#[test]
fn what_is_pushed_survives_a_restart_over_there() {
    let dir = tempfile::tempdir().unwrap();
    let far = StandIn::start(2);
    let synddb = open(&dir.path().join("app.db"), config(far.url()));
    create(synddb.connection());
    let mut rng = Rng::new(1);
    for round in 0..10 {
        write(synddb.connection(), &mut rng, 5);
        push(&synddb, "pushed");
        far.restart();
        compare(synddb.connection(), &far, &format!("round {round}"));
    }
    assert_eq!(stats(&synddb).lost_there, 0);
    assert!(stats(&synddb).flushes >= 10);
}

#[test]
fn without_flushes_what_a_restart_forgets_is_noticed_and_mended() {
    let dir = tempfile::tempdir().unwrap();
    let far = StandIn::start(3);
    let config = Config {
        cbor: CborConfig { flush: false, ..Default::default() },
        keep_alive: Duration::from_millis(50),
        ..config(far.url())
    };
    let synddb = open(&dir.path().join("app.db"), config);
    create(synddb.connection());
    let mut rng = Rng::new(1);
    write(synddb.connection(), &mut rng, 20);
    push(&synddb, "before");
    assert_eq!(stats(&synddb).flushes, 0);
    far.restart();
    assert!(far.log().is_empty(), "it forgot all of it");
    // By a look, while nothing is written.
    let deadline = std::time::Instant::now() + synddb_tests::standin::PATIENCE;
    while far.replay().is_none() {
        assert!(std::time::Instant::now() < deadline, "{:?}", synddb.stats());
        // A snapshot is taken by whoever uses the connection.
        let _ = synddb.push_timeout(Duration::from_millis(100));
    }
    compare(synddb.connection(), &far, "mended");
    assert!(stats(&synddb).lost_there >= 1);
    let reasons = synddb.stats().resyncs;
    assert!(reasons.iter().any(|(reason, _)| *reason == ResyncReason::SequencerLostData));
}

#[test]
fn under_faults_what_arrives_leads_to_the_source() {
    let mut total = CborStats::default();
    for seed in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let far = StandIn::start(seed);
        let mut rng = Rng::new(seed);
        let flush = seed % 3 != 0;
        let config = Config {
            cbor: CborConfig { flush, ..Default::default() },
            http_client: if seed % 2 == 0 { HttpClient::Ureq } else { HttpClient::Hyper },
            ..config(far.url())
        };
        let path = dir.path().join("app.db");
        let mut synddb = open(&path, config.clone());
        create(synddb.connection());
        push(&synddb, "begin");
        far.set(Faults {
            lost_answers: 15,
            resets: 15,
            warnings: 15,
            restarts: if seed % 4 == 0 { 5 } else { 0 },
            ..Default::default()
        });
        for round in 0..12 {
            write(synddb.connection(), &mut rng, 6);
            if round == 6 {
                synddb
                    .connection()
                    .execute_batch("ALTER TABLE item ADD COLUMN extra DEFAULT 5")
                    .unwrap();
                synddb.connection().execute_batch("DROP TABLE pair").unwrap();
                create_pair(synddb.connection());
            }
            let _ = synddb.push_timeout(Duration::from_millis(rng.up_to(60)));
            if round % 5 == 4 {
                let stats = stats(&synddb);
                total.arrived += stats.arrived;
                total.not_arrived += stats.not_arrived;
                total.warnings += stats.warnings;
                let report = synddb.shutdown().unwrap();
                assert!(report.clean || report.left.is_some(), "seed {seed}");
                synddb = open(&path, config.clone());
            }
        }
        far.set(Faults::default());
        // A restart that no number has shown yet shows with the next one.
        push(&synddb, "calm");
        write(synddb.connection(), &mut rng, 1);
        let before = stats(&synddb).lost_there + stats(&synddb).doubts;
        push(&synddb, &format!("seed {seed}"));
        if stats(&synddb).lost_there + stats(&synddb).doubts > before {
            push(&synddb, "mended");
        }
        compare(synddb.connection(), &far, &format!("seed {seed}, flush {flush}"));
        let stats = stats(&synddb);
        total.arrived += stats.arrived;
        total.not_arrived += stats.not_arrived;
        total.warnings += stats.warnings;
    }
    let counted = [total.arrived, total.not_arrived, total.warnings];
    assert!(counted.iter().all(|count| *count > 0), "{total:?}");
}

fn create_pair(db: &Connection) {
    db.execute_batch("CREATE TABLE pair(a INTEGER, b TEXT, c, PRIMARY KEY (a, b)) WITHOUT ROWID")
        .unwrap();
}

#[test]
fn tokens_are_in_every_message_and_refused_for_a_while_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let far = StandIn::start(4);
    let provider = TokenProvider::new(|request| {
        Ok(if request.refused { "the-new-one" } else { "the-old-one" }.into())
    });
    far.set(Faults { token: Some("the-old-one".into()), ..Default::default() });
    let config = Config { token_provider: Some(provider), ..config(far.url()) };
    let synddb = open(&dir.path().join("app.db"), config);
    create(synddb.connection());
    let mut rng = Rng::new(1);
    write(synddb.connection(), &mut rng, 10);
    push(&synddb, "the old one");
    // Not accepted by anybody, for a while.
    far.set(Faults { token: Some("another".into()), ..Default::default() });
    write(synddb.connection(), &mut rng, 10);
    let error = synddb.push_timeout(Duration::from_secs(20)).unwrap_err().to_string();
    assert!(error.contains("401") && error.contains("attestation token"), "{error}");
    far.set(Faults { token: Some("the-new-one".into()), ..Default::default() });
    push(&synddb, "the new one");
    compare(synddb.connection(), &far, "after all");
    assert_eq!(synddb.stats().resyncs.len(), 1, "no snapshot was needed: {:?}", synddb.stats());
}

fn refused(synddb: &SyndDB<Connection>) -> (Reason, String) {
    match synddb.push_timeout(Duration::from_secs(20)) {
        Err(Error::NotStored(left)) => (left.reason.clone(), left.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_changeset_above_the_limit_goes_in_pieces() {
    for resets_above_limit in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let far = StandIn::start(5);
        far.set(Faults { resets_above_limit, ..Default::default() });
        let synddb = open(&dir.path().join("app.db"), config(far.url()));
        create(synddb.connection());
        push(&synddb, "begin");
        synddb
            .connection()
            .execute_batch(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
                 INSERT INTO item SELECT i, 'name ' || i, randomblob(1000) FROM n;",
            )
            .unwrap();
        push(&synddb, "five megabytes");
        synddb.connection().execute("DELETE FROM item WHERE id > 100", []).unwrap();
        push(&synddb, "and away");
        compare(synddb.connection(), &far, "split");
        let stats = stats(&synddb);
        assert_eq!((stats.split_changesets, far.refusals()), (2, 0), "{stats:?}");
        assert!(far.largest() <= MAX_BODY && far.largest() > MAX_BODY * 9 / 10);
        assert_eq!(synddb.stats().resyncs.iter().map(|(_, count)| count).sum::<u64>(), 1);
    }
}

#[test]
fn a_lower_limit_on_the_way_is_learned() {
    for resets_above_limit in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let far = StandIn::start(6);
        let synddb = open(&dir.path().join("app.db"), config(far.url()));
        create(synddb.connection());
        push(&synddb, "begin");
        far.set(Faults { max_body: 300_000, resets_above_limit, ..Default::default() });
        synddb
            .connection()
            .execute_batch(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1500)
                 INSERT INTO item SELECT i, 'name ' || i, randomblob(1000) FROM n;",
            )
            .unwrap();
        push(&synddb, "below the limit");
        compare(synddb.connection(), &far, "learned");
        assert!(stats(&synddb).body_limit < MAX_BODY, "{:?}", stats(&synddb));
        assert_eq!(synddb.stats().resyncs.iter().map(|(_, count)| count).sum::<u64>(), 1);
    }
}

#[test]
fn a_database_too_large_for_a_snapshot_is_refused_at_attach_and_told_later() {
    let dir = tempfile::tempdir().unwrap();
    let far = StandIn::start(8);
    let path = dir.path().join("app.db");
    let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
         INSERT INTO item SELECT i, 'name ' || i, randomblob(1000) FROM n;";
    {
        let db = Connection::open(dir.path().join("large.db")).unwrap();
        create(&db);
        db.execute_batch(fill).unwrap();
        let refused = SyndDB::own(db, config(far.url())).unwrap_err();
        assert!(refused.to_string().contains("up to 2097152"), "{refused}");
        assert!(matches!(refused, Error::Config { setting: "protocol", .. }), "{refused:?}");
    }
    let synddb = open(&path, config(far.url()));
    create(synddb.connection());
    push(&synddb, "begin");
    synddb.connection().execute_batch(fill).unwrap();
    push(&synddb, "grown by changesets");
    compare(synddb.connection(), &far, "grown");
    // What only a snapshot can carry now cannot go.
    synddb.connection().execute_batch("CREATE TABLE more(x)").unwrap();
    let before = far.requests("/snapshots");
    let (reason, text) = refused(&synddb);
    assert!(matches!(reason, Reason::SnapshotTooLarge { .. }), "{text}");
    let _ = refused(&synddb);
    assert_eq!(far.requests("/snapshots"), before, "it is not tried for ever");
    assert!(synddb.stats().stuck.is_some());
}

#[test]
fn a_snapshot_stands_between_what_it_holds_and_what_it_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let far = StandIn::start(9);
    let synddb = open(&dir.path().join("app.db"), config(far.url()));
    create(synddb.connection());
    // The one that the stream begins with is none of those that follow.
    push(&synddb, "begun");
    let mut rng = Rng::new(1);
    for _ in 0..5 {
        write(synddb.connection(), &mut rng, 20);
        synddb.snapshot().unwrap();
        write(synddb.connection(), &mut rng, 20);
        push(&synddb, "after a snapshot");
        compare(synddb.connection(), &far, "in line");
    }
    assert!(snapshots(&far) >= 6);
    let mut last = 0;
    for message in far.log() {
        match message {
            Message::Snapshot(_, number) => assert_eq!(number, last),
            Message::Changesets(changesets) => {
                for (_, number, _) in changesets {
                    assert_eq!(number, last + 1);
                    last = number;
                }
            }
            Message::Foreign => {}
        }
    }
}

#[test]
fn where_others_write_doubts_are_met_as_chosen_and_counted() {
    for on_doubt in [OnDoubt::Resync, OnDoubt::Resend] {
        let dir = tempfile::tempdir().unwrap();
        let far = StandIn::start(10);
        let config =
            Config { cbor: CborConfig { on_doubt, ..Default::default() }, ..config(far.url()) };
        let synddb = open(&dir.path().join("app.db"), config);
        create(synddb.connection());
        far.set(Faults { foreign: 100, ..Default::default() });
        push(&synddb, "others are noticed");
        let mut rng = Rng::new(1);
        for _ in 0..3 {
            write(synddb.connection(), &mut rng, 3);
            push(&synddb, "without faults");
        }
        assert!(stats(&synddb).foreign_messages > 0, "{:?}", stats(&synddb));
        far.set(Faults { foreign: 100, lost_answers: 30, ..Default::default() });
        while stats(&synddb).doubts < 3 {
            write(synddb.connection(), &mut rng, 3);
            let _: Result<Receipt, _> = synddb.push_timeout(Duration::from_millis(200));
        }
        far.set(Faults::default());
        push(&synddb, "calm");
        let stats = stats(&synddb);
        match on_doubt {
            OnDoubt::Resync => {
                assert!(stats.resyncs_in_doubt > 0 && stats.resent_in_doubt == 0, "{stats:?}");
                compare(synddb.connection(), &far, "mended by a snapshot");
            }
            // It may be there twice, and says so.
            OnDoubt::Resend => {
                assert!(stats.resent_in_doubt > 0 && stats.resyncs_in_doubt == 0, "{stats:?}");
            }
        }
    }
}

#[test]
fn another_kind_of_server_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let world = synddb_tests::world::World::new();
    let synddb = open(&dir.path().join("app.db"), config(world.url()));
    create(synddb.connection());
    let (_, text) = refused(&synddb);
    assert!(text.contains("SyndDB"), "{text}");
}
