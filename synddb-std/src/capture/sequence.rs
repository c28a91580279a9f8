//! `sqlite_sequence`: the largest rowids of AUTOINCREMENT tables.
//!
//! SQLite writes it without telling any hook. So it is read after each commit and compared with
//! the last reading; the differences travel as one more table of the changeset, in the form
//! sessions use for tables without a primary key: the rowid stands in front as the key.

use std::collections::BTreeMap;

use synddb_core::changeset::{self, ChangesetWriter, WriteError};

use super::ffi::{Db, SqliteError, Stmt, Value};
use super::journal::{self, Op};

pub(super) type Rows = BTreeMap<i64, [Value; 2]>;

/// The table and what it held at the last boundary.
pub(super) struct Sequences {
    select: Stmt,
    pub(super) rows: Rows,
}

impl Sequences {
    /// None where the schema has no such table.
    pub(super) fn load(db: Db) -> Result<Option<Sequences>, SqliteError> {
        let mut exists =
            db.prepare(c"SELECT 1 FROM main.sqlite_schema WHERE name = 'sqlite_sequence'")?;
        if !exists.exists()? {
            return Ok(None);
        }
        let select = db.prepare(c"SELECT rowid, name, seq FROM main.sqlite_sequence")?;
        let mut sequences = Sequences { select, rows: Rows::new() };
        sequences.rows = sequences.read()?;
        Ok(Some(sequences))
    }

    /// Appends what changed since the last call to `changeset`.
    pub(super) fn append_changes(&mut self, changeset: &mut Vec<u8>) -> Result<(), SqliteError> {
        let now = self.read()?;
        if now != self.rows {
            encode(&self.rows, &now, changeset);
            self.rows = now;
        }
        Ok(())
    }

    /// What the table holds now.
    pub(super) fn read(&mut self) -> Result<Rows, SqliteError> {
        let mut rows = Rows::new();
        while self.select.step()? {
            let [name, seq] = [1, 2].map(|column| self.select.column_value(column));
            rows.insert(self.select.column_i64(0), [name, seq]);
        }
        Ok(rows)
    }
}

/// Appends the differences between two readings to a journal, as events of table `number`.
pub(super) fn journal_changes(old: &Rows, new: &Rows, number: usize, out: &mut Vec<u8>) {
    let put_row = |rowid: i64, values: &[Value; 2], out: &mut Vec<u8>| {
        journal::put_integer(out, rowid);
        values.iter().for_each(|value| value.put(out));
    };
    for (rowid, values) in old {
        if new.get(rowid) != Some(values) {
            journal::put_event(out, Op::Delete, number);
            put_row(*rowid, values, out);
        }
    }
    for (rowid, values) in new {
        if old.get(rowid) != Some(values) {
            journal::put_event(out, Op::Insert, number);
            put_row(*rowid, values, out);
        }
    }
}

/// Appends the differences between two readings to a changeset.
fn encode(old: &Rows, new: &Rows, out: &mut Vec<u8>) {
    let start = out.len();
    let room = size_bound(old) + size_bound(new) + HEADER_BOUND;
    out.resize(start + room, 0);
    let mut writer = ChangesetWriter::new(&mut out[start..]);
    let written = write(old, new, &mut writer).map(|()| writer.len());
    out.truncate(start + written.expect("the buffer has room, and the values come from SQLite"));
}

fn write(old: &Rows, new: &Rows, writer: &mut ChangesetWriter<'_>) -> Result<(), WriteError> {
    writer.table("sqlite_sequence", &[1, 0, 0])?;
    for (rowid, values) in old.iter().filter(|(rowid, _)| !new.contains_key(rowid)) {
        writer.delete(&record(*rowid, values))?;
    }
    for (rowid, values) in new {
        match old.get(rowid) {
            None => writer.insert(&record(*rowid, values))?,
            Some(before) if before != values => {
                let (mut before, mut after) = (record(*rowid, before), record(*rowid, values));
                after[0] = changeset::Value::Undefined;
                for column in 1..3 {
                    if before[column].is_identical(&after[column]) {
                        before[column] = changeset::Value::Undefined;
                        after[column] = changeset::Value::Undefined;
                    }
                }
                writer.update(&before, &after)?;
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn record(rowid: i64, [name, seq]: &[Value; 2]) -> [changeset::Value<'_>; 3] {
    [changeset::Value::Integer(rowid), borrowed(name), borrowed(seq)]
}

fn borrowed(value: &Value) -> changeset::Value<'_> {
    match value {
        Value::Null => changeset::Value::Null,
        Value::Integer(value) => changeset::Value::Integer(*value),
        Value::Real(value) => changeset::Value::Real(*value),
        Value::Text(text) => changeset::Value::Text(text),
        Value::Blob(blob) => changeset::Value::Blob(blob),
    }
}

const HEADER_BOUND: usize = 32;

/// No record of these rows takes more bytes: two for the operation, three values of at most
/// nine bytes, or of a type, a length and their content.
fn size_bound(rows: &Rows) -> usize {
    let content = |value: &Value| match value {
        Value::Text(bytes) | Value::Blob(bytes) => bytes.len(),
        _ => 0,
    };
    rows.values().map(|values| 32 + values.iter().map(content).sum::<usize>()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;

    #[test]
    fn differences_are_bytes_a_session_would_write() {
        // The same change to an ordinary table of this shape, recorded by a session.
        let before = "INSERT INTO t VALUES ('a', 1), ('b', 2), ('c', 3)";
        let change = "DELETE FROM t WHERE name = 'a';
                      UPDATE t SET seq = 9 WHERE name = 'b';
                      UPDATE t SET name = 'c2', seq = 1.5 WHERE name = 'c';
                      INSERT INTO t VALUES (NULL, x'00ff')";
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(&format!("CREATE TABLE t(name, seq); {before}")).unwrap();
        // SAFETY: the connection outlives the handle.
        let db = unsafe { Db::from_raw(conn.handle()) }.unwrap();
        let select = db.prepare(c"SELECT rowid, name, seq FROM t").unwrap();
        let mut table = Sequences { select, rows: Rows::new() };
        table.rows = table.read().unwrap();

        unsafe extern "C" fn all(_: *mut std::ffi::c_void, _: *const std::ffi::c_char) -> i32 {
            1
        }
        // SAFETY: the slot is empty; the session is deleted before the connection closes.
        let recorded = unsafe {
            use super::super::ffi::session;
            let session = session::create(db, c"main", all, std::ptr::null_mut()).unwrap();
            conn.execute_batch(change).unwrap();
            let recorded = session::changeset(session, usize::MAX).unwrap();
            session::delete(session);
            recorded
        };
        let mut written = Vec::new();
        table.append_changes(&mut written).unwrap();
        let written = String::from_utf8_lossy(&written).replace("sqlite_sequence", "t");

        // A session orders its records by hash: compare them as sets of operations.
        let recorded = String::from_utf8_lossy(&recorded).into_owned();
        let sorted = |bytes: &str| {
            let mut bytes: Vec<char> = bytes.chars().collect();
            bytes.sort_unstable();
            bytes
        };
        assert_eq!(written.len(), recorded.len());
        assert_eq!(sorted(&written), sorted(&recorded));

        let mut nothing = Vec::new();
        table.append_changes(&mut nothing).unwrap();
        assert!(nothing.is_empty());
    }
}
