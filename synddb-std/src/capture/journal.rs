//! The journal of a transaction: its row events as they happened, and what they come to.
//!
//! ```text
//! event: op u8 │ table u32 LE │ INSERT: new row │ DELETE: old row │ UPDATE: old row, new values
//! ```
//!
//! Values are written as changesets write them, so that equal values are equal bytes. In the new
//! values of an UPDATE an unchanged one is undefined. The app's thread only appends; the net effect
//! is found by whoever takes the journal.
//!
//! Rows are told apart by the bytes of their key. That is enough, whatever the collation of its
//! columns: SQLite tells the exact old key with every event, so that events of one row follow each
//! other without a gap. A key that changes to one that only compares equal (`'a'` to `'A'` under
//! NOCASE, 1 to 1.0) comes out as a DELETE and an INSERT, which any applier that deletes first can
//! replay; sessions write records for it that cannot be replayed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use synddb_core::changeset::{ChangesetWriter, Value, WriteError};

use super::Lost;
use super::ffi::{self, SqliteError};
use super::sabotage::{Sabotage, sabotaged};
use super::tables::Tables;

/// Tags of values, as changesets have them.
mod tag {
    pub(super) const UNDEFINED: u8 = 0;
    pub(super) const INTEGER: u8 = 1;
    pub(super) const REAL: u8 = 2;
    pub(super) const TEXT: u8 = 3;
    pub(super) const BLOB: u8 = 4;
    pub(super) const NULL: u8 = 5;
}

/// What happened to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Insert = 1,
    Update = 2,
    Delete = 3,
}

const EVENT_HEADER: usize = 5;

/// The row events of one committed transaction.
pub(crate) struct Journal {
    bytes: Vec<u8>,
    tables: Arc<Tables>,
    pool: Arc<Pool>,
    limit: usize,
}

impl Journal {
    /// `bytes` were written by the functions below, for these tables.
    pub(super) fn new(
        bytes: Vec<u8>,
        tables: Arc<Tables>,
        pool: Arc<Pool>,
        limit: usize,
    ) -> Journal {
        Journal { bytes, tables, pool, limit }
    }

    /// Another one, of the same limit and pool.
    pub(super) fn beside(&self, bytes: Vec<u8>, tables: Arc<Tables>) -> Journal {
        Journal { bytes, tables, pool: Arc::clone(&self.pool), limit: self.limit }
    }

    /// Bytes it holds. Its changeset is hardly ever larger.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The net effect as a changeset; empty if there is none.
    ///
    /// # Errors
    /// [`Lost::TooLarge`]; [`Lost::ExtractFailed`] for bytes that are no journal.
    pub(crate) fn to_changeset(&self) -> Result<Vec<u8>, Lost> {
        self.to_changeset_without(&[])
    }

    /// As [`Journal::to_changeset`], leaving out what happened to some tables.
    pub(super) fn to_changeset_without(&self, tables: &[usize]) -> Result<Vec<u8>, Lost> {
        net_effect(&self.bytes, &self.tables, tables, self.limit)
    }
}

/// As [`Journal::to_changeset_without`], of bytes that are not a journal yet.
pub(super) fn net_effect(
    bytes: &[u8],
    tables: &Tables,
    without: &[usize],
    limit: usize,
) -> Result<Vec<u8>, Lost> {
    let changeset = NetEffect::of(bytes, tables)
        .and_then(|mut effect| {
            effect.touched.retain(|(number, _)| !without.contains(number));
            effect.write()
        })
        .ok_or_else(|| Lost::ExtractFailed(SqliteError::from_code(ffi::SQLITE_CORRUPT)))?;
    if changeset.len() > limit {
        return Err(Lost::TooLarge { limit });
    }
    Ok(changeset)
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Journal({} bytes)", self.bytes.len())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.pool.put(std::mem::take(&mut self.bytes));
    }
}

