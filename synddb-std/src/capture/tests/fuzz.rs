//! The preupdate engine against random schemas and statements.
//!
//! Each case runs twice, with capture and without. With capture it must be: the same answers to
//! every statement, the same rows, a sound database; and what was captured, replayed, leads to the
//! same rows unless a loss was reported. A failing case is shrunk and printed; `SYNDDB_SEED` replays
//! one seed, `SYNDDB_FUZZ_CASES` says how many to run.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fmt::Write;

use super::*;
use crate::capture::sabotage::{Sabotage, sabotage};

#[derive(Debug, Clone)]
enum Step {
    Sql(String),
    /// Stopped after so many instructions, by what a progress handler returns or by an interrupt,
    /// which stops every statement that runs.
    Stopped(u32, bool, String),
    /// By another connection.
    Foreign(String),
    /// Whether everything captured so far leads to the same rows.
    Check,
}

#[derive(Debug, Clone)]
struct Case {
    journal_mode: &'static str,
    exclusive: bool,
    schema: Vec<String>,
    steps: Vec<Step>,
}

/// What came of the cases.
#[derive(Debug, Default)]
struct Tally {
    statements: u64,
    failed: u64,
    commits: u64,
    /// Of them, those that changed the schema or the header.
    schemas: u64,
    losses: u64,
    /// Checks up to which nothing was lost.
    whole: u64,
    /// Checks at which the content hash was known.
    hashes: u64,
    reasons: BTreeMap<String, u64>,
}

struct Generator {
    random: Random,
    tables: Vec<Made>,
    names: u64,
    /// `changes()` is called inside statements; then there are no triggers, where capture shows.
    counts: bool,
}

/// A table of the generated schema.
#[derive(Clone)]
struct Made {
    name: String,
    columns: Vec<String>,
}

