//! Applies changesets to a replica.
//!
//! SQLite's own `sqlite3changeset_apply` goes row by row, and so fails where rows swap UNIQUE
//! values, where a key changes only in case, or where a row breaks a CHECK that the source had
//! switched off. Here all old rows of a changeset are checked and deleted first, then all new ones
//! are inserted: no state in between has to be valid.

use std::{collections::HashMap, fmt};

use rusqlite::{
    Connection, OptionalExtension, Row, Statement,
    config::DbConfig,
    types::{ToSql, ToSqlOutput, ValueRef},
};
use synddb_core::{
    changeset::{Change, ChangesetError, Operation, Record, Value, changes, validate},
    content::{ContentKey, ContentSum, TableHasher},
    wire::WireError,
};

use super::{TableInfo, content::table_content, quoted};

/// Changes of this table are of SQLite's own bookkeeping of AUTOINCREMENT.
const SEQUENCE: &str = "sqlite_sequence";

/// Why a changeset does not fit the replica. The caller rolls back.
#[derive(Debug)]
#[non_exhaustive]
pub enum ApplyError {
    /// The bytes are no changeset.
    Changeset(ChangesetError),
    /// The bytes are no change of the schema.
    Schema(WireError),
    /// A change of the schema has a step that this version does not know.
    UnknownStep,
    /// A definition made something else than it should.
    Definition {
        /// The object.
        name: String,
        /// Its definition.
        sql: String,
    },
    /// SQLite refused.
    Sqlite {
        /// The table.
        table: String,
        /// Its error.
        error: rusqlite::Error,
    },
    /// The replica has no such table.
    NoTable {
        /// The table.
        table: String,
    },
    /// The replica's table has other columns.
    Columns {
        /// The table.
        table: String,
        /// Columns in the changeset.
        changeset: usize,
        /// Columns in the replica, rowid and generated ones as changesets count them.
        replica: usize,
    },
    /// The row that is changed is not in the replica.
    NoRow {
        /// The table.
        table: String,
        /// Its key.
        key: String,
    },
    /// The row that is changed has other values in the replica.
    OtherRow {
        /// The table.
        table: String,
        /// Its key.
        key: String,
        /// The column.
        column: String,
        /// The value before the change, by the changeset.
        expected: String,
        /// The value in the replica.
        found: String,
    },
}

impl fmt::Display for ApplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changeset(error) => error.fmt(f),
            Self::Schema(error) => error.fmt(f),
            Self::UnknownStep => f.write_str(
                "the schema changes in a way that this version does not know: use a newer synddb",
            ),
            Self::Definition { name, sql } => {
                write!(f, "the replica did not get {name} as it is defined: {sql}")
            }
            Self::Sqlite { table, error } => write!(f, "table {table}: {error}"),
            Self::NoTable { table } => write!(f, "the replica has no table {table}"),
            Self::Columns { table, changeset, replica } => write!(
                f,
                "table {table} has {replica} columns in the replica and {changeset} in the changeset"
            ),
            Self::NoRow { table, key } => {
                write!(f, "table {table}: the replica has no row with key {key}")
            }
            Self::OtherRow { table, key, column, expected, found } => write!(
                f,
                "table {table}, row {key}, column {column}: the replica has {found}, the changeset \
                 expects {expected}"
            ),
        }
    }
}

impl std::error::Error for ApplyError {}

impl From<ChangesetError> for ApplyError {
    fn from(error: ChangesetError) -> Self {
        Self::Changeset(error)
    }
}

/// Applies changesets to one replica.
#[derive(Debug)]
pub struct Applier<'c> {
    pub(super) db: &'c Connection,
    tables: HashMap<String, Prepared<'c>>,
    pub(super) content: Option<Content>,
}

/// The content as the rows that were found and written tell it.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) key: ContentKey,
    pub(super) total: ContentSum,
    /// What of it is `sqlite_sequence`'s.
    sequence: ContentSum,
}

impl<'c> Applier<'c> {
    /// Makes `db` a replica: triggers, foreign keys and CHECK constraints are off from now on, since
    /// what they did at the source is in the changesets. No transaction may be open.
    ///
    /// # Errors
    /// SQLite's.
    pub fn new(db: &'c Connection) -> rusqlite::Result<Self> {
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
        db.pragma_update(None, "foreign_keys", false)?;
        db.pragma_update(None, "ignore_check_constraints", true)?;
        Ok(Self { db, tables: HashMap::new(), content: None })
    }

    /// Keeps the content hash up to date from now on, beginning with that of the database as it is.
    /// It is made of the rows that are found and written here, not of the changesets.
    ///
    /// # Errors
    /// SQLite's.
    pub fn follow_content(&mut self, key: ContentKey, now: ContentSum) -> rusqlite::Result<()> {
        let sequence = table_content(self.db, key, SEQUENCE)?;
        self.content = Some(Content { key, total: now, sequence });
        self.forget_tables();
        Ok(())
    }

