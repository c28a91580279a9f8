//! `sqlite_sequence`: the largest rowids of AUTOINCREMENT tables.
//!
//! SQLite writes it without telling any hook. So it is read after each commit and compared with
//! the last reading; the differences travel as one more table of the changeset, in the form
//! sessions use for tables without a primary key: the rowid stands in front as the key.

use std::collections::BTreeMap;

use super::ffi::{Db, SqliteError, Stmt, Value};

type Rows = BTreeMap<i64, [Value; 2]>;

/// The table and what it held at the last boundary.
pub(super) struct Sequences {
    select: Stmt,
    rows: Rows,
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

    fn read(&mut self) -> Result<Rows, SqliteError> {
        let mut rows = Rows::new();
        while self.select.step()? {
            let [name, seq] = [1, 2].map(|column| self.select.column_value(column));
            rows.insert(self.select.column_i64(0), [name, seq]);
        }
        Ok(rows)
    }
}

// The changeset format: https://www.sqlite.org/session/sqlite3session_changeset.html, and the
// head of sqlite3session.c for the bytes.
const OP_DELETE: u8 = 9;
const OP_INSERT: u8 = 18;
const OP_UPDATE: u8 = 23;

fn encode(old: &Rows, new: &Rows, out: &mut Vec<u8>) {
    out.extend_from_slice(b"T\x03\x01\x00\x00sqlite_sequence\0");
    let direct = 0;
    for (rowid, values) in old.iter().filter(|(rowid, _)| !new.contains_key(rowid)) {
        out.extend_from_slice(&[OP_DELETE, direct]);
        record(out, *rowid, values);
    }
    for (rowid, values) in new {
        match old.get(rowid) {
            None => {
                out.extend_from_slice(&[OP_INSERT, direct]);
                record(out, *rowid, values);
            }
            Some(before) if before != values => {
                out.extend_from_slice(&[OP_UPDATE, direct]);
                integer(out, *rowid);
                for (before, after) in before.iter().zip(values) {
                    optional(out, (before != after).then_some(before));
                }
                optional(out, None);
                for (before, after) in before.iter().zip(values) {
                    optional(out, (before != after).then_some(after));
                }
            }
            Some(_) => {}
        }
    }
}

fn record(out: &mut Vec<u8>, rowid: i64, values: &[Value; 2]) {
    integer(out, rowid);
    values.iter().for_each(|value| optional(out, Some(value)));
}

fn integer(out: &mut Vec<u8>, value: i64) {
    out.push(1);
    out.extend_from_slice(&value.to_be_bytes());
}

/// A value, or the mark for one that the change leaves alone.
fn optional(out: &mut Vec<u8>, value: Option<&Value>) {
    match value {
        None => out.push(0),
        Some(Value::Integer(value)) => integer(out, *value),
        Some(Value::Real(value)) => {
            out.push(2);
            out.extend_from_slice(&value.to_be_bytes());
        }
        Some(Value::Text(text)) => bytes(out, 3, text),
        Some(Value::Blob(blob)) => bytes(out, 4, blob),
        Some(Value::Null) => out.push(5),
    }
}

fn bytes(out: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    out.push(kind);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// SQLite's varint: seven bits a byte, the highest first. Lengths stay far below the ninth byte,
/// which would be another form.
fn varint(out: &mut Vec<u8>, value: u64) {
    let groups = (64 - value.leading_zeros()).div_ceil(7).max(1);
    for group in (0..groups).rev() {
        let more = if group > 0 { 0x80 } else { 0 };
        out.push((value >> (7 * group)) as u8 & 0x7f | more);
    }
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
        assert_eq!(nothing, []);
    }

    #[test]
    fn varints_are_sqlite_varints() {
        let cases: [(u64, &[u8]); 5] = [
            (0, &[0]),
            (127, &[127]),
            (128, &[0x81, 0]),
            (16383, &[0xff, 0x7f]),
            (16384, &[0x81, 0x80, 0]),
        ];
        for (value, expected) in cases {
            let mut out = Vec::new();
            varint(&mut out, value);
            assert_eq!(out, expected, "{value}");
        }
    }
}