impl Generator {
    fn below(&mut self, limit: u64) -> u64 {
        self.random.below(limit)
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len() as u64) as usize]
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn value(&mut self) -> String {
        match self.below(16) {
            0 => "NULL".into(),
            1 if self.counts => "changes()".into(),
            2 => self.pick(&["1.0", "2.5", "-0.0", "1e300", "3.0", "9007199254740993.0"]).into(),
            3 | 4 => self.pick(&["'a'", "'A'", "'a '", "''", "'1'", "'b'", "'2.0'", "'Ü'"]).into(),
            5 => {
                self.pick(&["x''", "x'00'", "x'61'", "zeroblob(5)", "CAST(x'ff41' AS TEXT)"]).into()
            }
            6 => format!("hex(zeroblob({}))", self.below(3000)),
            7 => self.pick(&["4611686018427387904", "-9223372036854775808", "-1"]).into(),
            _ => self.below(12).to_string(),
        }
    }

    fn key(&mut self) -> String {
        if self.one_in(6) { self.value() } else { self.below(12).to_string() }
    }

    fn conflict(&mut self) -> &'static str {
        self.pick(&["", "", "", "OR REPLACE", "OR IGNORE", "OR FAIL", "OR ABORT", "OR ROLLBACK"])
    }

    fn create_table(&mut self, temp: &str) -> String {
        const NAMES: [&str; 8] = ["t", "we ird", "select", "Ünï", "a\"b", "x_data", "sq'l", "T2"];
        self.names += 1;
        let name = format!("{}{}", self.pick(&NAMES), self.names).replace('"', "\"\"");
        let name = format!("\"{name}\"");
        let strict = self.one_in(6);
        let types: &[&str] = if strict {
            &["INT", "INTEGER", "TEXT", "REAL", "BLOB", "ANY"]
        } else {
            &["", "INT", "INTEGER", "TEXT", "REAL", "BLOB", "NUMERIC", "DOUBLE", "VARCHAR(9)"]
        };
        let mut columns = Vec::new();
        let mut sql = format!("CREATE {temp} TABLE {name}(");
        let key = self.below(6);
        if key <= 2 {
            let auto = if key == 0 { " AUTOINCREMENT" } else { "" };
            write!(sql, "id INTEGER PRIMARY KEY{auto}, ").unwrap();
            columns.push("id".to_owned());
        }
        for number in 0..=self.below(5) {
            let column = self.pick(&["c", "C o", "_c", "rowid", "order"]).to_owned();
            let column = format!("\"{column}{number}\"");
            let r#type = self.pick(types);
            write!(sql, "{column} {type}").unwrap();
            let more = self.pick(&[
                "",
                "",
                "",
                "",
                " UNIQUE",
                " COLLATE NOCASE",
                " COLLATE RTRIM",
                " DEFAULT 7",
                " NOT NULL DEFAULT 3",
                " DEFAULT 'x'",
            ]);
            sql += more;
            sql += ", ";
            columns.push(column);
        }
        let first = columns[columns.len() - 1].clone();
        if self.one_in(4) {
            let kind = self.pick(&["STORED", "VIRTUAL"]);
            let r#type = if strict { "ANY" } else { "" };
            write!(sql, "gen {type} AS ({first}) {kind}, ").unwrap();
        }
        if key > 2 && key < 5 {
            let second = if columns.len() > 1 && self.one_in(2) {
                let at = self.below(columns.len() as u64 - 1) as usize;
                format!(", {}", columns[at])
            } else {
                String::new()
            };
            write!(sql, "PRIMARY KEY({first}{second}), ").unwrap();
        }
        sql.truncate(sql.len() - 2);
        sql += ")";
        let mut options = Vec::new();
        if key < 5 && key != 0 && self.one_in(3) {
            options.push("WITHOUT ROWID");
        }
        if strict {
            options.push("STRICT");
        }
        if !options.is_empty() {
            write!(sql, " {}", options.join(", ")).unwrap();
        }
        self.tables.push(Made { name, columns });
        sql
    }

    fn table(&mut self) -> Made {
        let at = self.below(self.tables.len() as u64) as usize;
        self.tables[at].clone()
    }

    fn schema(&mut self) -> Vec<String> {
        let encoding = self.pick(&["UTF-8", "UTF-8", "UTF-8", "UTF-16le", "UTF-16be"]);
        let mut schema = vec![
            format!("PRAGMA encoding = '{encoding}'"),
            "CREATE TABLE parent(id INTEGER PRIMARY KEY, n)".to_owned(),
            "CREATE TABLE child(id INTEGER PRIMARY KEY, p REFERENCES parent ON DELETE CASCADE
             ON UPDATE CASCADE, q REFERENCES parent DEFERRABLE INITIALLY DEFERRED)"
                .to_owned(),
        ];
        let made = |name: &str, columns: &[&str]| Made {
            name: name.into(),
            columns: columns.iter().map(|&column| column.into()).collect(),
        };
        self.tables.push(made("parent", &["id", "n"]));
        self.tables.push(made("child", &["id", "p", "q"]));
        for _ in 0..=self.below(3) {
            schema.push(self.create_table(""));
        }
        if self.one_in(3) {
            schema.push("CREATE VIRTUAL TABLE notes USING fts5(body)".into());
            self.tables.push(made("notes", &["rowid", "body"]));
        }
        if self.one_in(5) {
            schema.push("CREATE VIRTUAL TABLE boxes USING rtree(id, x0, x1)".into());
            self.tables.push(made("boxes", &["id", "x0", "x1"]));
        }
        if !self.counts && self.one_in(3) {
            schema.push(self.trigger());
        }
        if self.one_in(3) {
            // Of many pages.
            let Made { name, columns } = self.table();
            schema.push(format!(
                "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 400)
                 INSERT OR IGNORE INTO {name}({}) SELECT i * 3 FROM c",
                columns[0]
            ));
        }
        if self.one_in(4) {
            // Its rows are nobody's business, and must not be taken for those of a table of the name.
            schema.push("ATTACH ':memory:' AS beside".into());
            schema.push("CREATE TABLE beside.parent(id INTEGER PRIMARY KEY, n)".into());
            schema.push("CREATE TABLE beside.other(x, y)".into());
            self.tables.push(made("beside.parent", &["id", "n"]));
            self.tables.push(made("beside.other", &["x", "y"]));
        }
        if self.one_in(3) {
            schema.push("PRAGMA recursive_triggers = on".into());
        }
        if self.one_in(2) {
            schema.push("PRAGMA foreign_keys = on".into());
        }
        schema
    }

    fn trigger(&mut self) -> String {
        let (on, into) = (self.table(), self.table());
        self.names += 1;
        let (when, what) =
            (self.pick(&["BEFORE", "AFTER"]), self.pick(&["INSERT", "UPDATE", "DELETE"]));
        let row = if what == "DELETE" { "old" } else { "new" };
        let body = match self.below(4) {
            0 => format!("SELECT raise(IGNORE) WHERE {row}.{} = 3", on.columns[0]),
            1 => format!(
                "DELETE FROM {} WHERE {} = {row}.{}",
                into.name, into.columns[0], on.columns[0]
            ),
            2 => format!("SELECT raise(ABORT, 'no') WHERE {row}.{} = 4", on.columns[0]),
            _ => format!(
                "INSERT OR IGNORE INTO {}({}) VALUES ({row}.{})",
                into.name, into.columns[0], on.columns[0]
            ),
        };
        format!("CREATE TRIGGER g{} {when} {what} ON {} BEGIN {body}; END", self.names, on.name)
    }

    fn row_statement(&mut self) -> String {
        let Made { name, columns } = self.table();
        let (key, last) = (columns[0].clone(), columns[columns.len() - 1].clone());
        let conflict = self.conflict();
        let returning = match self.counts && self.one_in(12) {
            true => " RETURNING changes()",
            false => "",
        };
        match self.below(13) {
            0..=3 => {
                let rows: Vec<_> = (0..=self.below(4))
                    .map(|_| {
                        let values: Vec<_> = (0..columns.len())
                            .map(|at| if at == 0 { self.key() } else { self.value() })
                            .collect();
                        format!("({})", values.join(", "))
                    })
                    .collect();
                let upsert = match self.below(6) {
                    0 => format!(" ON CONFLICT DO UPDATE SET {last} = {}", self.value()),
                    1 => " ON CONFLICT DO NOTHING".into(),
                    _ => String::new(),
                };
                let list = columns.join(", ");
                let rows = rows.join(", ");
                format!("INSERT {conflict} INTO {name}({list}) VALUES {rows}{upsert}{returning}")
            }
            4 | 5 => {
                let value = self.value();
                let (from, to) = (self.key(), self.key());
                format!(
                    "UPDATE {conflict} {name} SET {last} = {value} WHERE {key} BETWEEN {from} AND {to}{returning}"
                )
            }
            6 => format!(
                "UPDATE {conflict} {name} SET {key} = {key} + {} WHERE {key} = {}",
                self.below(4),
                self.key()
            ),
            7 => format!(
                "UPDATE {conflict} {name} SET {key} = {}, {last} = {} WHERE {key} = {}",
                self.key(),
                self.value(),
                self.key()
            ),
            8 => format!("DELETE FROM {name} WHERE {key} = {}{returning}", self.key()),
            9 => format!("DELETE FROM {name} WHERE {key} > {}", self.below(1300)),
            10 if self.one_in(3) => format!("DELETE FROM {name}"),
            11 => format!(
                "INSERT {conflict} INTO {name}({key}) SELECT {key} + {} FROM {name} LIMIT 30",
                self.below(6)
            ),
            _ => {
                let other = self.table();
                format!(
                    "UPDATE {conflict} {name} SET {last} = other.{} FROM {} AS other
                     WHERE other.{} = {name}.{key}",
                    other.columns[other.columns.len() - 1],
                    other.name,
                    other.columns[0]
                )
            }
        }
    }

    fn ddl(&mut self) -> String {
        let Made { name, columns } = self.table();
        self.names += 1;
        let number = self.names;
        match self.below(22) {
            15 => format!("ALTER TABLE {name} RENAME COLUMN {} TO re{number}", columns[0]),
            16 => format!("ALTER TABLE {name} RENAME TO renamed{number}"),
            17 => format!("DROP INDEX IF EXISTS i{}", self.below(number)),
            18 => format!("DROP TRIGGER IF EXISTS g{}", self.below(number)),
            19 => format!("CREATE VIRTUAL TABLE text{number} USING fts5(body)"),
            20 => {
                format!("CREATE UNIQUE INDEX i{number} ON {name}({})", columns[columns.len() - 1])
            }
            21 => format!("PRAGMA application_id = {number}"),
            0 => self.create_table(""),
            1 => self.create_table("TEMP"),
            2 => format!("CREATE INDEX i{number} ON {name}({})", columns[0]),
            3 => format!(
                "ALTER TABLE {name} ADD COLUMN added{number} REAL DEFAULT {}",
                self.below(9)
            ),
            4 => format!("CREATE TABLE copy{number} AS SELECT * FROM {name}"),
            5 => format!("ALTER TABLE {name} DROP COLUMN {}", columns[columns.len() - 1]),
            6 if !self.counts => self.trigger(),
            7 => "VACUUM".into(),
            8 => "ANALYZE".into(),
            9 => "REINDEX".into(),
            10 => format!("PRAGMA user_version = {number}"),
            11 => format!("DROP TABLE {name}"),
            12 => "UPDATE sqlite_sequence SET seq = seq + 5".into(),
            13 => "PRAGMA wal_checkpoint(TRUNCATE)".into(),
            _ => format!("CREATE VIEW v{number} AS SELECT * FROM {name}"),
        }
    }

    fn case(seed: u64) -> Case {
        let random = Random(seed.wrapping_mul(0x9e37_79b9).wrapping_add(seed));
        let mut g = Generator { random, tables: Vec::new(), names: 0, counts: false };
        g.counts = g.one_in(3);
        let modes = ["wal", "delete", "truncate", "persist", "memory", "off", "in memory"];
        let journal_mode = g.pick(&modes);
        let exclusive = g.one_in(8);
        let schema = g.schema();
        // Some kinds of trouble in some cases only, so that there are long runs without a loss.
        let (ddl, stops, foreign) = (g.one_in(2), g.one_in(4), g.one_in(4));
        let mut steps = Vec::new();
        for _ in 0..g.below(70) {
            let sql = match g.below(34) {
                0 | 1 => "BEGIN".into(),
                2 => "BEGIN IMMEDIATE".into(),
                3..=5 => "COMMIT".into(),
                6 => "ROLLBACK".into(),
                7 | 8 => format!("SAVEPOINT s{}", g.below(3)),
                9 => format!("RELEASE s{}", g.below(3)),
                10 | 11 => format!("ROLLBACK TO s{}", g.below(3)),
                12 | 20 if ddl => g.ddl(),
                13 => "SELECT changes(), total_changes(), last_insert_rowid()".into(),
                14 if foreign => {
                    steps.push(Step::Foreign(g.row_statement()));
                    continue;
                }
                15..=17 => {
                    steps.push(Step::Check);
                    continue;
                }
                18 if stops => {
                    let at = g.below(60) as u32 + 1;
                    // After an interrupt R-Trees leave a statement running, with or without
                    // capture, by which the connection stays interrupted.
                    let has_boxes = g.tables.iter().any(|table| table.name == "boxes");
                    let by_interrupt = !has_boxes && g.one_in(2);
                    steps.push(Step::Stopped(at, by_interrupt, g.row_statement()));
                    continue;
                }
                19 => "PRAGMA defer_foreign_keys = on".into(),
                _ => g.row_statement(),
            };
            steps.push(Step::Sql(sql));
        }
        steps.push(Step::Sql("ROLLBACK".into()));
        steps.push(Step::Check);
        Case { journal_mode, exclusive, schema, steps }
    }
}

