//! The tables of the main database as the journal sees them.

use std::collections::HashMap;
use std::ffi::{CString, c_int};

use synddb_core::changeset;

use super::ddl::Objects;
use super::ffi::{Db, SqliteError, Stmt, Value};
use super::journal::{self, Op};
use super::schema::is_internal_table;

/// The tables under one schema version.
#[derive(Debug)]
pub(super) struct Tables {
    /// The schema version they were read under.
    pub(super) schema_version: u32,
    /// Whether there are virtual tables, whose modules count changes of their own.
    pub(super) has_virtual: bool,
    list: Vec<Table>,
    by_name: HashMap<Vec<u8>, usize>,
    pub(super) objects: Objects,
}

/// One table: what its records hold, in order, is the rowid if that is the key, and then its
/// columns without the generated ones.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: String,
    /// For each value of a record its place in the primary key, from 1, or 0.
    pub(super) key: Vec<u8>,
    /// The rowid stands in front, for want of a declared key.
    pub(super) by_rowid: bool,
    pub(super) columns: Vec<Column>,
    /// All columns, generated ones included.
    pub(super) width: c_int,
    /// An INSERT may move `sqlite_sequence`.
    pub(super) autoincrement: bool,
    /// Belongs to a virtual table.
    pub(super) shadow: Option<Shadow>,
    /// A name of the rowid that is no column's.
    pub(super) rowid_name: Option<&'static str>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    /// Its number in the table.
    pub(super) number: c_int,
    /// Stores integers as reals.
    pub(super) real: bool,
}

/// When the module of a virtual table writes to a table of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shadow {
    /// While a statement writes to the virtual table.
    AtOnce,
    /// Also later: when a savepoint opens or a transaction is about to commit.
    Deferred,
}

impl Tables {
    /// Reads the schema. `sqlite_sequence` is among the tables, under the last number.
    pub(super) fn load(db: Db, schema_version: u32) -> Result<Tables, SqliteError> {
        // Rootpage 0 is a virtual table. Asking for the columns of one would load its module.
        let mut virtual_names = Vec::new();
        let mut rows = db.prepare(
            c"SELECT name FROM main.sqlite_schema
              WHERE type = 'table' AND coalesce(rootpage, 0) = 0",
        )?;
        while rows.step()? {
            virtual_names.push(rows.column_text(0).to_ascii_lowercase());
        }
        let mut list = Vec::new();
        let mut rows = db.prepare(
            c"SELECT t.name, c.cid, c.name, c.type, c.pk, c.hidden
              FROM main.sqlite_schema AS t, pragma_table_xinfo(t.name, 'main') AS c
              WHERE t.type = 'table' AND t.rootpage > 0
              ORDER BY t.name, c.cid",
        )?;
        let mut columns: Vec<Declared> = Vec::new();
        let mut table = String::new();
        loop {
            let more = rows.step()?;
            let name = if more { rows.column_text(0) } else { String::new() };
            if (!more || name != table) && !columns.is_empty() {
                if !is_internal_table(table.as_bytes()) {
                    list.push(Table::new(db, &table, &columns, &virtual_names)?);
                }
                columns.clear();
            }
            if !more {
                break;
            }
            table = name;
            columns.push(Declared {
                name: rows.column_text(2),
                r#type: rows.column_text(3),
                place_in_key: rows.column_i64(4),
                hidden: rows.column_i64(5),
            });
        }
        let by_name =
            list.iter().enumerate().map(|(at, t)| (t.name.clone().into_bytes(), at)).collect();
        list.push(Table::sequence());
        let has_virtual = !virtual_names.is_empty();
        let objects = Objects::load(db)?;
        Ok(Tables { schema_version, has_virtual, list, by_name, objects })
    }

    pub(super) fn find(&self, name: &[u8]) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The number of `sqlite_sequence`.
    pub(super) fn sequence(&self) -> usize {
        self.list.len() - 1
    }

    pub(super) fn get(&self, number: usize) -> Option<&Table> {
        self.list.get(number)
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }
}

