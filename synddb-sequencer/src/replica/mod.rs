//! Rebuilding a database from the log.

mod apply;
mod compare;
mod content;
mod restore;
mod schema;

pub use apply::{Applier, ApplyError};
pub use compare::{Difference, differences};
pub use content::content_of;
pub use restore::{EntryFault, Progress, Restore, RestoreError, Restored, SnapshotFault};

use rusqlite::Connection;

/// `name` as SQL, whatever is in it.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A table as changesets see it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TableInfo {
    /// Its columns in order, without generated ones, quoted. Where it has no declared primary key
    /// the rowid comes first.
    columns: Vec<String>,
    /// For each of them, whether it is part of the key.
    key: Vec<bool>,
}

impl TableInfo {
    /// `None` where there is no such table.
    fn read(db: &Connection, table: &str) -> rusqlite::Result<Option<Self>> {
        let mut info = db.prepare_cached(
            "SELECT name, pk FROM pragma_table_xinfo(?1) WHERE hidden = 0 ORDER BY cid",
        )?;
        let rows = info.query_map([table], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? > 0)))?;
        let (names, mut key): (Vec<String>, Vec<bool>) =
            rows.collect::<rusqlite::Result<Vec<_>>>()?.into_iter().unzip();
        if names.is_empty() {
            return Ok(None);
        }
        let mut columns: Vec<_> = names.iter().map(|name| quoted(name)).collect();
        if !key.contains(&true) {
            let free = |alias: &&&str| !names.iter().any(|name| name.eq_ignore_ascii_case(alias));
            // With all three names taken the rowid cannot be reached, nor captured.
            if let Some(alias) = ["_rowid_", "rowid", "oid"].iter().find(free) {
                columns.insert(0, (*alias).into());
                key.insert(0, true);
            }
        }
        Ok(Some(Self { columns, key }))
    }
}