    /// The content hash after what was applied last, where it is
    /// [followed](Self::follow_content).
    pub fn content(&self) -> Option<ContentSum> {
        self.content.as_ref().map(|content| content.total)
    }

    /// Applies one changeset. The caller has opened a transaction, which may hold several.
    ///
    /// # Errors
    /// Any [`ApplyError`]; the caller must roll back, for part of it may be applied.
    pub fn apply(&mut self, changeset: &[u8]) -> Result<(), ApplyError> {
        validate(changeset)?;
        let (mut updated, mut counters, mut has_sequence) = (Vec::new(), Counters::new(), false);
        for change in changes(changeset) {
            let change = change?;
            if change.table.name == SEQUENCE {
                has_sequence = true;
            } else if change.operation != Operation::Insert {
                let table = self.table(&change)?;
                let row = table.take_row(&change)?;
                let gone = table.content_of(row.iter().map(Owned::borrow));
                self.count(|total| *total -= gone);
                if change.operation == Operation::Update {
                    updated.push(row);
                }
            }
        }
        let mut updated = updated.into_iter();
        for change in changes(changeset) {
            let change = change?;
            match (change.operation, change.new) {
                _ if change.table.name == SEQUENCE => {}
                (Operation::Insert, Some(new)) => {
                    self.insert(&change, new.values(), &mut counters)?;
                }
                (Operation::Update, Some(new)) => {
                    // One for every UPDATE, in the same order.
                    let old = updated.next().unwrap_or_default();
                    let merged = new.values().zip(&old).map(|(new, old)| match new {
                        Value::Undefined => old.borrow(),
                        new => new,
                    });
                    self.insert(&change, merged, &mut counters)?;
                }
                _ => {}
            }
        }
        self.restore_counters(&counters)?;
        if has_sequence {
            self.apply_sequence(changeset)?;
        }
        if has_sequence || !counters.is_empty() { self.look_at_sequence() } else { Ok(()) }
    }

    fn count(&mut self, change: impl FnOnce(&mut ContentSum)) {
        if let Some(content) = &mut self.content {
            change(&mut content.total);
        }
    }

    /// SQLite writes it on its own, too: whatever it holds counts.
    pub(super) fn look_at_sequence(&mut self) -> Result<(), ApplyError> {
        if let Some(content) = &mut self.content {
            let now = table_content(self.db, content.key, SEQUENCE).map_err(sequence_error)?;
            content.total += now - std::mem::replace(&mut content.sequence, now);
        }
        Ok(())
    }

    /// Tables are looked at anew.
    pub(super) fn forget_tables(&mut self) {
        self.tables.clear();
    }

    fn insert<'v>(
        &mut self,
        change: &Change<'_>,
        values: impl Iterator<Item = Value<'v>> + Clone,
        counters: &mut Counters,
    ) -> Result<(), ApplyError> {
        let db = self.db;
        let table = self.table(change)?;
        if table.has_counter && !counters.contains_key(&table.name) {
            counters.insert(table.name.clone(), counter(db, &table.name)?);
        }
        let come = table.content_of(values.clone());
        table.insert(values)?;
        self.count(|total| *total += come);
        Ok(())
    }

    /// Takes back how far inserting rows has moved the numbers: at the source an UPDATE of a key,
    /// here an INSERT too, does not.
    fn restore_counters(&self, before: &Counters) -> Result<(), ApplyError> {
        for (table, rows) in before {
            if counter(self.db, table)? == *rows {
                continue;
            }
            let restore = || -> rusqlite::Result<()> {
                let delete = "DELETE FROM main.sqlite_sequence WHERE name = ?1 COLLATE NOCASE";
                self.db.prepare_cached(delete)?.execute([table])?;
                let insert =
                    "INSERT INTO main.sqlite_sequence(rowid, name, seq) VALUES (?1, ?2, ?3)";
                let mut insert = self.db.prepare_cached(insert)?;
                for row in rows {
                    let values = row.iter().map(|value| Sql(value.borrow()));
                    insert.execute(rusqlite::params_from_iter(values))?;
                }
                Ok(())
            };
            restore().map_err(sequence_error)?;
        }
        Ok(())
    }

    /// Last, since inserting rows moves the numbers.
    fn apply_sequence(&mut self, changeset: &[u8]) -> Result<(), ApplyError> {
        for change in changes(changeset) {
            let change = change?;
            if change.table.name != SEQUENCE {
                continue;
            }
            let mut records = [&change.old, &change.new].into_iter().flatten();
            let key = records.find_map(|record| record.values().next()).map(Sql);
            // Of an UPDATE the values that stay are in neither record, but in the replica.
            let before = self
                .db
                .prepare_cached("SELECT rowid, name, seq FROM sqlite_sequence WHERE rowid IS ?1")
                .and_then(|mut select| select.query_row([key], |row| owned(row, 3)).optional())
                .map_err(sequence_error)?
                .unwrap_or_default();
            self.db
                .execute("DELETE FROM sqlite_sequence WHERE rowid IS ?1", [key])
                .map_err(sequence_error)?;
            if let Some(new) = &change.new {
                let values: Vec<_> = new
                    .values()
                    .enumerate()
                    .map(|(at, new)| match (new, before.get(at)) {
                        (Value::Undefined, Some(before)) => Sql(before.borrow()),
                        (new, _) => Sql(new),
                    })
                    .collect();
                self.db
                    .execute(
                        "INSERT INTO sqlite_sequence(rowid, name, seq) VALUES (?1, ?2, ?3)",
                        rusqlite::params_from_iter(&values),
                    )
                    .map_err(sequence_error)?;
            }
        }
        Ok(())
    }

    fn table(&mut self, change: &Change<'_>) -> Result<&mut Prepared<'c>, ApplyError> {
        let name = change.table.name;
        if !self.tables.contains_key(name) {
            let key = self.content.as_ref().map(|content| content.key);
            self.tables.insert(name.to_owned(), Prepared::new(self.db, name, key)?);
        }
        let Some(table) = self.tables.get_mut(name) else {
            return Err(ApplyError::NoTable { table: name.into() });
        };
        if table.info.columns.len() != change.table.columns() {
            return Err(ApplyError::Columns {
                table: name.into(),
                changeset: change.table.columns(),
                replica: table.info.columns.len(),
            });
        }
        Ok(table)
    }
}

