//! The hash of a database's content, kept up to date from changesets alone.
//!
//! Every row, and every cell of it that is not NULL, has a hash of 128 bits; the content hash is their
//! sum modulo 2^128. So neither the order of rows nor that of changes matters, rows that are alike
//! count as often as they are there, and a change costs time in proportion to what changes:
//!
//! ```text
//! row  = H(0 ‖ table ‖ 0 ‖ values of the key)         INSERT adds row and cells
//! cell = H(1 ‖ row ‖ column u16 LE ‖ value)           DELETE takes them away
//! H    = SipHash-2-4 of 128 bits, keyed by the stream UPDATE swaps the cells it names
//! ```
//!
//! Values are hashed as changesets write them, rows have the columns they have there: without
//! generated ones, the rowid first where no key is declared. A cell that is NULL counts nothing, so
//! that a column may be added to a table without touching its rows.
//!
//! ```
//! use synddb_core::{
//!     StreamId,
//!     changeset::{ChangesetWriter, Value},
//!     content::{ContentKey, ContentSum, TableHasher},
//! };
//!
//! let key = ContentKey::of(StreamId::from_name("orders"));
//! let mut buffer = [0; 256];
//! let mut writer = ChangesetWriter::new(&mut buffer);
//! writer.table("t", &[1, 0])?;
//! writer.insert(&[1.into(), "one".into()])?;
//! writer.update(&[2.into(), "2".into()], &[Value::Undefined, "two".into()])?;
//!
//! let rows = TableHasher::new(key, "t");
//! let before = rows.row(&[1, 0], [Value::from(2), "2".into()].into_iter());
//! let mut content = before;
//! synddb_core::content::deltas(key, writer.written(), |_table, delta| content += delta)?;
//! assert_eq!(
//!     content,
//!     rows.row(&[1, 0], [Value::from(2), "two".into()].into_iter())
//!         + rows.row(&[1, 0], [Value::from(1), "one".into()].into_iter())
//! );
//! # Ok::<_, Box<dyn core::error::Error>>(())
//! ```
//!
//! It tells databases apart that went different ways by accident. Who knows the stream's id and wants
//! to find two contents with the same hash can: against that there is the [chain](crate::Chain).

use core::{
    fmt,
    hash::Hasher,
    ops::{Add, AddAssign, Sub, SubAssign},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use siphasher::sip128::{Hasher128, SipHasher24};

use crate::{
    StreamId,
    changeset::{Change, ChangesetError, Operation, Record, Value, changes},
    id::hex,
};

/// The key of a stream's hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentKey([u8; 16]);

impl ContentKey {
    /// The first 16 bytes of SHA-256(`"synddb content v1\0"` ‖ stream).
    pub fn of(stream: StreamId) -> Self {
        let hash: [u8; 32] = Sha256::new()
            .chain_update(b"synddb content v1\0")
            .chain_update(stream.as_bytes())
            .finalize()
            .into();
        let mut key = [0; 16];
        key.copy_from_slice(&hash[..16]);
        Self(key)
    }

    /// Any other one.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

/// The hash of rows and cells, or of a difference. Empty content is 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct ContentSum([u8; 16]);

impl ContentSum {
    /// As it is stored and sent: little-endian.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// As it is stored and sent: little-endian.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    fn number(self) -> u128 {
        u128::from_le_bytes(self.0)
    }

    fn of(number: u128) -> Self {
        Self(number.to_le_bytes())
    }
}

impl Add for ContentSum {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self::of(self.number().wrapping_add(other.number()))
    }
}

impl Sub for ContentSum {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self::of(self.number().wrapping_sub(other.number()))
    }
}

impl AddAssign for ContentSum {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for ContentSum {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl fmt::Display for ContentSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for ContentSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentSum({self})")
    }
}

/// Hashes rows of one table.
#[derive(Debug, Clone)]
pub struct TableHasher {
    /// Has taken in what the hashes of all rows begin with.
    row: SipHasher24,
    /// The same for cells.
    cell: SipHasher24,
}

impl TableHasher {
    /// For rows of `table`, written as in its definition.
    pub fn new(key: ContentKey, table: &str) -> Self {
        let fresh = SipHasher24::new_with_key(&key.0);
        let (mut row, mut cell) = (fresh, fresh);
        row.write(&[0]);
        row.write(table.as_bytes());
        row.write(&[0]);
        cell.write(&[1]);
        Self { row, cell }
    }