/// Runs one statement to its end and tells everything it answers.
fn answers(conn: &Connection, sql: &str) -> String {
    let mut told = String::new();
    let text = CString::new(sql).unwrap();
    // SAFETY: an open connection, used on this thread only; the statement is finalized.
    unsafe {
        let db = conn.handle();
        let mut stmt = std::ptr::null_mut();
        ffi::sqlite3_prepare_v2(db, text.as_ptr(), -1, &mut stmt, std::ptr::null_mut());
        if !stmt.is_null() {
            while ffi::sqlite3_step(stmt) == ffi::SQLITE_ROW {
                for column in 0..ffi::sqlite3_column_count(stmt) {
                    let text = ffi::sqlite3_column_text(stmt, column);
                    if text.is_null() {
                        told += "NULL,";
                    } else {
                        write!(told, "{:?},", CStr::from_ptr(text.cast())).unwrap();
                    }
                }
            }
        }
        let code = ffi::sqlite3_finalize(stmt);
        let message = CStr::from_ptr(ffi::sqlite3_errmsg(db));
        write!(
            told,
            " code {code} {} {message:?} changes {} total {} rowid {} autocommit {}",
            ffi::sqlite3_extended_errcode(db),
            ffi::sqlite3_changes64(db),
            ffi::sqlite3_total_changes64(db),
            ffi::sqlite3_last_insert_rowid(db),
            ffi::sqlite3_get_autocommit(db),
        )
        .unwrap();
    }
    told
}

