use core::fmt;

use crate::changeset::Value;

/// Most columns of a device's table.
pub const MAX_COLUMNS: usize = 64;
/// Most tables of a device.
pub const MAX_TABLES: usize = 64;

/// A table that a device writes to, declared as a constant.
///
/// The declaration is the schema: the replica's table is created from it. A single key column of
/// integers becomes `INTEGER PRIMARY KEY`, any other key a table `WITHOUT ROWID`.
///
/// ```
/// use synddb_core::device::{Column, Table};
///
/// const READINGS: Table = Table::new(
///     "readings",
///     &[Column::integer("id").key(), Column::integer("at_ms"), Column::real("celsius")],
/// );
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    name: &'static str,
    columns: &'static [Column],
}

/// A column of a [`Table`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    name: &'static str,
    kind: ColumnKind,
    key: bool,
}

/// What a column holds, beside NULL where it is not part of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ColumnKind {
    /// Integers of 64 bits.
    Integer,
    /// Numbers of 64 bits with a binary point; never NaN.
    Real,
    /// UTF-8 text.
    Text,
    /// Bytes.
    Blob,
}

/// Why a declaration is no table that SQLite could hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TableError {
    /// No tables at all, or more than [`MAX_TABLES`].
    Count,
    /// A table's name is empty, begins with `sqlite_`, has a NUL, or is declared twice.
    Name(&'static str),
    /// A table has no columns, or more than [`MAX_COLUMNS`].
    ColumnCount(&'static str),
    /// A column's name is empty, has a NUL, or is there twice in its table.
    ColumnName(&'static str),
    /// A table has no key column, so that its rows could not be told apart.
    NoKey(&'static str),
    /// The text of the schema does not fit into one page of 32 KiB: shorten the names.
    TooLong,
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count => write!(f, "declare 1 to {MAX_TABLES} tables"),
            Self::Name(name) => write!(
                f,
                "table name `{name}`: it must not be empty, begin with sqlite_, hold a NUL, or be \
                 declared twice"
            ),
            Self::ColumnCount(table) => {
                write!(f, "table `{table}` needs 1 to {MAX_COLUMNS} columns")
            }
            Self::ColumnName(name) => write!(
                f,
                "column name `{name}`: it must not be empty, hold a NUL, or be there twice in its \
                 table"
            ),
            Self::NoKey(table) => write!(f, "table `{table}` needs a key: Column::…().key()"),
            Self::TooLong => f.write_str("the schema is over 32 KiB of text; shorten the names"),
        }
    }
}

impl core::error::Error for TableError {}

impl Table {
    /// Declares a table.
    pub const fn new(name: &'static str, columns: &'static [Column]) -> Self {
        Self { name, columns }
    }

    /// Its name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Its columns.
    pub const fn columns(&self) -> &'static [Column] {
        self.columns
    }

    /// For every column its place in the key, from 1, or 0.
    pub(super) fn key_places(&self) -> heapless::Vec<u8, MAX_COLUMNS> {
        let mut place = 0;
        let places = self.columns.iter().map(|column| {
            place += u8::from(column.key);
            if column.key { place } else { 0 }
        });
        // More than fit were refused by `check`.
        places.take(MAX_COLUMNS).collect()
    }

    /// Whether its rows are found by a rowid: a single key column of integers.
    pub(super) fn has_rowid(&self) -> bool {
        let mut keys = self.columns.iter().filter(|column| column.key);
        matches!((keys.next(), keys.next()), (Some(Column { kind: ColumnKind::Integer, .. }), None))
    }

    /// The statement that creates it, piece by piece.
    pub(super) fn sql(&self, put: &mut impl FnMut(&str)) {
        put("CREATE TABLE ");
        quoted(self.name, put);
        let rowid = self.has_rowid();
        for (at, column) in self.columns.iter().enumerate() {
            put(if at == 0 { "(" } else { "," });
            quoted(column.name, put);
            put(column.kind.sql());
            if rowid && column.key {
                put(" PRIMARY KEY");
            }
        }
        if rowid {
            put(")");
            return;
        }
        for (at, column) in self.columns.iter().filter(|column| column.key).enumerate() {
            put(if at == 0 { ",PRIMARY KEY(" } else { "," });
            quoted(column.name, put);
        }
        put(")) WITHOUT ROWID");
    }

    fn check(&self) -> Result<(), TableError> {
        let reserved =
            self.name.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("sqlite_"));
        if self.name.is_empty() || self.name.contains('\0') || reserved {
            return Err(TableError::Name(self.name));
        }
        if !(1..=MAX_COLUMNS).contains(&self.columns.len()) {
            return Err(TableError::ColumnCount(self.name));
        }
        if !self.columns.iter().any(|column| column.key) {
            return Err(TableError::NoKey(self.name));
        }
        for (at, column) in self.columns.iter().enumerate() {
            let twice = self.columns[..at].iter().any(|other| same_name(other.name, column.name));
            if column.name.is_empty() || column.name.contains('\0') || twice {
                return Err(TableError::ColumnName(column.name));
            }
        }
        Ok(())
    }
}

/// Whether SQLite can hold these tables.
pub(super) fn check(tables: &[Table]) -> Result<(), TableError> {
    if !(1..=MAX_TABLES).contains(&tables.len()) {
        return Err(TableError::Count);
    }
    for (at, table) in tables.iter().enumerate() {
        table.check()?;
        if tables[..at].iter().any(|other| same_name(other.name, table.name)) {
            return Err(TableError::Name(table.name));
        }
    }
    Ok(())
}

/// As SQLite compares names.
fn same_name(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

fn quoted(name: &str, put: &mut impl FnMut(&str)) {
    put("\"");
    for (at, part) in name.split('"').enumerate() {
        if at > 0 {
            put("\"\"");
        }
        put(part);
    }
    put("\"");
}

impl Column {
    /// A column of integers.
    pub const fn integer(name: &'static str) -> Self {
        Self { name, kind: ColumnKind::Integer, key: false }
    }

    /// A column of reals.
    pub const fn real(name: &'static str) -> Self {
        Self { name, kind: ColumnKind::Real, key: false }
    }

    /// A column of text.
    pub const fn text(name: &'static str) -> Self {
        Self { name, kind: ColumnKind::Text, key: false }
    }

    /// A column of bytes.
    pub const fn blob(name: &'static str) -> Self {
        Self { name, kind: ColumnKind::Blob, key: false }
    }

    /// The column as part of the key. Several are one key together, in their order.
    #[must_use]
    pub const fn key(self) -> Self {
        Self { key: true, ..self }
    }

    /// Its name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Whether it is part of the key.
    pub const fn is_key(&self) -> bool {
        self.key
    }

    /// Whether it can hold the value.
    pub(super) fn holds(&self, value: &Value<'_>) -> bool {
        match value {
            Value::Null => !self.key,
            Value::Integer(_) => self.kind == ColumnKind::Integer,
            Value::Real(real) => self.kind == ColumnKind::Real && !real.is_nan(),
            Value::Text(text) => {
                self.kind == ColumnKind::Text && core::str::from_utf8(text).is_ok()
            }
            Value::Blob(_) => self.kind == ColumnKind::Blob,
            Value::Undefined => false,
        }
    }
}

impl ColumnKind {
    const fn sql(self) -> &'static str {
        match self {
            Self::Integer => " INTEGER",
            Self::Real => " REAL",
            Self::Text => " TEXT",
            Self::Blob => " BLOB",
        }
    }
}