/// Buffers to write the next journals into: as many as an application can fill while the writer
/// lingers, so that a commit need not allocate.
#[derive(Default)]
pub(super) struct Pool(Mutex<Buffers>);

#[derive(Default)]
struct Buffers {
    list: Vec<Vec<u8>>,
    /// Bytes of all of them.
    bytes: usize,
}

impl Pool {
    const BUFFERS: usize = 4096;
    const BYTES: usize = 4 << 20;
    const SMALLEST: usize = 256;
    /// Transactions that are larger are few, and the next one is not like them.
    const LIKELY: usize = 64 << 10;

    /// A used buffer if there is one and nobody is at the pool, with room for a journal like the last
    /// one. Never waits.
    pub(super) fn take(&self, last: usize) -> Vec<u8> {
        let likely = last.clamp(Pool::SMALLEST, Pool::LIKELY);
        let used = self.0.try_lock().ok().and_then(|mut buffers| {
            let buffer = buffers.list.pop()?;
            buffers.bytes -= buffer.capacity();
            Some(buffer)
        });
        let mut buffer = used.unwrap_or_default();
        if buffer.capacity() < likely {
            buffer.reserve(likely.next_power_of_two());
        }
        buffer
    }

    fn put(&self, mut buffer: Vec<u8>) {
        let mut buffers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = buffers.bytes + buffer.capacity() <= Pool::BYTES;
        if fits && buffers.list.len() < Pool::BUFFERS && buffer.capacity() > 0 {
            buffer.clear();
            buffers.bytes += buffer.capacity();
            buffers.list.push(buffer);
        }
    }
}

pub(super) fn put_event(out: &mut Vec<u8>, op: Op, table: usize) {
    out.push(op as u8);
    out.extend_from_slice(&u32::try_from(table).unwrap_or(u32::MAX).to_le_bytes());
}

pub(super) fn put_undefined(out: &mut Vec<u8>) {
    out.push(tag::UNDEFINED);
}

pub(super) fn put_null(out: &mut Vec<u8>) {
    out.push(tag::NULL);
}

pub(super) fn put_integer(out: &mut Vec<u8>, value: i64) {
    let mut bytes = [tag::INTEGER; 9];
    bytes[1..].copy_from_slice(&value.to_be_bytes());
    out.extend_from_slice(&bytes);
}

pub(super) fn put_real(out: &mut Vec<u8>, value: f64) {
    let mut bytes = [tag::REAL; 9];
    bytes[1..].copy_from_slice(&value.to_be_bytes());
    out.extend_from_slice(&bytes);
}

pub(super) fn put_text(out: &mut Vec<u8>, value: &[u8]) {
    put_sized(out, tag::TEXT, value);
}

pub(super) fn put_blob(out: &mut Vec<u8>, value: &[u8]) {
    put_sized(out, tag::BLOB, value);
}

fn put_sized(out: &mut Vec<u8>, tag: u8, value: &[u8]) {
    out.push(tag);
    // SQLite's lengths fit in 31 bits.
    let len = value.len() as u32;
    for group in (1..5).rev() {
        let shifted = len >> (7 * group);
        if shifted > 0 {
            out.push(shifted as u8 & 0x7F | 0x80);
        }
    }
    out.push(len as u8 & 0x7F);
    out.extend_from_slice(value);
}

/// Where the value that begins at `at` ends.
fn value_end(bytes: &[u8], at: usize) -> Option<usize> {
    let mut end = at + 1;
    match *bytes.get(at)? {
        tag::UNDEFINED | tag::NULL => {}
        tag::INTEGER | tag::REAL => end += 8,
        tag::TEXT | tag::BLOB => {
            let mut len = 0usize;
            loop {
                let byte = *bytes.get(end)?;
                end += 1;
                len = len << 7 | usize::from(byte & 0x7F);
                if byte & 0x80 == 0 {
                    break;
                }
            }
            end += len;
        }
        _ => return None,
    }
    (end <= bytes.len()).then_some(end)
}

