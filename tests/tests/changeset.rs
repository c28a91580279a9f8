//! The changeset reader and writer against SQLite's own session extension.
#![allow(clippy::unwrap_used)] // helpers of tests may panic, as tests may

use std::io::Write as _;

use rusqlite::{Connection, session::Session, types::ValueRef};
use synddb_core::{
    Rng,
    changeset::{ChangesetWriter, Operation, Value, changes, validate},
};

const SCHEMA: &str = "
CREATE TABLE a(id INTEGER PRIMARY KEY, t TEXT, r REAL, b BLOB, n);
CREATE TABLE \"odd 'name\"(k TEXT, k2 INT, v, PRIMARY KEY(k, k2)) WITHOUT ROWID;
CREATE TABLE g(id INTEGER PRIMARY KEY, x INT, y GENERATED ALWAYS AS (x * 2) STORED, z);
";

fn random_sql(rng: &mut Rng) -> String {
    let id = rng.up_to(20);
    let number = rng.next_u64() as i64;
    match rng.up_to(8) {
        0 => format!(
            "INSERT OR REPLACE INTO a VALUES ({id}, 't{number}', {number} / 7.0, randomblob({}), NULL)",
            rng.up_to(300)
        ),
        1 => format!("INSERT OR IGNORE INTO a VALUES ({id}, NULL, -0.0, x'', {number})"),
        2 => format!("UPDATE a SET t = 'ü{number}', n = {number} WHERE id % 3 = {}", rng.up_to(2)),
        3 => format!("DELETE FROM a WHERE id = {id}"),
        4 => format!("INSERT OR REPLACE INTO \"odd 'name\" VALUES ('k{id}', {id}, {number})"),
        5 => format!("UPDATE OR IGNORE \"odd 'name\" SET k2 = k2 + 1 WHERE k2 = {id}"),
        6 => format!(
            "INSERT OR REPLACE INTO g(id, x, z) VALUES ({id}, {}, zeroblob({}))",
            id,
            rng.up_to(200)
        ),
        7 => format!("UPDATE g SET x = x + 1, z = 1e300 WHERE id > {id}"),
        _ => "DELETE FROM g".into(),
    }
}

fn changeset(db: &Connection, rng: &mut Rng) -> Vec<u8> {
    let mut session = Session::new(db).unwrap();
    session.attach::<&str>(None).unwrap();
    for _ in 0..=rng.up_to(6) {
        db.execute_batch(&random_sql(rng)).unwrap();
    }
    let mut bytes = Vec::new();
    session.changeset_strm(&mut bytes).unwrap();
    bytes
}

/// What SQLite reads, as text; `None` where it finds an error.
fn as_sqlite_reads(bytes: &[u8]) -> Option<String> {
    use rusqlite::{
        fallible_streaming_iterator::FallibleStreamingIterator, hooks::Action,
        session::ChangesetIter,
    };
    let input: &mut dyn std::io::Read = &mut &*bytes;
    let mut iter = ChangesetIter::start_strm(&input).ok()?;
    let mut text = Vec::new();
    loop {
        match iter.next() {
            Ok(Some(item)) => {
                let operation = item.op().ok()?;
                let (old, new) = match operation.code() {
                    Action::SQLITE_INSERT => (false, true),
                    Action::SQLITE_DELETE => (true, false),
                    _ => (true, true),
                };
                write!(
                    text,
                    "{} {:?} {} ",
                    operation.table_name(),
                    operation.code() as i32,
                    operation.indirect()
                )
                .unwrap();
                for column in 0..operation.number_of_columns() as usize {
                    if old {
                        write!(text, "{} ", item.old_value(column).map_or("-".into(), show_ref))
                            .unwrap();
                    }
                    if new {
                        write!(text, "{} ", item.new_value(column).map_or("-".into(), show_ref))
                            .unwrap();
                    }
                }
                text.push(b'\n');
            }
            Ok(None) => return String::from_utf8(text).ok(),
            Err(_) => return None,
        }
    }
}

