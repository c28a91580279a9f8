//! The application's database against what can be restored from the log.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use synddb_client::rusqlite::{Connection, OpenFlags, OptionalExtension};
use synddb_sequencer::{
    replica::{Difference, Restore},
    store::{LogStore, SqliteStore},
};

use crate::{Result, interrupt};

/// Where both sides keep their data.
pub(crate) struct Sides {
    pub(crate) database: PathBuf,
    pub(crate) log: PathBuf,
}

impl Sides {
    /// How many transactions the book has seen by now.
    pub(crate) fn version(&self) -> Result<i64> {
        version(&open(&self.database)?)
    }

    /// How many of them the sequencer could give back, were everything else gone.
    pub(crate) fn stored_version(&self) -> Result<i64> {
        let store = SqliteStore::open_read_only(&self.log)?;
        let stream = store.streams()?.first().ok_or("the log has no stream")?.receiver.stream();
        let out = self.log.with_file_name("probe.db");
        Restore::new(&store, stream).replace(true).run(&out, |_| {
            if interrupt::came() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        version(&open(&out)?)
    }
}

fn version(book: &Connection) -> Result<i64> {
    Ok(book.query_row("SELECT version FROM book", [], |row| row.get(0))?)
}

/// A table of the source.
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) source_rows: i64,
    /// `None` where the replica has no such table.
    pub(crate) replica_rows: Option<i64>,
    /// To the last bit.
    pub(crate) equal: bool,
}

/// Both databases, row by row: every table of the source, and everything that differs.
pub(crate) fn compare(source: &Path, replica: &Path) -> Result<(Vec<Table>, Vec<Difference>)> {
    let (source, replica) = (open(source)?, open(replica)?);
    let differences = synddb_sequencer::replica::differences(&source, &replica)?;
    let names: Vec<String> = source
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")?
        .query_map([], |row| row.get(0))?
        .collect::<std::result::Result<_, _>>()?;
    let mut tables = Vec::new();
    for name in names {
        let source_rows = rows(&source, &name)?.ok_or("a table of the source is gone")?;
        let replica_rows = rows(&replica, &name)?;
        let equal = !differences.iter().any(|difference| concerns(difference, &name));
        tables.push(Table { name, source_rows, replica_rows, equal });
    }
    Ok((tables, differences))
}

fn concerns(difference: &Difference, name: &str) -> bool {
    match difference {
        Difference::Schema { name: object } => object == name,
        Difference::Rows { table, .. } => table == name,
        // Rather one table too many than one too few.
        _ => true,
    }
}

fn rows(db: &Connection, table: &str) -> Result<Option<i64>> {
    let there = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1";
    if db.query_row(there, [table], |_| Ok(())).optional()?.is_none() {
        return Ok(None);
    }
    Ok(Some(db.query_row(&format!("SELECT count(*) FROM \"{table}\""), [], |row| row.get(0))?))
}

fn open(path: &Path) -> Result<Connection> {
    Ok(Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_table_that_differs_is_called_unequal() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, sql: &str| {
            let path = dir.path().join(name);
            Connection::open(&path).unwrap().execute_batch(sql).unwrap();
            path
        };
        let both = "CREATE TABLE same(v); INSERT INTO same VALUES (1);
                    CREATE TABLE rows_differ(v); CREATE TABLE missing(v);";
        let source = make("source", &format!("{both} INSERT INTO rows_differ VALUES (1)"));
        let replica = make(
            "replica",
            &format!("{both} INSERT INTO rows_differ VALUES ('1'); DROP TABLE missing"),
        );
        let (tables, differences) = compare(&source, &replica).unwrap();
        let seen: Vec<_> =
            tables.iter().map(|t| (t.name.as_str(), t.replica_rows, t.equal)).collect();
        let expected =
            [("missing", None, false), ("rows_differ", Some(1), false), ("same", Some(1), true)];
        assert_eq!(seen, expected, "{differences:?}");
        assert_eq!(differences.len(), 2);
    }
}