fn value(bytes: &[u8]) -> Option<Value<'_>> {
    let (&kind, rest) = bytes.split_first()?;
    let content = || {
        let len = rest.iter().position(|byte| byte & 0x80 == 0)? + 1;
        rest.get(len..)
    };
    Some(match kind {
        tag::UNDEFINED => Value::Undefined,
        tag::INTEGER => Value::Integer(i64::from_be_bytes(rest.try_into().ok()?)),
        tag::REAL => Value::Real(f64::from_be_bytes(rest.try_into().ok()?)),
        tag::TEXT => Value::Text(content()?),
        tag::BLOB => Value::Blob(content()?),
        tag::NULL => Value::Null,
        _ => return None,
    })
}

/// The values of a record, as ranges of the journal.
type Record = Vec<Range<usize>>;

struct NetEffect<'j> {
    bytes: &'j [u8],
    tables: &'j Tables,
    /// Tables in the order in which they were first written to, and their rows likewise.
    touched: Vec<(usize, Vec<Row>)>,
    /// An UPDATE has changed a key: its unchanged values will be written twice.
    keys_changed: bool,
}

/// One row before the transaction, and now.
struct Row {
    before: Option<usize>,
    now: Option<Now>,
}

/// Where in the journal the row is found as it is now.
#[derive(Clone, Copy)]
enum Now {
    /// A whole row.
    Whole(usize),
    /// A whole row, and the values that replace some of its.
    Changed(usize, usize),
}

