//! Replays what the library of `tests/sqlite-suite` wrote down, and compares it with the images of
//! the same databases. For `cargo xtask sqlite-suite`, which reads what this prints:
//!
//! ```text
//! NAME COUNT            for each thing that is counted
//! different TEXT        a replica that is not what its source was
//! complaint TEXT        an image that PRAGMA integrity_check finds fault with
//! why TEXT              once for each loss, refusal or comparison that was not to be had
//! ```
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::process::ExitCode;

use rusqlite::Connection;
use synddb_sequencer::replica::{Applier, ApplyError, differences};

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("Usage: suite_replay LOG");
        return ExitCode::from(2);
    };
    match std::fs::read(&path) {
        Ok(log) => {
            print!("{}", replay(&log));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}

/// One record of the log, whose kinds are told in the library's `log.rs`.
struct Record<'l> {
    kind: u8,
    process: u32,
    connection: u32,
    payload: &'l [u8],
}

impl Record<'_> {
    /// The number that the payload begins with.
    fn number(&self) -> u32 {
        self.payload.first_chunk().map_or(u32::MAX, |bytes| u32::from_le_bytes(*bytes))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(self.payload).replace('\n', " ")
    }
}

/// The next record, unless the process was killed while writing it.
fn next<'l>(log: &mut &'l [u8]) -> Option<Record<'l>> {
    let number =
        |at: usize| -> Option<u32> { Some(u32::from_le_bytes(*log.get(at..)?.first_chunk()?)) };
    let (process, connection, len) = (number(1)?, number(5)?, number(9)? as usize);
    let record = Record { kind: log[0], process, connection, payload: log.get(13..13 + len)? };
    *log = &log[13 + len..];
    Some(record)
}

#[derive(Default)]
struct Report {
    counts: BTreeMap<&'static str, u64>,
    lines: Vec<String>,
    reasons: BTreeMap<String, u64>,
}

impl Report {
    fn count(&mut self, name: &'static str) {
        *self.counts.entry(name).or_default() += 1;
    }

    fn why(&mut self, what: &str, reason: &str) {
        *self.reasons.entry(format!("{what}: {reason}")).or_default() += 1;
    }
}

fn replay(mut log: &[u8]) -> String {
    let mut report = Report::default();
    let mut images: HashMap<(u32, u32), &[u8]> = HashMap::new();
    let mut replicas: HashMap<(u32, u32), Connection> = HashMap::new();
    while let Some(record) = next(&mut log) {
        let connection = (record.process, record.connection);
        let image =
            || images.get(&(record.process, record.number())).copied().ok_or("no such image");
        match record.kind {
            b'A' => report.count("attached"),
            b'R' => report.why("refused", &record.text()),
            b'I' => {
                let Some(content) = record.payload.get(4..) else { continue };
                images.insert((record.process, record.number()), content);
                if let Ok(db) = open(content)
                    && let Ok(found) =
                        db.query_row("PRAGMA integrity_check(1)", [], |row| row.get::<_, String>(0))
                    && found != "ok"
                    && !is_lock_page(content, &found)
                {
                    report.lines.push(format!("complaint {}", found.replace('\n', " ")));
                }
            }
            b'B' => match image().map_err(str::to_owned).and_then(open) {
                Ok(db) => drop(replicas.insert(connection, db)),
                Err(why) => {
                    replicas.remove(&connection);
                    report.why("not comparable", &why);
                }
            },
            b'C' | b'S' => {
                report.count(if record.kind == b'C' { "commits" } else { "schemas" });
                let Some(replica) = replicas.get(&connection) else { continue };
                if let Err(error) = apply(replica, &record) {
                    replicas.remove(&connection);
                    match excuse(&error.to_string()) {
                        Some(why) => report.why("not comparable", why),
                        None => report.lines.push(format!("different {error}")),
                    }
                }
            }
            b'L' => {
                report.count("losses");
                report.why("lost", &record.text());
                replicas.remove(&connection);
            }
            b'E' => {
                let Some(replica) = replicas.get(&connection) else { continue };
                let found = image().map_err(str::to_owned).and_then(open).and_then(|source| {
                    differences(&source, replica).map_err(|error| error.to_string())
                });
                match found {
                    Ok(found) if found.is_empty() => report.count("equal"),
                    Ok(found) => report.lines.push(format!("different {}", found[0])),
                    Err(why) => {
                        report.why("not comparable", excuse(&why).unwrap_or(&why));
                    }
                }
            }
            b'N' => {
                replicas.remove(&connection);
                report.why("no image", &record.text());
            }
            b'Z' if record.payload.first_chunk().is_some_and(|n| i64::from_le_bytes(*n) > 0) => {
                report.count("wrote");
            }
            b'D' => report.count("detached"),
            _ => {}
        }
    }
    let mut text = String::new();
    for (name, count) in &report.counts {
        text += &format!("{name} {count}\n");
    }
    for line in &report.lines {
        text += &format!("{}\n", line.replace('\n', " "));
    }
    for (reason, count) in &report.reasons {
        text += &format!("why {count} {reason}\n");
    }
    text
}

fn open(image: &[u8]) -> Result<Connection, String> {
    let open = || -> rusqlite::Result<Connection> {
        let mut db = Connection::open_in_memory()?;
        let mut image = image.to_vec();
        // In memory there is no write-ahead log.
        if let Some([.., write, read]) = image.get_mut(..20) {
            (*write, *read) = ((*write).min(1), (*read).min(1));
        }
        if !image.is_empty() {
            db.deserialize_read_exact("main", image.as_slice(), image.len(), false)?;
        }
        db.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        Ok(db)
    };
    open().map_err(|error| error.to_string())
}

/// The scripts have the page of the locks, which nothing else uses, at 64 KiB; here it is at 1 GiB.
/// It looks like a page that nobody uses, and in auto-vacuum databases moves all that come after.
fn is_lock_page(image: &[u8], complaint: &str) -> bool {
    const PLACE: usize = 0x10000;
    let Some(&[high, low]) = image.get(16..18) else { return false };
    let size = match u16::from_be_bytes([high, low]) {
        1 => PLACE,
        size => usize::from(size).max(512),
    };
    let auto_vacuum = image.get(52..56).is_some_and(|root| root != [0; 4]);
    image.len() > PLACE
        && (auto_vacuum || complaint.ends_with(&format!("Page {}: never used", PLACE / size + 1)))
}

fn apply(replica: &Connection, record: &Record<'_>) -> Result<(), ApplyError> {
    let sqlite = |error| ApplyError::Sqlite { table: String::new(), error };
    let mut applier = Applier::new(replica).map_err(sqlite)?;
    replica.execute_batch("BEGIN").map_err(sqlite)?;
    if record.kind == b'S' {
        applier.apply_schema(record.payload)?;
    } else {
        applier.apply(record.payload)?;
    }
    replica.execute_batch("COMMIT").map_err(sqlite)
}

/// What a script's database needs and nobody else has.
fn excuse(error: &str) -> Option<&'static str> {
    [
        ("no such collation sequence", "a collation of the script's"),
        ("no such function", "a function of the script's"),
        ("unknown function", "a function of the script's"),
        ("no such module", "a module of the script's"),
        ("no query solution", "a module of the script's"),
        ("malformed", "a corrupt database"),
        ("invalid utf-8 sequence", "names that are no UTF-8"),
        // The scripts' SQLite is older than the one that replays.
        ("must be a constant between 0.0 and 1.0", "a definition that later versions refuse"),
        ("operator prohibited in generated columns", "a definition that later versions refuse"),
    ]
    .into_iter()
    .find_map(|(text, why)| error.contains(text).then_some(why))
}
