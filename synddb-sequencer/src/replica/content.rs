//! The hash of a whole database's content.

use rusqlite::{Connection, types::ValueRef};
use synddb_core::{
    changeset::Value,
    content::{ContentKey, ContentSum, TableHasher},
};

use super::{TableInfo, quoted};

/// Reads every row that changesets could tell of: of ordinary tables and of `sqlite_sequence`. Modules
/// of virtual tables are not called.
///
/// # Errors
/// SQLite's, for example where a table is ordered by a collation that is not registered.
pub fn content_of(db: &Connection, key: ContentKey) -> rusqlite::Result<ContentSum> {
    let tables: Vec<String> = db
        .prepare(
            "SELECT name FROM main.sqlite_schema WHERE type = 'table' AND rootpage > 0
             AND (name NOT LIKE 'sqlite\\_%' ESCAPE '\\' OR name = 'sqlite_sequence')",
        )?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let mut sum = ContentSum::default();
    for table in tables {
        sum += table_content(db, key, &table)?;
    }
    Ok(sum)
}

/// The part of one table; nothing where it is not there.
pub(super) fn table_content(
    db: &Connection,
    key: ContentKey,
    table: &str,
) -> rusqlite::Result<ContentSum> {
    let mut sum = ContentSum::default();
    let Some(info) = TableInfo::read(db, table)?.filter(|info| info.key.contains(&true)) else {
        return Ok(sum);
    };
    let hasher = TableHasher::new(key, table);
    let key: Vec<u8> = info.key.iter().map(|key| u8::from(*key)).collect();
    let sql = format!("SELECT {} FROM main.{} NOT INDEXED", info.columns.join(", "), quoted(table));
    let mut select = db.prepare(&sql)?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let values = (0..key.len()).map(|at| value(row.get_ref(at)));
        let values = values.collect::<rusqlite::Result<Vec<_>>>()?;
        sum += hasher.row(&key, values.into_iter());
    }
    Ok(sum)
}

fn value(value: rusqlite::Result<ValueRef<'_>>) -> rusqlite::Result<Value<'_>> {
    Ok(match value? {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(integer) => Value::Integer(integer),
        ValueRef::Real(real) => Value::Real(real),
        ValueRef::Text(bytes) => Value::Text(bytes),
        ValueRef::Blob(bytes) => Value::Blob(bytes),
    })
}