/// An app of the case's schema, and another connection to its database.
fn open(case: &Case) -> (App, Option<Connection>) {
    let in_memory = case.journal_mode == "in memory";
    let mut app =
        App::by(CaptureEngine::Preupdate, if in_memory { Mode::Memory } else { Mode::Delete });
    app.conn.busy_timeout(std::time::Duration::ZERO).unwrap();
    app.max_changeset_bytes = 1 << 20;
    if !in_memory {
        let _ = app.conn.execute_batch(&format!("PRAGMA journal_mode = {}", case.journal_mode));
    }
    if case.exclusive {
        let _ = app.conn.execute_batch("PRAGMA locking_mode = exclusive");
    }
    for sql in &case.schema {
        let _ = app.conn.execute_batch(sql);
    }
    let other = (!in_memory).then(|| {
        let other = Connection::open(app.path()).unwrap();
        other.busy_timeout(std::time::Duration::ZERO).unwrap();
        other
    });
    (app, other)
}

fn stopped(conn: &Connection, at: u32, by_interrupt: bool, sql: &str) {
    struct Stop {
        left: u32,
        interrupt: Option<*mut ffi::sqlite3>,
    }
    unsafe extern "C" fn count(stop: *mut std::ffi::c_void) -> std::ffi::c_int {
        // SAFETY: the value below, whose connection is open.
        unsafe {
            let stop = &mut *stop.cast::<Stop>();
            stop.left = stop.left.wrapping_sub(1);
            match stop.interrupt {
                Some(db) if stop.left == 0 => ffi::sqlite3_interrupt(db),
                Some(_) => {}
                None => return std::ffi::c_int::from(stop.left == 0),
            }
            0
        }
    }
    // SAFETY: the value outlives the handler, which is removed.
    unsafe {
        let db = conn.handle();
        let mut stop = Stop { left: at, interrupt: by_interrupt.then_some(db) };
        ffi::sqlite3_progress_handler(db, 1, Some(count), (&raw mut stop).cast());
        let _ = conn.execute_batch(sql);
        ffi::sqlite3_progress_handler(db, 0, None, std::ptr::null_mut());
    }
}