impl<'j> NetEffect<'j> {
    /// None for bytes that are no journal of these tables.
    fn of(bytes: &'j [u8], tables: &'j Tables) -> Option<NetEffect<'j>> {
        let mut places: Vec<Option<usize>> = vec![None; tables.len()];
        let mut effect = NetEffect { bytes, tables, touched: Vec::new(), keys_changed: false };
        let mut rows: HashMap<(usize, Vec<u8>), usize> = HashMap::new();
        let mut at = 0;
        while at < bytes.len() {
            let op = bytes[at];
            let number = u32::from_le_bytes(bytes.get(at + 1..at + EVENT_HEADER)?.try_into().ok()?);
            let number = usize::try_from(number).ok()?;
            let table = tables.get(number)?;
            let place = *places.get_mut(number)?.get_or_insert_with(|| {
                effect.touched.push((number, Vec::new()));
                effect.touched.len() - 1
            });
            let list = &mut effect.touched[place].1;
            let mut row = |key: Vec<u8>, before: Option<usize>| match rows.entry((number, key)) {
                Entry::Occupied(entry) => *entry.get(),
                Entry::Vacant(entry) => {
                    list.push(Row { before, now: None });
                    *entry.insert(list.len() - 1)
                }
            };
            let first = at + EVENT_HEADER;
            let (key, second) = key_and_end(bytes, first, &table.key, None)?;
            if op == Op::Insert as u8 {
                let row = row(key, None);
                list[row].now = Some(Now::Whole(first));
                at = second;
            } else if op == Op::Delete as u8 {
                let row = row(key, Some(first));
                if !sabotaged(Sabotage::WrongNetEffect) {
                    list[row].now = None;
                }
                at = second;
            } else if op == Op::Update as u8 {
                let (new_key, end) = key_and_end(bytes, second, &table.key, Some(first))?;
                if new_key == key {
                    let row = row(key, Some(first));
                    list[row].now = Some(Now::Changed(first, second));
                } else {
                    effect.keys_changed = true;
                    let old = row(key, Some(first));
                    let new = row(new_key, None);
                    list[old].now = None;
                    list[new].now = Some(Now::Changed(first, second));
                }
                at = end;
            } else {
                return None;
            }
        }
        Some(effect)
    }

    /// For each table deletes come first and inserts last: so that appliers that go row by row
    /// meet as few conflicts as possible.
    fn write(self) -> Option<Vec<u8>> {
        let header = |(number, _): &(usize, _)| {
            let table = self.tables.get(*number)?;
            Some(table.name.len() + table.key.len() + HEADER_BOUND)
        };
        let headers = self.touched.iter().map(header).sum::<Option<usize>>()?;
        let rows = self.bytes.len() * if self.keys_changed { 2 } else { 1 };
        let mut out = vec![0; rows + headers];
        let mut writer = ChangesetWriter::new(&mut out);
        for (number, rows) in &self.touched {
            let table = self.tables.get(*number)?;
            let width = table.values();
            let mut begun = false;
            let mut begin = |writer: &mut ChangesetWriter<'_>| -> Result<(), WriteError> {
                if !std::mem::replace(&mut begun, true) {
                    writer.table(&table.name, &table.key)?;
                }
                Ok(())
            };
            for Row { before, .. } in rows.iter().filter(|row| row.now.is_none()) {
                if let Some(before) = before {
                    begin(&mut writer).ok()?;
                    writer.delete(&self.values(&self.record(*before, width)?)?).ok()?;
                }
            }
            for row in rows {
                if let (Some(before), Some(now)) = (row.before, row.now) {
                    let (before, now) = (self.record(before, width)?, self.now(now, width)?);
                    let (mut old, mut new) = (self.values(&before)?, self.values(&now)?);
                    let mut changed = false;
                    for column in 0..width {
                        if old[column].is_identical(&new[column]) {
                            new[column] = Value::Undefined;
                            if table.key[column] == 0 {
                                old[column] = Value::Undefined;
                            }
                        } else {
                            changed = true;
                        }
                    }
                    if changed {
                        begin(&mut writer).ok()?;
                        writer.update(&old, &new).ok()?;
                    }
                }
            }
            for Row { now, .. } in rows.iter().filter(|row| row.before.is_none()) {
                if let Some(now) = now {
                    begin(&mut writer).ok()?;
                    writer.insert(&self.values(&self.now(*now, width)?)?).ok()?;
                }
            }
        }
        let len = writer.len();
        out.truncate(len);
        Some(out)
    }

    fn record(&self, at: usize, width: usize) -> Option<Record> {
        let mut next = at;
        let value = |_| {
            let start = next;
            next = value_end(self.bytes, start)?;
            Some(start..next)
        };
        (0..width).map(value).collect()
    }

    fn now(&self, now: Now, width: usize) -> Option<Record> {
        match now {
            Now::Whole(at) => self.record(at, width),
            Now::Changed(old, new) => {
                let mut record = self.record(old, width)?;
                for (value, new) in record.iter_mut().zip(self.record(new, width)?) {
                    if self.bytes[new.start] != tag::UNDEFINED {
                        *value = new;
                    }
                }
                Some(record)
            }
        }
    }

    fn values(&self, record: &Record) -> Option<Vec<Value<'j>>> {
        record.iter().map(|range| value(&self.bytes[range.clone()])).collect()
    }
}

/// A table's header in a changeset besides its name and key: 'T', the number of columns, NUL.
const HEADER_BOUND: usize = 8;

/// The bytes of the key in the record at `at`, and where the record ends. Undefined values are
/// those of the record at `old`.
fn key_and_end(
    bytes: &[u8],
    at: usize,
    key: &[u8],
    old: Option<usize>,
) -> Option<(Vec<u8>, usize)> {
    let (mut at, mut old) = (at, old);
    let mut found = Vec::new();
    for place in key {
        let end = value_end(bytes, at)?;
        let mut range = at..end;
        if let Some(old) = &mut old {
            let old_end = value_end(bytes, *old)?;
            if bytes[at] == tag::UNDEFINED {
                range = *old..old_end;
            }
            *old = old_end;
        }
        if *place != 0 {
            found.extend_from_slice(&bytes[range]);
        }
        at = end;
    }
    Some((found, at))
}
