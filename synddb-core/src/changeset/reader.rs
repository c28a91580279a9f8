use super::{ChangesetError, ChangesetFault, MAX_COLUMNS, Value};

/// What happened to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Operation {
    /// A new row.
    Insert = 0x12,
    /// Some columns of a row changed.
    Update = 0x17,
    /// The row went away.
    Delete = 0x09,
}

/// The table that changes belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableHeader<'a> {
    /// Its name.
    pub name: &'a str,
    /// One byte for every column: its place in the primary key, from 1, or 0 where it is not part
    /// of it. Older versions of SQLite write 1 for every place. Of a table without a primary key
    /// the first column is the rowid.
    pub key: &'a [u8],
}

impl TableHeader<'_> {
    /// How many columns its rows have.
    pub fn columns(&self) -> usize {
        self.key.len()
    }
}

/// The change of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change<'a> {
    /// The table.
    pub table: TableHeader<'a>,
    /// What happened.
    pub operation: Operation,
    /// Whether a trigger or a foreign key action did it.
    pub indirect: bool,
    /// The values before: all of them for a DELETE; key and changed columns for an UPDATE; none for
    /// an INSERT.
    pub old: Option<Record<'a>>,
    /// The values after: all of them for an INSERT, the changed columns for an UPDATE, none for a
    /// DELETE.
    pub new: Option<Record<'a>>,
}

/// The values of one row, decoded as they are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    bytes: &'a [u8],
}

impl<'a> Record<'a> {
    /// The values, one for every column.
    pub fn values(&self) -> Values<'a> {
        Values { cursor: Cursor { bytes: self.bytes, at: 0 } }
    }
}

/// Iterator over the values of a record.
#[derive(Debug, Clone)]
pub struct Values<'a> {
    cursor: Cursor<'a>,
}

impl<'a> Iterator for Values<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        // A record is only made of bytes that were read once without an error.
        self.cursor.value().ok()
    }
}

/// How much a changeset changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Table headers.
    pub tables: u64,
    /// Rows inserted.
    pub inserts: u64,
    /// Rows updated.
    pub updates: u64,
    /// Rows deleted.
    pub deletes: u64,
}

/// Reads a whole changeset and counts what is in it. Empty bytes are an empty changeset.
///
/// # Errors
/// The first thing that is wrong.
pub fn validate(changeset: &[u8]) -> Result<Summary, ChangesetError> {
    let mut summary = Summary::default();
    let mut reader = changes(changeset);
    for change in reader.by_ref() {
        match change?.operation {
            Operation::Insert => summary.inserts += 1,
            Operation::Update => summary.updates += 1,
            Operation::Delete => summary.deletes += 1,
        }
    }
    summary.tables = reader.tables;
    Ok(summary)
}

/// The changes in order. Ends after the first error.
pub fn changes(changeset: &[u8]) -> Changes<'_> {
    Changes { cursor: Cursor { bytes: changeset, at: 0 }, table: None, tables: 0 }
}

/// Iterator over the changes of a changeset.
#[derive(Debug, Clone)]
pub struct Changes<'a> {
    cursor: Cursor<'a>,
    table: Option<TableHeader<'a>>,
    tables: u64,
}

impl<'a> Iterator for Changes<'a> {
    type Item = Result<Change<'a>, ChangesetError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.cursor.is_at_end() {
            return None;
        }
        let change = self.read();
        match change {
            Ok(None) => None,
            Ok(Some(change)) => Some(Ok(change)),
            Err(error) => {
                self.cursor.at = self.cursor.bytes.len();
                Some(Err(error))
            }
        }
    }
}

impl<'a> Changes<'a> {
    fn read(&mut self) -> Result<Option<Change<'a>>, ChangesetError> {
        loop {
            if self.cursor.is_at_end() {
                return Ok(None);
            }
            let at = self.cursor.at;
            let operation = match self.cursor.byte()? {
                b'T' => {
                    self.table = Some(self.cursor.table()?);
                    self.tables += 1;
                    continue;
                }
                b'P' => return Err(fault(at, ChangesetFault::Patchset)),
                0x12 => Operation::Insert,
                0x17 => Operation::Update,
                0x09 => Operation::Delete,
                byte => return Err(fault(at, ChangesetFault::UnexpectedByte(byte))),
            };
            let table = self.table.ok_or(fault(at, ChangesetFault::NoTable))?;
            let indirect = self.cursor.flag()?;
            let (old, new) = match operation {
                Operation::Insert => (None, Some(self.cursor.full_record(&table)?)),
                Operation::Delete => (Some(self.cursor.full_record(&table)?), None),
                Operation::Update => {
                    let (old, new) = self.cursor.update(&table)?;
                    (Some(old), Some(new))
                }
            };
            return Ok(Some(Change { table, operation, indirect, old, new }));
        }
    }
}