fn show_ref(value: ValueRef<'_>) -> String {
    show(match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(integer) => Value::Integer(integer),
        ValueRef::Real(real) => Value::Real(real),
        ValueRef::Text(bytes) => Value::Text(bytes),
        ValueRef::Blob(bytes) => Value::Blob(bytes),
    })
}

fn show(value: Value<'_>) -> String {
    match value {
        Value::Undefined => "-".into(),
        Value::Real(real) => format!("r{:x}", real.to_bits()),
        other => format!("{other:?}"),
    }
}

fn as_we_read(bytes: &[u8]) -> Option<String> {
    let mut text = String::new();
    for change in changes(bytes) {
        let change = change.ok()?;
        text += &format!("{} {} {} ", change.table.name, change.operation as u8, change.indirect);
        let old: Option<Vec<_>> = change.old.map(|old| old.values().collect());
        let new: Option<Vec<_>> = change.new.map(|new| new.values().collect());
        for column in 0..change.table.columns() {
            for record in [&old, &new].into_iter().flatten() {
                text += &show(record[column]);
                text.push(' ');
            }
        }
        text.push('\n');
    }
    Some(text)
}

/// Byte for byte what SQLite wrote, as far as the indirect flag is not set.
fn written_again(bytes: &[u8]) -> Vec<u8> {
    let mut buffer = vec![0; bytes.len()];
    let mut writer = ChangesetWriter::new(&mut buffer);
    let mut table = None;
    for change in changes(bytes) {
        let change = change.unwrap();
        if table != Some(change.table) {
            writer.table(change.table.name, change.table.key).unwrap();
            table = Some(change.table);
        }
        let old: Vec<_> = change.old.iter().flat_map(|old| old.values()).collect();
        let new: Vec<_> = change.new.iter().flat_map(|new| new.values()).collect();
        match change.operation {
            Operation::Insert => writer.insert(&new),
            Operation::Update => writer.update(&old, &new),
            Operation::Delete => writer.delete(&old),
        }
        .unwrap();
    }
    writer.finish().to_vec()
}

#[test]
fn we_read_and_write_what_sqlite_does() {
    let seed = 11;
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let db = Connection::open_in_memory().unwrap();
    db.execute_batch(SCHEMA).unwrap();
    let mut changed = 0;
    for _ in 0..2000 {
        let bytes = changeset(&db, &mut rng);
        let summary = validate(&bytes).unwrap();
        changed += summary.inserts + summary.updates + summary.deletes;
        assert_eq!(as_we_read(&bytes), as_sqlite_reads(&bytes));
        assert_eq!(written_again(&bytes), bytes);
    }
    assert!(changed > 5000, "only {changed} changes");
}

/// Stricter than SQLite, never laxer, and nothing makes it panic.
#[test]
fn damaged_changesets_are_refused_or_read_as_sqlite_reads_them() {
    let seed = 12;
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let db = Connection::open_in_memory().unwrap();
    db.execute_batch(SCHEMA).unwrap();
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..400 {
        let bytes = changeset(&db, &mut rng);
        if bytes.is_empty() {
            continue;
        }
        for _ in 0..50 {
            let mut damaged = bytes.clone();
            for _ in 0..=rng.up_to(2) {
                let at = rng.up_to(damaged.len() as u64 - 1) as usize;
                match rng.up_to(3) {
                    0 => damaged[at] = rng.next_u64() as u8,
                    1 => damaged[at] ^= 1 << rng.up_to(7),
                    2 if damaged.len() > 1 => drop(damaged.remove(at)),
                    _ => damaged.insert(at, rng.next_u64() as u8),
                }
            }
            if validate(&damaged).is_ok() {
                accepted += 1;
                assert_eq!(as_we_read(&damaged), as_sqlite_reads(&damaged), "{damaged:?}");
            } else {
                refused += 1;
            }
        }
        for cut in 0..bytes.len().min(200) {
            let _ = validate(&bytes[..cut]);
        }
    }
    assert!(accepted > 100 && refused > 1000, "{accepted} accepted, {refused} refused");
}
