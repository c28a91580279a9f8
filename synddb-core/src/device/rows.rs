use core::fmt;

use super::table::{MAX_COLUMNS, Table};
use crate::changeset::{self, ChangesetWriter, Record, Value, WriteError};

/// The rows of one transaction: what was done to them since the one before.
///
/// Each row may be there once: a transaction is its net effect. Rows are given whole, one value for
/// every column of the [`Table`]; `into()` makes a [`Value`] of an `i64`, `f64`, `&str` or `&[u8]`.
#[derive(Debug)]
pub struct Rows<'b> {
    writer: ChangesetWriter<'b>,
    tables: &'b [Table],
    table: Option<&'static str>,
    /// Where the last row ends: a table's header without rows behind it does not count.
    end: usize,
}

/// Why a row was not taken. The transaction is as it was before the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RowError {
    /// The transaction does not fit into the device's buffer for an entry.
    TooLarge,
    /// The table is not among those that the device was opened with.
    UnknownTable,
    /// Another number of values than the table has columns.
    ColumnCount,
    /// A value that its column cannot hold: another type, NULL in the key, NaN, text that is not
    /// UTF-8.
    Value {
        /// The column, from 0.
        column: usize,
    },
    /// An update that changes the key: delete the one row and insert the other.
    KeyChanged,
    /// An update that changes nothing.
    Unchanged,
    /// The transaction has done something to this row already: state the net effect.
    RowTwice,
}

impl fmt::Display for RowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => f.write_str(
                "the transaction does not fit into the device's buffer for an entry; commit fewer \
                 rows at a time, or make it larger",
            ),
            Self::UnknownTable => f.write_str("the device was opened without this table"),
            Self::ColumnCount => f.write_str("a row needs one value for every column"),
            Self::Value { column } => write!(
                f,
                "column {column} cannot hold the value: its type differs, or it is NULL in the \
                 key, NaN, or no UTF-8 text"
            ),
            Self::KeyChanged => {
                f.write_str("an update cannot change the key; delete the row and insert another")
            }
            Self::Unchanged => f.write_str("an update that changes nothing"),
            Self::RowTwice => {
                f.write_str("a transaction names each row once; state the net effect on it")
            }
        }
    }
}

impl core::error::Error for RowError {}

impl From<WriteError> for RowError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ColumnCount => Self::ColumnCount,
            // Tables and values were checked before they are written.
            _ => Self::TooLarge,
        }
    }
}

impl<'b> Rows<'b> {
    pub(super) fn new(buffer: &'b mut [u8], tables: &'b [Table]) -> Self {
        Self { writer: ChangesetWriter::new(buffer), tables, table: None, end: 0 }
    }

    /// A new row.
    ///
    /// # Errors
    /// See [`RowError`].
    pub fn insert(&mut self, table: &Table, row: &[Value<'_>]) -> Result<(), RowError> {
        self.check(table, row)?;
        self.begin(table, row)?;
        self.writer.insert(row)?;
        self.end = self.writer.len();
        Ok(())
    }

    /// A row that was `old` and is `new`, with the same key.
    ///
    /// # Errors
    /// See [`RowError`].
    pub fn update(
        &mut self,
        table: &Table,
        old: &[Value<'_>],
        new: &[Value<'_>],
    ) -> Result<(), RowError> {
        self.check(table, old)?;
        self.check(table, new)?;
        let mut before = [Value::Undefined; MAX_COLUMNS];
        let mut after = [Value::Undefined; MAX_COLUMNS];
        let mut changed = false;
        for (at, column) in table.columns().iter().enumerate() {
            let same = old[at].is_identical(&new[at]);
            if column.is_key() {
                if !same {
                    return Err(RowError::KeyChanged);
                }
                before[at] = old[at];
            } else if !same {
                (before[at], after[at]) = (old[at], new[at]);
                changed = true;
            }
        }
        if !changed {
            return Err(RowError::Unchanged);
        }
        self.begin(table, old)?;
        let columns = table.columns().len();
        self.writer.update(&before[..columns], &after[..columns])?;
        self.end = self.writer.len();
        Ok(())
    }

    /// A row that was `old` and is gone.
    ///
    /// # Errors
    /// See [`RowError`].
    pub fn delete(&mut self, table: &Table, old: &[Value<'_>]) -> Result<(), RowError> {
        self.check(table, old)?;
        self.begin(table, old)?;
        self.writer.delete(old)?;
        self.end = self.writer.len();
        Ok(())
    }

    /// Bytes written so far.
    pub(super) fn len(&self) -> usize {
        self.end
    }

    fn check(&self, table: &Table, row: &[Value<'_>]) -> Result<(), RowError> {
        if !self.tables.contains(table) {
            return Err(RowError::UnknownTable);
        }
        if row.len() != table.columns().len() {
            return Err(RowError::ColumnCount);
        }
        match row.iter().zip(table.columns()).position(|(value, column)| !column.holds(value)) {
            Some(column) => Err(RowError::Value { column }),
            None => Ok(()),
        }
    }

    /// Writes the table's header where another table was before it.
    fn begin(&mut self, table: &Table, row: &[Value<'_>]) -> Result<(), RowError> {
        if self.has(table, row) {
            return Err(RowError::RowTwice);
        }
        if self.table != Some(table.name()) {
            self.writer.table(table.name(), &table.key_places())?;
            self.table = Some(table.name());
        }
        Ok(())
    }

    fn has(&self, table: &Table, row: &[Value<'_>]) -> bool {
        let same_key = |record: Record<'_>| {
            let values = record.values().zip(row).zip(table.columns());
            values
                .filter(|(_, column)| column.is_key())
                .all(|((there, ours), _)| there.is_identical(ours))
        };
        changeset::changes(self.writer.written())
            .flatten()
            .filter(|change| change.table.name == table.name())
            .any(|change| change.old.or(change.new).is_some_and(same_key))
    }
}
