use core::fmt;

use super::{MAX_COLUMNS, Operation, Value};

/// Writes a changeset into the caller's buffer, change by change.
///
/// ```
/// use synddb_core::changeset::{ChangesetWriter, Value, validate};
///
/// let mut buffer = [0; 256];
/// let mut writer = ChangesetWriter::new(&mut buffer);
/// writer.table("readings", &[1, 0])?;
/// writer.insert(&[Value::Integer(1), Value::Real(21.5)])?;
/// writer.update(
///     &[Value::Integer(2), Value::Real(20.0)],
///     &[Value::Undefined, Value::Real(20.5)],
/// )?;
/// let changeset = writer.finish();
/// assert_eq!(validate(changeset).map(|summary| summary.updates), Ok(1));
/// # Ok::<_, synddb_core::changeset::WriteError>(())
/// ```
#[derive(Debug)]
pub struct ChangesetWriter<'b> {
    buffer: &'b mut [u8],
    len: usize,
    columns: usize,
}

/// Why a change was not written. The changeset stays as it was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriteError {
    /// The buffer is too small for it.
    Full,
    /// A change before the first [`table`](ChangesetWriter::table).
    NoTable,
    /// A table with no name or one with a NUL, no key, or a number of columns that SQLite has not.
    InvalidTable,
    /// Another number of values than the table has columns.
    ColumnCount,
    /// A value longer than 2^31 - 1 bytes, or a real that is not a number.
    InvalidValue,
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "the buffer is too small for the change",
            Self::NoTable => "a change needs a table before it",
            Self::InvalidTable => "a table needs a name, a key, and 1 to 32767 columns",
            Self::ColumnCount => "a change needs one value for every column of its table",
            Self::InvalidValue => "a value is too long, or a real that is not a number",
        })
    }
}

impl core::error::Error for WriteError {}

impl<'b> ChangesetWriter<'b> {
    /// Writes into `buffer` from its start.
    pub fn new(buffer: &'b mut [u8]) -> Self {
        Self { buffer, len: 0, columns: 0 }
    }

    /// The changes that follow are of this table. `key` has one byte for every column: its place in
    /// the primary key, from 1, or 0 where it is not part of it. For a table without a primary key the first column is the
    /// rowid, and the key.
    ///
    /// # Errors
    /// `InvalidTable`, `Full`.
    pub fn table(&mut self, name: &str, key: &[u8]) -> Result<(), WriteError> {
        let valid = !name.is_empty()
            && !name.contains('\0')
            && (1..=MAX_COLUMNS).contains(&key.len())
            && key.iter().any(|place| *place != 0);
        if !valid {
            return Err(WriteError::InvalidTable);
        }
        self.all_or_nothing(|writer| {
            writer.put(b"T")?;
            writer.varint(key.len() as u32)?;
            writer.put(key)?;
            writer.put(name.as_bytes())?;
            writer.put(&[0])
        })?;
        self.columns = key.len();
        Ok(())
    }

    /// A new row, all of its values.
    ///
    /// # Errors
    /// Any [`WriteError`] but `InvalidTable`.
    pub fn insert(&mut self, new: &[Value<'_>]) -> Result<(), WriteError> {
        self.change(Operation::Insert, &[new])
    }

    /// A changed row: `old` has the key and what changed, `new` what it changed to; all else is
    /// [`Value::Undefined`]. A changed key is a delete and an insert, unless both are equal to the
    /// column's collation.
    ///
    /// # Errors
    /// Any [`WriteError`] but `InvalidTable`.
    pub fn update(&mut self, old: &[Value<'_>], new: &[Value<'_>]) -> Result<(), WriteError> {
        self.change(Operation::Update, &[old, new])
    }

    /// A row that went away, all of its values.
    ///
    /// # Errors
    /// Any [`WriteError`] but `InvalidTable`.
    pub fn delete(&mut self, old: &[Value<'_>]) -> Result<(), WriteError> {
        self.change(Operation::Delete, &[old])
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The changeset so far.
    pub fn written(&self) -> &[u8] {
        &self.buffer[..self.len]
    }

    /// The changeset.
    pub fn finish(self) -> &'b [u8] {
        &self.buffer[..self.len]
    }

    fn change(&mut self, operation: Operation, records: &[&[Value<'_>]]) -> Result<(), WriteError> {
        if self.columns == 0 {
            return Err(WriteError::NoTable);
        }
        if records.iter().any(|record| record.len() != self.columns) {
            return Err(WriteError::ColumnCount);
        }
        self.all_or_nothing(|writer| {
            // Changes of a device's own are never indirect: no trigger made them.
            writer.put(&[operation as u8, 0])?;
            records
                .iter()
                .flat_map(|record| record.iter())
                .try_for_each(|value| writer.value(value))
        })
    }

    fn value(&mut self, value: &Value<'_>) -> Result<(), WriteError> {
        match value {
            Value::Undefined => self.put(&[0]),
            Value::Integer(integer) => {
                self.put(&[1])?;
                self.put(&integer.to_be_bytes())
            }
            Value::Real(real) if real.is_nan() => Err(WriteError::InvalidValue),
            Value::Real(real) => {
                self.put(&[2])?;
                self.put(&real.to_be_bytes())
            }
            Value::Text(bytes) => self.sized(3, bytes),
            Value::Blob(bytes) => self.sized(4, bytes),
            Value::Null => self.put(&[5]),
        }
    }

    fn sized(&mut self, kind: u8, bytes: &[u8]) -> Result<(), WriteError> {
        let len = i32::try_from(bytes.len()).map_err(|_| WriteError::InvalidValue)?;
        self.put(&[kind])?;
        self.varint(len as u32)?;
        self.put(bytes)
    }

    fn varint(&mut self, number: u32) -> Result<(), WriteError> {
        for group in (1..5).rev() {
            let shifted = number >> (7 * group);
            if shifted > 0 {
                self.put(&[shifted as u8 & 0x7F | 0x80])?;
            }
        }
        self.put(&[number as u8 & 0x7F])
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let room = self.buffer.get_mut(self.len..self.len + bytes.len()).ok_or(WriteError::Full)?;
        room.copy_from_slice(bytes);
        self.len += bytes.len();
        Ok(())
    }

    fn all_or_nothing(
        &mut self,
        write: impl FnOnce(&mut Self) -> Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        let before = self.len;
        write(self).inspect_err(|_| self.len = before)
    }
}
