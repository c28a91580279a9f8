//! Rows that SQLite's session extension tells twice.
//!
//! Where a key changes to one that is equal to it (`'a'` to `'A'` under `NOCASE`, `1` to `1.0`), the
//! session sees a row vanish and another appear, finds the first still there by its key, and tells
//! both: an UPDATE of the row and an INSERT of it. No applier can be right about that.

use synddb_core::changeset::{Change, Operation, Record, Value, changes};

/// The first table with such a row, if there is one. It may find one where two keys are merely
/// alike: a snapshot more, and nothing lost.
pub(super) fn table_told_twice(changeset: &[u8]) -> Option<String> {
    let mut table = "";
    let (mut updated, mut inserted) = (Vec::new(), Vec::new());
    for change in changes(changeset) {
        // What does not decode is the sequencer's to refuse.
        let change = change.ok()?;
        if change.table.name != table {
            if meet(&mut updated, &inserted) {
                return Some(table.into());
            }
            updated.clear();
            inserted.clear();
            table = change.table.name;
        }
        match change.operation {
            Operation::Update => updated.push(likeness(&change, change.old.as_ref())),
            Operation::Insert => inserted.push(likeness(&change, change.new.as_ref())),
            Operation::Delete => {}
        }
    }
    meet(&mut updated, &inserted).then(|| table.into())
}

fn meet(updated: &mut [Vec<u8>], inserted: &[Vec<u8>]) -> bool {
    if updated.is_empty() || inserted.is_empty() {
        return false;
    }
    updated.sort_unstable();
    inserted.iter().any(|key| updated.binary_search(key).is_ok())
}

/// The same bytes for keys that any of SQLite's collations and affinities may take for equal.
fn likeness(change: &Change<'_>, record: Option<&Record<'_>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let values = record.map(Record::values).into_iter().flatten();
    for (value, _) in values.zip(change.table.key).filter(|(_, place)| **place > 0) {
        let (kind, content) = match value {
            Value::Integer(integer) => (1, (integer as f64).to_bits().to_be_bytes().to_vec()),
            Value::Real(real) => (1, real.to_bits().to_be_bytes().to_vec()),
            Value::Text(text) => (2, text.trim_ascii_end().to_ascii_lowercase()),
            Value::Blob(blob) => (3, blob.to_vec()),
            Value::Null | Value::Undefined => (0, Vec::new()),
        };
        bytes.push(kind);
        bytes.extend_from_slice(&content.len().to_be_bytes());
        bytes.extend(content);
    }
    bytes
}
