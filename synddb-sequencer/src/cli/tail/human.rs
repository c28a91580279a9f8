//! Entries as people read them: one line each, and one for every row.

use std::io::{self, Write};

use synddb_core::changeset::{Change, Operation, Record, Value, changes};
use synddb_sequencer::Moment;

use super::{Payload, Shown, sql};
use crate::cli::text;

/// Longest value that is written whole, in characters of text or bytes of a blob.
const LONGEST_TEXT: usize = 60;
const LONGEST_BLOB: usize = 24;

pub(super) fn write(entry: &Shown<'_>, out: &mut dyn Write) -> io::Result<()> {
    let meta = &entry.meta;
    let commits = match (meta.first_commit, meta.last_commit) {
        (first, last) if first == last => format!("commit {first}"),
        (first, last) => format!("commits {first}-{last}"),
    };
    writeln!(
        out,
        "epoch {} entry {}  {}  {commits}  {}  {}",
        entry.stored.epoch,
        entry.stored.seq,
        Moment::from_unix_ms(entry.stored.received_ms),
        entry.kind(),
        text::bytes(entry.stored.payload.len() as u64)
    )?;
    match &entry.payload {
        Payload::Changeset(bytes) => {
            changes(bytes).flatten().try_for_each(|change| write_change(&change, out))
        }
        Payload::Schema(change) => change.steps().try_for_each(|step| match sql(&step) {
            Some(sql) => writeln!(out, "  {}", text::harmless(&sql).replace('\n', "\n  ")),
            None => {
                let mut rows = changes(change.changeset()).flatten();
                rows.try_for_each(|change| write_change(&change, out))
            }
        }),
        Payload::Snapshot(note) => {
            writeln!(out, "  {} as of entry {}, {}", note.id, note.as_of, text::bytes(note.len))
        }
        Payload::Other => Ok(()),
    }
}

fn write_change(change: &Change<'_>, out: &mut dyn Write) -> io::Result<()> {
    let operation = match change.operation {
        Operation::Insert => "insert",
        Operation::Update => "update",
        Operation::Delete => "delete",
    };
    write!(out, "  {operation} {}", text::name(change.table.name))?;
    let columns = change.table.key.iter().zip(values(change.old)).zip(values(change.new));
    for (at, ((key, old), new)) in columns.enumerate() {
        let part = |value: Option<Value<'_>>| {
            value.filter(|value| *value != Value::Undefined).map(|value| show(&value))
        };
        let key = if *key > 0 { " pk" } else { "" };
        match (part(old), part(new)) {
            (Some(old), Some(new)) => write!(out, "  {at}{key}: {old} → {new}")?,
            (Some(value), None) | (None, Some(value)) => write!(out, "  {at}{key}={value}")?,
            (None, None) => {}
        }
    }
    if change.indirect {
        write!(out, "  (indirect)")?;
    }
    writeln!(out)
}

/// The values of a record, or none for every column where there is no record.
fn values(record: Option<Record<'_>>) -> impl Iterator<Item = Option<Value<'_>>> {
    let values = record.into_iter().flat_map(|record| record.values());
    values.map(Some).chain(std::iter::repeat(None))
}

fn show(value: &Value<'_>) -> String {
    match value {
        Value::Undefined => String::new(),
        Value::Null => "NULL".into(),
        Value::Integer(integer) => integer.to_string(),
        Value::Real(real) => format!("{real:?}"),
        Value::Text(bytes) => {
            let text = String::from_utf8_lossy(bytes);
            match text.char_indices().nth(LONGEST_TEXT) {
                None => format!("{text:?}"),
                Some((end, _)) => format!("{:?}… ({} bytes)", &text[..end], bytes.len()),
            }
        }
        Value::Blob(bytes) => {
            let start = bytes.iter().take(LONGEST_BLOB).map(|byte| format!("{byte:02x}"));
            let start: String = start.collect();
            match bytes.len() > LONGEST_BLOB {
                false => format!("x'{start}'"),
                true => format!("x'{start}…' ({} bytes)", bytes.len()),
            }
        }
    }
}