    /// The hash of a whole row: of its being there, and of its cells. `key` has one byte for every
    /// column, as the [header](crate::changeset::TableHeader) of a changeset has it: not 0 for the
    /// key's.
    pub fn row<'v>(
        &self,
        key: &[u8],
        values: impl Iterator<Item = Value<'v>> + Clone,
    ) -> ContentSum {
        let row = self.place(key, values.clone());
        let cells = values.zip(key).enumerate().filter(|(_, (_, place))| **place == 0);
        cells.fold(row, |sum, (column, (value, _))| sum + self.cell(row, column, &value))
    }

    /// What the change of a row comes to; `None` for an UPDATE that rewrites its key, which does not
    /// tell the cells that go along.
    pub fn delta(&self, change: &Change<'_>) -> Option<ContentSum> {
        let key = change.table.key;
        let (Operation::Update, Some(old), Some(new)) = (change.operation, change.old, change.new)
        else {
            let row = |record: Option<Record<'_>>| {
                record.map(|record| self.row(key, record.values())).unwrap_or_default()
            };
            return Some(row(change.new) - row(change.old));
        };
        let row = self.place(key, old.values());
        let mut delta = ContentSum::default();
        let cells = old.values().zip(new.values()).zip(key).enumerate();
        for (column, ((old, new), place)) in cells {
            if *place != 0 {
                if new != Value::Undefined && !new.is_identical(&old) {
                    return None;
                }
            } else if new != Value::Undefined {
                delta += self.cell(row, column, &new) - self.cell(row, column, &old);
            }
        }
        Some(delta)
    }

    fn place<'v>(&self, key: &[u8], values: impl Iterator<Item = Value<'v>>) -> ContentSum {
        let mut hasher = self.row;
        for (value, place) in values.zip(key) {
            if *place != 0 {
                write(&mut hasher, &value);
            }
        }
        finish(&hasher)
    }

    fn cell(&self, row: ContentSum, column: usize, value: &Value<'_>) -> ContentSum {
        if matches!(value, Value::Null | Value::Undefined) {
            return ContentSum::default();
        }
        let mut hasher = self.cell;
        let mut place = [0; 18];
        place[..16].copy_from_slice(&row.0);
        // Tables have at most 32767 columns.
        place[16..].copy_from_slice(&(column as u16).to_le_bytes());
        hasher.write(&place);
        write(&mut hasher, value);
        finish(&hasher)
    }
}

/// Why a changeset does not tell what becomes of the content hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeltaError {
    /// It is no changeset.
    Changeset(ChangesetError),
    /// An UPDATE rewrites a key, and does not tell the cells that go along.
    KeyRewritten,
}

impl fmt::Display for DeltaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changeset(error) => error.fmt(f),
            Self::KeyRewritten => f.write_str(
                "an update rewrites a key: its cells cannot be told from the changeset alone",
            ),
        }
    }
}

impl core::error::Error for DeltaError {}

