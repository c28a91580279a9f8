//! The application's database against what can be restored from the log.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use synddb_client::rusqlite::{Connection, OpenFlags};
use synddb_sequencer::{
    replica::{Difference, Restore},
    store::{LogStore, SqliteStore},
};

use crate::Result;

/// Where both sides keep their data.
pub(crate) struct Sides {
    pub(crate) database: PathBuf,
    pub(crate) log: PathBuf,
}

impl Sides {
    /// Transactions that the database holds and a restore would not.
    pub(crate) fn unstored(&self) -> Result<i64> {
        let here = version(&self.database)?;
        let there = self.restorable_version().unwrap_or(0);
        Ok(here - there)
    }

    fn restorable_version(&self) -> Result<i64> {
        let store = SqliteStore::open_read_only(&self.log)?;
        let stream = store.streams()?.first().ok_or("no stream yet")?.receiver.stream();
        let out = self.log.with_file_name("probe.db");
        Restore::new(&store, stream).replace(true).run(&out, |_| ControlFlow::Continue(()))?;
        version(&out)
    }
}

/// A table in both databases.
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) source_rows: i64,
    pub(crate) replica_rows: i64,
}

/// How many transactions the book in a database has seen.
pub(crate) fn version(database: &Path) -> Result<i64> {
    Ok(open(database)?.query_row("SELECT version FROM book", [], |row| row.get(0))?)
}

pub(crate) fn tables(source: &Path, replica: &Path) -> Result<Vec<Table>> {
    let (source, replica) = (open(source)?, open(replica)?);
    let names: Vec<String> = source
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")?
        .query_map([], |row| row.get(0))?
        .collect::<std::result::Result<_, _>>()?;
    names
        .into_iter()
        .map(|name| {
            let sql = format!("SELECT count(*) FROM \"{name}\"");
            let rows = |db: &Connection| db.query_row(&sql, [], |row| row.get(0));
            Ok(Table { source_rows: rows(&source)?, replica_rows: rows(&replica)?, name })
        })
        .collect()
}

/// Row by row, with types and bytes.
pub(crate) fn differences(source: &Path, replica: &Path) -> Result<Vec<Difference>> {
    Ok(synddb_sequencer::replica::differences(&open(source)?, &open(replica)?)?)
}

fn open(path: &Path) -> Result<Connection> {
    Ok(Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?)
}
