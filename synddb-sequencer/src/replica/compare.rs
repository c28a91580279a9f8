//! Whether two databases hold the same, to the last bit.

use std::{cmp::Ordering, fmt};

use rusqlite::{Connection, Row, types::ValueRef};

use super::{TableInfo, quoted};

/// Something that is not the same in both databases.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Difference {
    /// Schemas differ: an object that only one has, or has otherwise.
    Schema {
        /// The object's name.
        name: String,
    },
    /// Rows of a table differ. Only the first difference of each table is told.
    Rows {
        /// The table.
        table: String,
        /// The row in the first database, if it has it.
        first: Option<String>,
        /// The row in the second database, if it has it.
        second: Option<String>,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Schema { name } => write!(f, "the definitions of {name} differ"),
            Self::Rows { table, first, second } => {
                let show = |row: &Option<String>| row.clone().unwrap_or_else(|| "no row".into());
                write!(f, "table {table}: {} against {}", show(first), show(second))
            }
        }
    }
}

/// Compares all tables of `first` and `second`: their definitions and every row, with types and
/// bytes, rowids where no key is declared, and `sqlite_sequence`. Planner statistics,
/// `user_version` and how the file is laid out do not count.
///
/// Rows are read side by side in the order of their keys: memory does not grow with the tables.
///
/// # Errors
/// SQLite's.
pub fn differences(first: &Connection, second: &Connection) -> rusqlite::Result<Vec<Difference>> {
    let (one, two) = (schema(first)?, schema(second)?);
    let mut found = Vec::new();
    for object in &one {
        if !two.contains(object) {
            found.push(Difference::Schema { name: object.1.clone() });
        }
    }
    for object in &two {
        if !one.iter().any(|other| other.1 == object.1) {
            found.push(Difference::Schema { name: object.1.clone() });
        }
    }
    for (kind, name, sql) in &one {
        let is_virtual = sql.as_ref().is_some_and(|sql| {
            sql.get(..14).is_some_and(|start| start.eq_ignore_ascii_case("create virtual"))
        });
        if kind == "table" && !is_virtual && two.iter().any(|other| other.1 == *name) {
            found.extend(rows_differ(first, second, name)?);
        }
    }
    Ok(found)
}

type Object = (String, String, Option<String>);

fn schema(db: &Connection) -> rusqlite::Result<Vec<Object>> {
    db.prepare(
        "SELECT type, name, sql FROM main.sqlite_schema
         WHERE tbl_name NOT LIKE 'sqlite\\_stat%' ESCAPE '\\' ORDER BY type, name",
    )?
    .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
    .collect()
}

fn rows_differ(
    first: &Connection,
    second: &Connection,
    table: &str,
) -> rusqlite::Result<Option<Difference>> {
    let Some(info) = TableInfo::read(first, table)? else { return Ok(None) };
    let key: Vec<_> = info.columns.iter().zip(&info.key).filter(|(_, key)| **key).collect();
    let order: Vec<_> = key.iter().map(|(name, _)| name.as_str()).collect();
    // Rows with NULL in their key may be alike in it: all columns settle the order.
    let sql = format!(
        "SELECT {} FROM main.{} ORDER BY {}",
        info.columns.join(", "),
        quoted(table),
        order
            .into_iter()
            .chain(info.columns.iter().map(String::as_str))
            .collect::<Vec<_>>()
            .join(", ")
    );
    let (mut one, mut two) = (first.prepare(&sql)?, second.prepare(&sql)?);
    let (mut one, mut two) = (one.query([])?, two.query([])?);
    loop {
        let (first, second) = (one.next()?, two.next()?);
        let same = match (first, second) {
            (None, None) => return Ok(None),
            (Some(first), Some(second)) => rows_equal(first, second, info.columns.len())?,
            _ => false,
        };
        if !same {
            let show = |row: &Row<'_>| show(row, info.columns.len());
            return Ok(Some(Difference::Rows {
                table: table.into(),
                first: first.map(show).transpose()?,
                second: second.map(show).transpose()?,
            }));
        }
    }
}

fn rows_equal(first: &Row<'_>, second: &Row<'_>, columns: usize) -> rusqlite::Result<bool> {
    for at in 0..columns {
        let same = match (first.get_ref(at)?, second.get_ref(at)?) {
            (ValueRef::Real(one), ValueRef::Real(two)) => one.total_cmp(&two) == Ordering::Equal,
            (one, two) => one == two,
        };
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

fn show(row: &Row<'_>, columns: usize) -> rusqlite::Result<String> {
    let mut text = String::new();
    for at in 0..columns {
        let value = match row.get_ref(at)? {
            ValueRef::Null => "NULL".into(),
            ValueRef::Integer(integer) => integer.to_string(),
            ValueRef::Real(real) => format!("{real:?}"),
            ValueRef::Text(bytes) => format!("{:?}", String::from_utf8_lossy(bytes)),
            ValueRef::Blob(bytes) => format!("blob of {} bytes", bytes.len()),
        };
        let value: String = value.chars().take(60).collect();
        text += if at == 0 { "(" } else { ", " };
        text += &value;
    }
    Ok(text + ")")
}
