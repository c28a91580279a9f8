//! Which tables need more than a session sees, by their schema.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CString, c_int};

use super::ffi::{Db, SqliteError, Stmt};

/// Tables SQLite keeps for itself. Sessions are told of some of them (`sqlite_stat1`), but they
/// are no content: planner statistics stay where they were made, and `sqlite_sequence` travels
/// by its own way.
pub(super) fn is_internal_table(name: &[u8]) -> bool {
    const PREFIX: &[u8] = b"sqlite_";
    name.len() >= PREFIX.len() && name[..PREFIX.len()].eq_ignore_ascii_case(PREFIX)
}

/// Tables whose declared primary key admits NULL: any `PRIMARY KEY` of a rowid table that is
/// neither an alias of the rowid nor declared `NOT NULL`. Sessions skip such rows in silence.
#[derive(Default)]
pub(super) struct WatchedTables(HashMap<Vec<u8>, WatchedTable>);

pub(super) struct WatchedTable {
    /// The key's columns that admit NULL, by their number in the table.
    pub(super) key_columns: Vec<c_int>,
    /// Finds a row with NULL in a key of one column, by the key's index. A key of several
    /// columns has no index that would find it.
    probe: Option<Stmt>,
    /// Whether the values of each row event must be looked at: rows with a NULL key are there,
    /// or may be.
    pub(super) look_at_rows: Cell<bool>,
    /// A row event came since the last boundary.
    pub(super) touched: Cell<bool>,
}

impl WatchedTables {
    /// Reads the schema of the main database.
    pub(super) fn load(db: Db) -> Result<WatchedTables, SqliteError> {
        // Rootpage 0 is a virtual table, whose module may be missing. A rowid alias is the one
        // kind of key without an index.
        let mut rows = db.prepare(
            c"SELECT t.name, c.cid, c.name,
                (SELECT count(*) FROM pragma_table_xinfo(t.name, 'main') WHERE pk > 0)
              FROM main.sqlite_schema AS t, pragma_table_xinfo(t.name, 'main') AS c
              WHERE t.type = 'table' AND t.rootpage > 0 AND c.pk > 0 AND c.\"notnull\" = 0
                AND EXISTS (SELECT 1 FROM pragma_index_list(t.name, 'main') WHERE origin = 'pk')",
        )?;
        let mut tables: HashMap<Vec<u8>, WatchedTable> = HashMap::new();
        while rows.step()? {
            let (table, column) = (rows.column_text(0), rows.column_text(2));
            if is_internal_table(table.as_bytes()) {
                continue;
            }
            let cid = c_int::try_from(rows.column_i64(1)).expect("column numbers are small");
            if let Some(known) = tables.get_mut(table.as_bytes()) {
                known.key_columns.push(cid);
                continue;
            }
            let mut probe = (rows.column_i64(3) == 1)
                .then(|| db.prepare(&probe_sql(&table, &column)))
                .transpose()?;
            let may_hold_null = match &mut probe {
                Some(probe) => probe.exists()?,
                None => true,
            };
            tables.insert(
                table.into_bytes(),
                WatchedTable {
                    key_columns: vec![cid],
                    probe,
                    look_at_rows: Cell::new(may_hold_null),
                    touched: Cell::new(false),
                },
            );
        }
        Ok(WatchedTables(tables))
    }

    pub(super) fn get(&self, name: &[u8]) -> Option<&WatchedTable> {
        self.0.get(name)
    }

    pub(super) fn clear_touched(&self) {
        self.0.values().for_each(|table| table.touched.set(false));
    }

    /// Looks into the touched tables, and leaves in `found` the name of one that holds a row
    /// with a NULL key and did not before.
    pub(super) fn probe_keys(&mut self, found: &mut Option<String>) -> Result<(), SqliteError> {
        for (name, table) in &mut self.0 {
            let Some(probe) = table.probe.as_mut().filter(|_| table.touched.get()) else {
                continue;
            };
            let holds_null = probe.exists()?;
            if holds_null && !table.look_at_rows.get() {
                found.get_or_insert_with(|| String::from_utf8_lossy(name).into_owned());
            }
            table.look_at_rows.set(holds_null);
        }
        Ok(())
    }
}

fn probe_sql(table: &str, column: &str) -> CString {
    let (table, column) = (quoted(table), quoted(column));
    CString::new(format!("SELECT 1 FROM main.{table} WHERE {column} IS NULL LIMIT 1"))
        .expect("names of a schema hold no NUL")
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;

    fn watched(schema: &str) -> Vec<(String, Vec<c_int>, bool)> {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(schema).unwrap();
        // SAFETY: the connection outlives the handle.
        let db = unsafe { Db::from_raw(conn.handle()) }.unwrap();
        let tables = WatchedTables::load(db).unwrap();
        let mut list: Vec<_> = tables
            .0
            .iter()
            .map(|(name, table)| {
                let name = String::from_utf8(name.clone()).unwrap();
                (name, table.key_columns.clone(), table.look_at_rows.get())
            })
            .collect();
        list.sort();
        list
    }

    #[test]
    fn keys_that_cannot_be_null_are_not_watched() {
        let none = watched(
            "CREATE TABLE alias(a, id INTEGER PRIMARY KEY);
             CREATE TABLE no_key(a, b);
             CREATE TABLE strict_key(k TEXT PRIMARY KEY, v TEXT) STRICT;
             CREATE TABLE without(k, l, PRIMARY KEY(k, l)) WITHOUT ROWID;
             CREATE TABLE declared(k TEXT PRIMARY KEY NOT NULL, v);
             CREATE VIRTUAL TABLE notes USING fts5(body);
             CREATE VIEW w AS SELECT 1 AS k;",
        );
        assert_eq!(none, []);
    }

    #[test]
    fn nullable_keys_are_watched_and_probed_where_an_index_can_find_them() {
        let tables = watched(
            "CREATE TABLE text_key(v, k TEXT PRIMARY KEY);
             CREATE TABLE descending(id INTEGER PRIMARY KEY DESC, v);
             CREATE TABLE \"odd \"\"name\"(k TEXT PRIMARY KEY);
             CREATE TABLE pair(a, b, c NOT NULL, PRIMARY KEY(c, a, b));
             CREATE TABLE gen(k AS (v) VIRTUAL, v, w, PRIMARY KEY(w));
             INSERT INTO \"odd \"\"name\" VALUES (NULL);",
        );
        assert_eq!(
            tables,
            [
                ("descending".into(), vec![0], false),
                ("gen".into(), vec![2], false),
                ("odd \"name".into(), vec![0], true),
                ("pair".into(), vec![0, 1], true),
                ("text_key".into(), vec![1], false),
            ]
        );
    }
}