/// Err tells what is wrong.
fn run(case: &Case, tally: &mut Tally) -> Result<(), String> {
    let (mut app, other) = open(case);
    app.attach();
    let (plain, plain_other) = open(case);
    let mut replica = copy_of(&app.conn);
    let mut content = Some(read_content(&replica));
    // Where a handler counts instructions, ours count too.
    let mut comparable = true;
    for (number, step) in case.steps.iter().enumerate() {
        match step {
            Step::Sql(sql) => {
                tally.statements += 1;
                let ours = answers(&app.conn, sql);
                tally.failed += u64::from(!ours.contains("code 0 "));
                if comparable {
                    let theirs = answers(&plain.conn, sql);
                    if ours != theirs {
                        return Err(format!("{number}: {sql}\n   with: {ours}\nwithout: {theirs}"));
                    }
                }
            }
            Step::Stopped(at, by_interrupt, sql) => {
                comparable = false;
                stopped(&app.conn, *at, *by_interrupt, sql);
            }
            Step::Foreign(sql) => {
                for other in other.iter().chain(&plain_other) {
                    let _ = other.execute_batch(sql);
                }
            }
            Step::Check => {
                if !app.conn.is_autocommit() {
                    continue;
                }
                app.flush();
                let mut events = app.log.take();
                let lost = events.iter().any(|event| matches!(event, Event::Lost(_)));
                tally.losses += u64::from(lost);
                for event in &events {
                    if let Event::Lost(reason) = event {
                        let reason = format!("{reason:?}");
                        let name = reason.split([' ', '(']).next().unwrap_or_default();
                        *tally.reasons.entry(name.to_owned()).or_default() += 1;
                    }
                }
                if lost {
                    replica = copy_of(&app.conn);
                    content = Some(read_content(&replica));
                    events.clear();
                }
                tally.whole += u64::from(!lost);
                let mut applier = Applier::new(&replica).unwrap();
                applier.follow_content(CONTENT_KEY, read_content(&replica).total()).unwrap();
                for event in events {
                    let Event::Committed(commit) = event else { continue };
                    tally.commits += 1;
                    tally.schemas += u64::from(matches!(commit.changes, Changes::Schema(_)));
                    replay(&mut applier, &replica, &commit)
                        .map_err(|error| format!("{number}: {error}"))?;
                    let (kind, payload) = payload(&commit);
                    content = content.and_then(|content| content.after(kind, &payload));
                }
                let found = differences(&app.conn, &replica)
                    .map_err(|error| format!("{number}: comparing: {error}"))?;
                // Reading ends a transaction, and with it `defer_foreign_keys`: read here too.
                let _ = differences(&plain.conn, &plain.conn);
                if !found.is_empty() {
                    return Err(format!("{number}: {found:?}"));
                }
                let read = read_content(&replica);
                tally.hashes += u64::from(content.is_some());
                let told = [content.map(|content| content.total()), applier.content()];
                if told.into_iter().flatten().any(|told| told != read.total()) {
                    return Err(format!("{number}: hashes {told:?}, not {}", read.total()));
                }
                content = Some(read);
            }
        }
    }
    let sound = |conn: &Connection| -> String {
        let check = conn.query_row("PRAGMA integrity_check", [], |row| row.get(0));
        check.unwrap_or_else(|error| error.to_string())
    };
    let ours = sound(&app.conn);
    // Rollbacks without a journal corrupt any database, and FTS5 overlooks other connections'.
    let without = sound(&plain.conn);
    let excused = if comparable { ours == without } else { case.journal_mode == "off" };
    if ours != "ok" && !excused {
        return Err(format!("{ours}, without capture: {without}"));
    }
    if comparable {
        let found = differences(&app.conn, &plain.conn).unwrap();
        if !found.is_empty() {
            return Err(format!("without capture: {found:?}"));
        }
    }
    Ok(())
}