#[derive(Debug, Clone)]
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    fn table(&mut self) -> Result<TableHeader<'a>, ChangesetError> {
        let at = self.at;
        let columns = self.varint()?;
        let count = usize::try_from(columns).ok().filter(|count| (1..=MAX_COLUMNS).contains(count));
        let count = count.ok_or(fault(at, ChangesetFault::ColumnCount(columns)))?;
        let at = self.at;
        let key = self.take(count)?;
        if key.iter().all(|place| *place == 0) {
            return Err(fault(at, ChangesetFault::NoKey));
        }
        let at = self.at;
        let rest = &self.bytes[self.at..];
        let len = rest.iter().position(|byte| *byte == 0);
        let len = len.ok_or(fault(self.bytes.len(), ChangesetFault::Truncated))?;
        let name = core::str::from_utf8(self.take(len)?).ok().filter(|name| !name.is_empty());
        let name = name.ok_or(fault(at, ChangesetFault::TableName))?;
        self.at += 1;
        Ok(TableHeader { name, key })
    }

    /// Every value of a row.
    fn full_record(&mut self, table: &TableHeader<'_>) -> Result<Record<'a>, ChangesetError> {
        let from = self.at;
        for column in 0..table.columns() {
            let at = self.at;
            if self.value()? == Value::Undefined {
                return Err(fault(at, ChangesetFault::MissingValue { column }));
            }
        }
        Ok(Record { bytes: &self.bytes[from..self.at] })
    }

    /// Key and changed columns before, changed columns after.
    fn update(
        &mut self,
        table: &TableHeader<'_>,
    ) -> Result<(Record<'a>, Record<'a>), ChangesetError> {
        let from = self.at;
        for (column, key) in table.key.iter().enumerate() {
            let at = self.at;
            if self.value()? == Value::Undefined && *key != 0 {
                return Err(fault(at, ChangesetFault::MissingValue { column }));
            }
        }
        let middle = self.at;
        let old = Record { bytes: &self.bytes[from..middle] };
        for ((column, key), old) in table.key.iter().enumerate().zip(old.values()) {
            let at = self.at;
            let new = self.value()?;
            match (*key != 0, old == Value::Undefined, new == Value::Undefined) {
                // A key may change without becoming another one to its collation or to a
                // comparison: 'a' to 'A', 1 to 1.0.
                (true, _, _) | (false, true, true) | (false, false, false) => {}
                (false, true, false) => {
                    return Err(fault(at, ChangesetFault::ExtraValue { column }));
                }
                (false, false, true) => {
                    return Err(fault(at, ChangesetFault::MissingValue { column }));
                }
            }
        }
        Ok((old, Record { bytes: &self.bytes[middle..self.at] }))
    }

    fn value(&mut self) -> Result<Value<'a>, ChangesetError> {
        let at = self.at;
        Ok(match self.byte()? {
            0 => Value::Undefined,
            1 => Value::Integer(i64::from_be_bytes(self.eight()?)),
            2 => {
                let real = f64::from_be_bytes(self.eight()?);
                if real.is_nan() {
                    return Err(fault(at, ChangesetFault::NotANumber));
                }
                Value::Real(real)
            }
            3 => Value::Text(self.sized()?),
            4 => Value::Blob(self.sized()?),
            5 => Value::Null,
            byte => return Err(fault(at, ChangesetFault::ValueType(byte))),
        })
    }

    fn sized(&mut self) -> Result<&'a [u8], ChangesetError> {
        let at = self.at;
        let len = self.varint()?;
        // SQLite reads lengths into 32 bits, and no value is longer than that.
        let len = i32::try_from(len).map_err(|_| fault(at, ChangesetFault::Varint))?;
        self.take(len as usize)
    }

    /// SQLite's varint: big-endian groups of seven bits, nine bytes at most, the ninth whole.
    fn varint(&mut self) -> Result<u64, ChangesetError> {
        let at = self.at;
        let mut number = 0u64;
        for count in 0..8 {
            let byte = self.byte()?;
            if count == 0 && byte == 0x80 {
                return Err(fault(at, ChangesetFault::Varint));
            }
            number = number << 7 | u64::from(byte & 0x7F);
            if byte < 0x80 {
                return Ok(number);
            }
        }
        // Nine bytes: beyond every length and count.
        Err(fault(at, ChangesetFault::Varint))
    }

    fn flag(&mut self) -> Result<bool, ChangesetError> {
        let at = self.at;
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            byte => Err(fault(at, ChangesetFault::Flag(byte))),
        }
    }

    fn byte(&mut self) -> Result<u8, ChangesetError> {
        let byte = self.bytes.get(self.at);
        let byte = *byte.ok_or(fault(self.at, ChangesetFault::Truncated))?;
        self.at += 1;
        Ok(byte)
    }

    fn eight(&mut self) -> Result<[u8; 8], ChangesetError> {
        let mut eight = [0; 8];
        eight.copy_from_slice(self.take(8)?);
        Ok(eight)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], ChangesetError> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..len).ok_or(fault(self.bytes.len(), ChangesetFault::Truncated))?;
        self.at += len;
        Ok(taken)
    }
}

fn fault(at: usize, what: ChangesetFault) -> ChangesetError {
    ChangesetError { at, what }
}