/// For each table the rows of `sqlite_sequence` that count for it.
type Counters = HashMap<String, Vec<Vec<Owned>>>;

fn counter(db: &Connection, table: &str) -> Result<Vec<Vec<Owned>>, ApplyError> {
    // The name as the table was made with it, which may be written otherwise elsewhere.
    let sql = "SELECT rowid, name, seq FROM main.sqlite_sequence WHERE name = ?1 COLLATE NOCASE";
    let rows = || -> rusqlite::Result<_> {
        db.prepare_cached(sql)?.query_map([table], |row| owned(row, 3))?.collect()
    };
    rows().map_err(sequence_error)
}

fn sequence_error(error: rusqlite::Error) -> ApplyError {
    ApplyError::Sqlite { table: SEQUENCE.into(), error }
}

/// The statements for one table.
#[derive(Debug)]
struct Prepared<'c> {
    name: String,
    info: TableInfo,
    /// Whether `sqlite_sequence` counts for it.
    has_counter: bool,
    select: Statement<'c>,
    delete: Statement<'c>,
    insert: Statement<'c>,
    /// Where the content is followed: with the key as changesets have it.
    hasher: Option<(TableHasher, Vec<u8>)>,
}

impl<'c> Prepared<'c> {
    fn new(
        db: &'c Connection,
        table: &str,
        key_of_hashes: Option<ContentKey>,
    ) -> Result<Self, ApplyError> {
        let sqlite = |error| ApplyError::Sqlite { table: table.into(), error };
        let info = TableInfo::read(db, table).map_err(sqlite)?;
        let info = info.ok_or_else(|| ApplyError::NoTable { table: table.into() })?;
        let name = quoted(table);
        let columns = info.columns.join(", ");
        // A key column's own collation finds the row, as it keeps it unique.
        let key: Vec<_> = info.columns.iter().zip(&info.key).filter(|(_, key)| **key).collect();
        let matches: Vec<_> =
            (1..).zip(&key).map(|(at, (name, _))| format!("{name} IS ?{at}")).collect();
        let matches = matches.join(" AND ");
        let values: Vec<_> = (1..=info.columns.len()).map(|at| format!("?{at}")).collect();
        let values = values.join(", ");
        let prepare = |sql: String| db.prepare(&sql).map_err(sqlite);
        // SQLite tells it in the definition only. The word in a comment there costs a look.
        let has_counter = "SELECT 1 FROM main.sqlite_schema
             WHERE name = ?1 COLLATE NOCASE AND type = 'table'
             AND instr(lower(sql), 'autoincrement')
             AND EXISTS (SELECT 1 FROM main.sqlite_schema WHERE name = 'sqlite_sequence')";
        Ok(Self {
            select: prepare(format!("SELECT {columns} FROM main.{name} WHERE {matches}"))?,
            delete: prepare(format!("DELETE FROM main.{name} WHERE {matches}"))?,
            insert: prepare(format!("INSERT INTO main.{name}({columns}) VALUES ({values})"))?,
            has_counter: db
                .prepare_cached(has_counter)
                .and_then(|mut select| select.exists([table]))
                .map_err(sqlite)?,
            hasher: key_of_hashes.map(|key| {
                let columns = info.key.iter().map(|key| u8::from(*key)).collect();
                (TableHasher::new(key, table), columns)
            }),
            name: table.into(),
            info,
        })
    }