/// What a changeset comes to: tells `each` the table and the difference, for each table of the
/// changeset, in order. A table may come more than once.
///
/// # Errors
/// See [`DeltaError`]; what was told before it is of no use.
pub fn deltas<'c>(
    key: ContentKey,
    changeset: &'c [u8],
    mut each: impl FnMut(&'c str, ContentSum),
) -> Result<(), DeltaError> {
    let mut table: Option<(&'c str, TableHasher)> = None;
    let mut sum = ContentSum::default();
    for change in changes(changeset) {
        let change = change.map_err(DeltaError::Changeset)?;
        let name = change.table.name;
        // The same place in the changeset, not the same word: a look at two numbers.
        if table.as_ref().is_none_or(|(known, _)| !core::ptr::eq(*known, name)) {
            if let Some((name, _)) = table.take() {
                each(name, core::mem::take(&mut sum));
            }
            table = Some((name, TableHasher::new(key, name)));
        }
        let delta = table.as_ref().and_then(|(_, hasher)| hasher.delta(&change));
        sum += delta.ok_or(DeltaError::KeyRewritten)?;
    }
    if let Some((name, _)) = table {
        each(name, sum);
    }
    Ok(())
}

/// Whether a table that gets this definition without its rows being told of, as `ALTER TABLE` may give it
/// one, may have cells that it did not have before: those of a new column that is not NULL by default.
#[must_use]
pub fn may_fill_cells(sql: &str) -> bool {
    const WORD: &[u8] = b"default";
    sql.as_bytes().windows(WORD.len()).any(|found| found.eq_ignore_ascii_case(WORD))
}

/// Takes in a value as a changeset has it.
fn write(hasher: &mut SipHasher24, value: &Value<'_>) {
    let number = |hasher: &mut SipHasher24, tag: u8, bytes: [u8; 8]| {
        let mut value = [tag; 9];
        value[1..].copy_from_slice(&bytes);
        hasher.write(&value);
    };
    match value {
        Value::Undefined => hasher.write(&[0]),
        Value::Integer(integer) => number(hasher, 1, integer.to_be_bytes()),
        Value::Real(real) => number(hasher, 2, real.to_be_bytes()),
        Value::Text(bytes) => sized(hasher, 3, bytes),
        Value::Blob(bytes) => sized(hasher, 4, bytes),
        Value::Null => hasher.write(&[5]),
    }
}

fn sized(hasher: &mut SipHasher24, tag: u8, bytes: &[u8]) {
    // The length as a varint of at most five groups: SQLite's lengths fit in 31 bits.
    let (mut head, mut at) = ([tag; 6], 1);
    let len = bytes.len() as u32;
    for group in (1..5).rev() {
        let shifted = len >> (7 * group);
        if shifted > 0 {
            head[at] = shifted as u8 & 0x7F | 0x80;
            at += 1;
        }
    }
    head[at] = len as u8 & 0x7F;
    hasher.write(&head[..=at]);
    hasher.write(bytes);
}

fn finish(hasher: &SipHasher24) -> ContentSum {
    ContentSum(hasher.finish128().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::changeset::ChangesetWriter;

    const KEY: ContentKey = ContentKey([7; 16]);

    fn sum(build: impl FnOnce(&mut ChangesetWriter<'_>)) -> Result<ContentSum, DeltaError> {
        let mut buffer = [0; 1024];
        let mut writer = ChangesetWriter::new(&mut buffer);
        build(&mut writer);
        let mut sum = ContentSum::default();
        deltas(KEY, writer.written(), |_, delta| sum += delta).map(|()| sum)
    }

    fn row(table: &str, values: &[Value<'_>]) -> ContentSum {
        TableHasher::new(KEY, table).row(&[1, 0, 0], values.iter().copied())
    }

    #[test]
    fn the_hash_is_siphash_2_4_of_128_bits() {
        // https://github.com/veorq/SipHash/blob/master/vectors.h
        let key: [u8; 16] = core::array::from_fn(|at| at as u8);
        let hash = |bytes: &[u8]| {
            let mut hasher = SipHasher24::new_with_key(&key);
            hasher.write(bytes);
            finish(&hasher).to_bytes()
        };
        let empty = 0x9302_55c7_1472_f66d_e6a8_25ba_047f_81a3_u128;
        assert_eq!(hash(b""), empty.to_le_bytes());
        let one = 0x45fc_229b_1159_7634_44af_996b_d8c1_87da_u128;
        assert_eq!(hash(&[0]), one.to_le_bytes());
    }

    #[test]
    fn changes_lead_from_rows_to_rows() {
        let one = [1.into(), "a".into(), Value::Null];
        let two = [1.into(), "b".into(), 2.5.into()];
        let inserted = sum(|writer| {
            writer.table("t", &[1, 0, 0]).unwrap();
            writer.insert(&one).unwrap();
        });
        assert_eq!(inserted, Ok(row("t", &one)));
        let updated = sum(|writer| {
            writer.table("t", &[1, 0, 0]).unwrap();
            let new = [Value::Undefined, "b".into(), 2.5.into()];
            writer.update(&one, &new).unwrap();
        });
        assert_eq!(updated, Ok(row("t", &two) - row("t", &one)));
        let deleted = sum(|writer| {
            writer.table("t", &[1, 0, 0]).unwrap();
            writer.delete(&two).unwrap();
        });
        assert_eq!(row("t", &two) + deleted.unwrap(), ContentSum::default());
    }

    #[test]
    fn everything_counts_but_order_and_nulls_that_are_not_there_yet() {
        let base = row("t", &[1.into(), "a".into(), 0.0.into()]);
        for other in [
            row("u", &[1.into(), "a".into(), 0.0.into()]),
            row("t", &[2.into(), "a".into(), 0.0.into()]),
            row("t", &[1.into(), b"a"[..].into(), 0.0.into()]),
            row("t", &[1.into(), "a".into(), (-0.0).into()]),
            row("t", &[1.into(), "a".into(), 0.into()]),
            row("t", &[1.into(), 0.0.into(), "a".into()]),
            row("t", &[1.into(), "a".into(), Value::Null]),
            row("t", &[Value::Null, "a".into(), 0.0.into()]),
        ] {
            assert_ne!(base, other);
        }
        let narrow = TableHasher::new(KEY, "t");
        let narrow = narrow.row(&[1, 0], [Value::from(1), "a".into()].into_iter());
        assert_eq!(row("t", &[1.into(), "a".into(), Value::Null]), narrow);
        // Rows that are alike, as those with NULL in their key may be, count twice.
        let null = row("t", &[Value::Null, "a".into(), Value::Null]);
        assert_ne!(null + null, ContentSum::default());
        assert_ne!(null + null, null);
    }

    #[test]
    fn keys_that_are_rewritten_are_not_guessed_at() {
        let rewritten = sum(|writer| {
            writer.table("t", &[1, 0, 0]).unwrap();
            let old = ["a".into(), Value::Undefined, Value::Undefined];
            writer.update(&old, &["A".into(), Value::Undefined, Value::Undefined]).unwrap();
        });
        assert_eq!(rewritten, Err(DeltaError::KeyRewritten));
        assert!(matches!(deltas(KEY, b"nonsense", |_, _| {}), Err(DeltaError::Changeset(_))));
    }
}