/// Tells `each` every row that changesets could tell of, table by table, until it returns false. Calls no
/// module of a virtual table.
pub(crate) fn scan(
    db: Db,
    mut each: impl FnMut(&str, &[u8], &[changeset::Value<'_>]) -> bool,
) -> Result<(), SqliteError> {
    let tables = Tables::load(db, 0)?;
    let has_sequence =
        db.prepare(c"SELECT 1 FROM main.sqlite_schema WHERE name = 'sqlite_sequence'")?.exists()?;
    let (sequence, tables) = tables.list.split_last().expect("sqlite_sequence is always there");
    for table in tables.iter().chain(has_sequence.then_some(sequence)) {
        // Rows without a name are none that changesets tell of.
        if table.unreachable() {
            continue;
        }
        if !table.scan(db, |row| each(&table.name, &table.key, row))? {
            break;
        }
    }
    Ok(())
}

struct Declared {
    name: String,
    r#type: String,
    place_in_key: i64,
    hidden: i64,
}

impl Table {
    fn new(
        db: Db,
        name: &str,
        declared: &[Declared],
        virtual_names: &[String],
    ) -> Result<Table, SqliteError> {
        let mut key = Vec::new();
        let mut columns = Vec::new();
        let by_rowid = declared.iter().all(|column| column.place_in_key == 0);
        if by_rowid {
            key.push(1);
        }
        for (number, column) in (0..).zip(declared) {
            // 2 and 3 are generated columns.
            if column.hidden == 0 {
                columns.push(Column { number, real: is_real(&column.r#type) });
                // Past 255 columns the exact place does not matter, only that it has one.
                key.push(u8::try_from(column.place_in_key).unwrap_or(u8::MAX));
            }
        }
        let free = |alias: &&str| !declared.iter().any(|c| c.name.eq_ignore_ascii_case(alias));
        let rowid_name = ["_rowid_", "rowid", "oid"].into_iter().find(free);
        let mut autoincrement = false;
        for column in declared.iter().filter(|column| column.place_in_key > 0) {
            let names = CString::new(name).and_then(|t| Ok((t, CString::new(&*column.name)?)));
            let (table, column) = names.expect("names of a schema hold no NUL");
            autoincrement |= db.is_autoincrement(&table, &column)?;
        }
        Ok(Table {
            name: name.to_owned(),
            key,
            by_rowid,
            columns,
            width: c_int::try_from(declared.len()).unwrap_or(c_int::MAX),
            autoincrement,
            shadow: shadow(name, virtual_names),
            rowid_name,
        })
    }

    fn sequence() -> Table {
        let column = |number| Column { number, real: false };
        Table {
            name: "sqlite_sequence".into(),
            key: vec![1, 0, 0],
            by_rowid: true,
            columns: vec![column(0), column(1)],
            width: 2,
            autoincrement: false,
            shadow: None,
            rowid_name: Some("rowid"),
        }
    }

    /// How many values a record has.
    pub(super) fn values(&self) -> usize {
        self.key.len()
    }

    /// Selects its rows; `condition` may speak of `?1`.
    pub(super) fn select(&self, db: Db, condition: &str) -> Result<Stmt, SqliteError> {
        let rowid = match self.rowid_name {
            Some(name) if self.by_rowid => format!("{name}, "),
            _ => String::new(),
        };
        let name = self.name.replace('"', "\"\"");
        let select = CString::new(format!("SELECT {rowid}* FROM main.\"{name}\" {condition}"));
        db.prepare(&select.expect("names of a schema hold no NUL"))
    }

    /// Appends the row that [`Table::select`] gave to a journal, as an INSERT into table `number`.
    /// True if its key is NULL.
    pub(super) fn put_selected(&self, row: &Stmt, number: usize, out: &mut Vec<u8>) -> bool {
        let in_front = c_int::from(self.by_rowid);
        journal::put_event(out, Op::Insert, number);
        if self.by_rowid {
            journal::put_integer(out, row.column_i64(0));
        }
        let mut null_key = false;
        for (column, place) in self.columns.iter().zip(&self.key[usize::from(self.by_rowid)..]) {
            let value = row.column_value(column.number + in_front);
            null_key |= *place != 0 && value == Value::Null;
            value.put(out);
        }
        null_key
    }

    /// Tells `each` every row, until it returns false.
    fn scan(
        &self,
        db: Db,
        mut each: impl FnMut(&[changeset::Value<'_>]) -> bool,
    ) -> Result<bool, SqliteError> {
        let mut rows = self.select_stored(db)?;
        while rows.step()? {
            let values: Vec<_> = (0..).map(|c| rows.column_ref(c)).take(self.values()).collect();
            if !each(&values) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Selects what is stored of its rows: no index, and no expression of a generated column.
    fn select_stored(&self, db: Db) -> Result<Stmt, SqliteError> {
        let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        let mut names: Vec<String> = Vec::new();
        names.extend(self.rowid_name.filter(|_| self.by_rowid).map(str::to_owned));
        let table = self.name.replace('\'', "''");
        let sql = format!(
            "SELECT name FROM pragma_table_xinfo('{table}', 'main') WHERE hidden = 0 ORDER BY cid"
        );
        let mut columns = db.prepare(&CString::new(sql).expect("names of a schema hold no NUL"))?;
        while columns.step()? {
            names.push(quoted(&columns.column_text(0)));
        }
        let (names, table) = (names.join(", "), quoted(&self.name));
        let sql = format!("SELECT {names} FROM main.{table} NOT INDEXED");
        db.prepare(&CString::new(sql).expect("names of a schema hold no NUL"))
    }

    /// Appends the row with this rowid, if there is one.
    pub(super) fn put_row(
        &self,
        db: Db,
        number: usize,
        rowid: i64,
        out: &mut Vec<u8>,
    ) -> Result<(), SqliteError> {
        let Some(name) = self.rowid_name else {
            return Err(SqliteError::from_code(super::ffi::SQLITE_MISUSE));
        };
        let mut row = self.select(db, &format!("WHERE {name} = ?1"))?;
        row.bind_i64(rowid)?;
        if row.step()? {
            self.put_selected(&row, number, out);
            row.reset();
        }
        Ok(())
    }

    /// No key, and all names of the rowid taken by columns: its rows cannot be told apart.
    pub(super) fn unreachable(&self) -> bool {
        self.by_rowid && self.rowid_name.is_none()
    }
}

/// <https://www.sqlite.org/datatype3.html#determination_of_column_affinity>
fn is_real(declared: &str) -> bool {
    let declared = declared.to_ascii_uppercase();
    let says = |words: &[&str]| words.iter().any(|word| declared.contains(word));
    !says(&["INT", "CHAR", "CLOB", "TEXT", "BLOB"]) && says(&["REAL", "FLOA", "DOUB"])
}

/// Whether a table's name is that of a shadow table of the virtual table `owner`.
pub(super) fn is_shadow_of(name: &str, owner: &str) -> bool {
    let start = name.get(..owner.len()).is_some_and(|start| start.eq_ignore_ascii_case(owner));
    start && name[owner.len()..].starts_with('_')
}

/// Whether the name is one of those in which FTS3 and FTS4 keep what they write when a savepoint
/// opens or a transaction is about to commit. (FTS5 has written to its tables when it makes them.)
pub(super) fn may_be_deferred(name: &[u8]) -> bool {
    [&b"_segments"[..], b"_segdir", b"_stat"].iter().any(|end| {
        name.len() > end.len() && name[name.len() - end.len()..].eq_ignore_ascii_case(end)
    })
}

fn shadow(name: &str, virtual_names: &[String]) -> Option<Shadow> {
    // What the full text modules keep in memory until a savepoint or a commit.
    const DEFERRED: [&str; 5] = ["data", "idx", "segments", "segdir", "stat"];

    let name = name.to_ascii_lowercase();
    let suffix = virtual_names
        .iter()
        .filter_map(|owner| name.strip_prefix(owner.as_str())?.strip_prefix('_'))
        .min_by_key(|suffix| suffix.len())?;
    Some(if DEFERRED.contains(&suffix) { Shadow::Deferred } else { Shadow::AtOnce })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;

    #[test]
    fn records_hold_what_changesets_carry() {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(
            "CREATE TABLE plain(a, b REAL);
             CREATE TABLE keyed(v FLOATING POINT, k DOUBLE PRECISION, l TEXT, PRIMARY KEY(l, k));
             CREATE TABLE computed(g AS (a + 1), id INTEGER PRIMARY KEY AUTOINCREMENT, a INT,
                 h AS (a) STORED, r REAL);
             CREATE TABLE hidden(rowid, _rowid_, oid);
             CREATE VIRTUAL TABLE notes USING fts5(body);
             CREATE TABLE notes_more(x);",
        )
        .unwrap();
        // SAFETY: the connection outlives the handle.
        let db = unsafe { Db::from_raw(conn.handle()) }.unwrap();
        let tables = Tables::load(db, 7).unwrap();
        let table = |name: &str| tables.get(tables.find(name.as_bytes()).unwrap()).unwrap();
        let numbers = |name| -> Vec<_> { table(name).columns.iter().map(|c| c.number).collect() };
        let reals = |name| -> Vec<_> { table(name).columns.iter().map(|c| c.real).collect() };

        assert_eq!((&*table("plain").key, table("plain").by_rowid), (&[1, 0, 0][..], true));
        assert_eq!(reals("plain"), [false, true]);
        assert_eq!((&*table("keyed").key, table("keyed").by_rowid), (&[0, 2, 1][..], false));
        // "FLOATING POINT" has INTEGER affinity, by its "INT".
        assert_eq!(reals("keyed"), [false, true, false]);
        assert_eq!((&*table("computed").key, numbers("computed")), (&[1, 0, 0][..], vec![1, 2, 4]));
        assert_eq!((table("computed").width, table("computed").autoincrement), (5, true));
        assert!(table("hidden").unreachable() && !table("plain").unreachable());
        assert_eq!(table("notes_data").shadow, Some(Shadow::Deferred));
        assert_eq!(table("notes_content").shadow, Some(Shadow::AtOnce));
        assert_eq!(
            (table("notes_more").shadow, table("plain").shadow),
            (Some(Shadow::AtOnce), None)
        );
        assert!(tables.find(b"notes").is_none() && tables.find(b"sqlite_sequence").is_none());
        assert_eq!(tables.get(tables.sequence()).unwrap().name, "sqlite_sequence");
    }
}