    fn content_of<'v>(&self, row: impl Iterator<Item = Value<'v>> + Clone) -> ContentSum {
        self.hasher.as_ref().map(|(hasher, key)| hasher.row(key, row)).unwrap_or_default()
    }

    /// Checks the row that `change` is about against its old values, deletes it and returns it.
    fn take_row(&mut self, change: &Change<'_>) -> Result<Vec<Owned>, ApplyError> {
        let old: Vec<_> = change.old.iter().flat_map(Record::values).collect();
        let key: Vec<_> = old
            .iter()
            .zip(&self.info.key)
            .filter(|(_, key)| **key)
            .map(|(value, _)| Sql(*value))
            .collect();
        let table = &self.name;
        let sqlite = |error| ApplyError::Sqlite { table: table.clone(), error };
        let shown = || key.iter().map(|Sql(value)| show(value)).collect::<Vec<_>>().join(", ");
        let mut rows = self.select.query(rusqlite::params_from_iter(&key)).map_err(sqlite)?;
        let row = rows.next().map_err(sqlite)?;
        let row = row.ok_or_else(|| ApplyError::NoRow { table: table.clone(), key: shown() })?;
        let found = owned(row, self.info.columns.len()).map_err(sqlite)?;
        drop(rows);
        for ((column, expected), found) in self.info.columns.iter().zip(&old).zip(&found) {
            if *expected != Value::Undefined && !expected.is_identical(&found.borrow()) {
                return Err(ApplyError::OtherRow {
                    table: table.clone(),
                    key: shown(),
                    column: column.clone(),
                    expected: show(expected),
                    found: show(&found.borrow()),
                });
            }
        }
        self.delete.execute(rusqlite::params_from_iter(&key)).map_err(sqlite)?;
        Ok(found)
    }

    fn insert<'v>(&mut self, values: impl Iterator<Item = Value<'v>>) -> Result<(), ApplyError> {
        self.insert
            .execute(rusqlite::params_from_iter(values.map(Sql)))
            .map(drop)
            .map_err(|error| ApplyError::Sqlite { table: self.name.clone(), error })
    }
}

/// A value that outlives the row that it was read from.
#[derive(Debug, Clone, PartialEq)]
enum Owned {
    Null,
    Integer(i64),
    Real(f64),
    Text(Vec<u8>),
    Blob(Vec<u8>),
}

impl Owned {
    fn borrow(&self) -> Value<'_> {
        match self {
            Self::Null => Value::Null,
            Self::Integer(integer) => Value::Integer(*integer),
            Self::Real(real) => Value::Real(*real),
            Self::Text(bytes) => Value::Text(bytes),
            Self::Blob(bytes) => Value::Blob(bytes),
        }
    }
}

fn owned(row: &Row<'_>, columns: usize) -> rusqlite::Result<Vec<Owned>> {
    (0..columns)
        .map(|at| {
            Ok(match row.get_ref(at)? {
                ValueRef::Null => Owned::Null,
                ValueRef::Integer(integer) => Owned::Integer(integer),
                ValueRef::Real(real) => Owned::Real(real),
                ValueRef::Text(bytes) => Owned::Text(bytes.to_vec()),
                ValueRef::Blob(bytes) => Owned::Blob(bytes.to_vec()),
            })
        })
        .collect()
}

/// Binds a value as it is; text need not be UTF-8.
#[derive(Debug, Clone, Copy)]
struct Sql<'a>(Value<'a>);

impl ToSql for Sql<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self.0 {
            Value::Undefined | Value::Null => ValueRef::Null,
            Value::Integer(integer) => ValueRef::Integer(integer),
            Value::Real(real) => ValueRef::Real(real),
            Value::Text(bytes) => ValueRef::Text(bytes),
            Value::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

/// For people, shortened.
fn show(value: &Value<'_>) -> String {
    const LONGEST: usize = 40;
    match value {
        Value::Undefined => "nothing".into(),
        Value::Null => "NULL".into(),
        Value::Integer(integer) => integer.to_string(),
        Value::Real(real) => format!("{real:?}"),
        Value::Text(bytes) => {
            let text: String = String::from_utf8_lossy(bytes).chars().take(LONGEST).collect();
            format!("{text:?} ({} bytes)", bytes.len())
        }
        Value::Blob(bytes) => format!("a blob of {} bytes", bytes.len()),
    }
}