/// The case without the steps that its failure does not need.
fn shrunk(mut case: Case) -> Case {
    let fails = |case: &Case| run(case, &mut Tally::default()).is_err();
    for list in 0..2 {
        let mut size = 32;
        while size > 0 {
            let mut at = 0;
            loop {
                let mut smaller = case.clone();
                let len = if list == 0 { smaller.steps.len() } else { smaller.schema.len() };
                if at >= len {
                    break;
                }
                let range = at..(at + size).min(len);
                if list == 0 {
                    drop(smaller.steps.drain(range));
                } else {
                    drop(smaller.schema.drain(range));
                }
                if fails(&smaller) { case = smaller } else { at += size }
            }
            size /= 2;
        }
    }
    case
}

#[test]
fn random_schemas_and_statements_are_followed_and_left_as_they_are() {
    let count = std::env::var("SYNDDB_FUZZ_CASES").map_or(150, |count| count.parse().unwrap());
    let mut tally = Tally::default();
    let seeds = seeds(count);
    let many = seeds.len() > 100;
    for seed in seeds {
        let case = Generator::case(seed);
        if let Err(error) = run(&case, &mut tally) {
            let case = shrunk(case);
            let again = run(&case, &mut Tally::default());
            panic!("seed {seed}: {error}\nshrunk to {case:#?}\n{again:?}");
        }
    }
    eprintln!("{tally:?}");
    if many {
        // Cases in which everything fails, or is lost, show nothing.
        assert!(tally.failed * 2 < tally.statements, "{tally:?}");
        assert!(tally.hashes * 10 > tally.whole * 9, "{tally:?}");
        assert!(tally.losses < tally.whole && tally.commits * 2 > tally.whole, "{tally:?}");
    }
}

/// For each fault the number of seeds within which it has to be found.
#[test]
fn what_is_sabotaged_is_found() {
    for (fault, within) in [
        (Sabotage::SkippedRollback, 20),
        (Sabotage::LostEvent, 10),
        (Sabotage::WrongNetEffect, 300),
        (Sabotage::ForgottenDefinition, 50),
        (Sabotage::StaleJoin, 100),
    ] {
        sabotage(Some(fault));
        let found = (0..within).find_map(|seed| {
            let outcome = run(&Generator::case(seed), &mut Tally::default());
            outcome.err().map(|error| (seed, error))
        });
        sabotage(None);
        let Some((seed, error)) = found else { panic!("{fault:?} was not found") };
        eprintln!("{fault:?}: seed {seed}: {}", error.lines().next().unwrap_or_default());
    }
}
