//! Entries as programs read them: one JSON object each, written without holding it in memory.

use serde::{
    Serialize, Serializer,
    ser::{SerializeMap, SerializeStruct},
};
use synddb_core::changeset::{Change, Operation, Record, Value, changes};

use super::{Payload, Shown};

/// The promise about the shape.
pub(crate) const HELP: &str = "\
JSON (--json): one object per entry and line. Fields are only ever added.
  stream          identifier, 32 hexadecimal digits
  epoch, seq      place of the entry
  kind            changeset, schema or snapshot
  first_commit, last_commit
                  range of the application's commits in it
  time_ms         when the application committed, by its clock, milliseconds since 1970
  received_ms     when the sequencer received it, by its clock: what `restore --to-time` goes by
  schema_version  PRAGMA schema_version of the application's database
  content_hash    hexadecimal digits, or null
  bytes           length of the payload
  chain           hash of the log up to this entry, hexadecimal digits
  changes         of a changeset or a change of the schema, otherwise []:
    table         its name
    operation     insert, update or delete
    indirect      whether a trigger or a foreign key action did it
    key           positions of the columns of the primary key, from 0, in the key's order where the
                  application's SQLite tells it
    old, new      values before and after, by position of the column: {\"0\": 7, \"2\": null}.
                  All of them for a delete's old and an insert's new, key and changed columns for
                  an update's old, changed columns for its new, otherwise {}.
  sql             of a change of the schema, a list of its steps; otherwise null
  snapshot        of a snapshot {id, as_of, bytes, sha256}, otherwise null
Values: null, integers and text as they are; reals always with a fraction or an exponent. What JSON
does not have is an object: {\"blob\": HEX}, {\"text\": HEX} for text that is not UTF-8,
{\"real\": \"Infinity\"} or {\"real\": \"-Infinity\"}.
Tables without a primary key have their rowid as column 0.";

pub(super) struct Line<'a>(pub(super) &'a Shown<'a>);

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (stored, meta) = (self.0.stored, &self.0.meta);
        let (mut changeset, mut sql, mut snapshot) = (&[][..], None, None);
        match &self.0.payload {
            Payload::Changeset(bytes) => changeset = bytes,
            Payload::Schema(change) => {
                changeset = change.changeset();
                sql = Some(change.steps().filter_map(|step| super::sql(&step)).collect::<Vec<_>>());
            }
            Payload::Snapshot(note) => {
                snapshot = Some(Snapshot {
                    id: note.id.to_string(),
                    as_of: note.as_of.0,
                    bytes: note.len,
                    sha256: hex(&note.sha256),
                });
            }
            Payload::Other => {}
        }
        let mut line = serializer.serialize_struct("Entry", 15)?;
        line.serialize_field("stream", &self.0.stream.to_string())?;
        line.serialize_field("epoch", &stored.epoch.0)?;
        line.serialize_field("seq", &stored.seq.0)?;
        line.serialize_field("kind", self.0.kind())?;
        line.serialize_field("first_commit", &meta.first_commit)?;
        line.serialize_field("last_commit", &meta.last_commit)?;
        line.serialize_field("time_ms", &meta.time_ms)?;
        line.serialize_field("received_ms", &stored.received_ms)?;
        line.serialize_field("schema_version", &meta.schema_version)?;
        line.serialize_field("content_hash", &meta.content_hash.map(|hash| hash.to_string()))?;
        line.serialize_field("bytes", &stored.payload.len())?;
        line.serialize_field("chain", &stored.chain.to_string())?;
        line.serialize_field("changes", &Rows(changeset))?;
        line.serialize_field("sql", &sql)?;
        line.serialize_field("snapshot", &snapshot)?;
        line.end()
    }
}

#[derive(Serialize)]
struct Snapshot {
    id: String,
    as_of: u64,
    bytes: u64,
    sha256: String,
}

/// A changeset that was read to its end without an error.
struct Rows<'a>(&'a [u8]);

impl Serialize for Rows<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(changes(self.0).flatten().map(Row))
    }
}

struct Row<'a>(Change<'a>);

impl Serialize for Row<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let change = &self.0;
        let operation = match change.operation {
            Operation::Insert => "insert",
            Operation::Update => "update",
            Operation::Delete => "delete",
        };
        let places = change.table.key.iter().enumerate().filter(|(_, place)| **place > 0);
        let mut key: Vec<_> = places.map(|(at, place)| (*place, at)).collect();
        key.sort_unstable();
        let key: Vec<_> = key.into_iter().map(|(_, at)| at).collect();
        let mut row = serializer.serialize_struct("Change", 6)?;
        row.serialize_field("table", change.table.name)?;
        row.serialize_field("operation", operation)?;
        row.serialize_field("indirect", &change.indirect)?;
        row.serialize_field("key", &key)?;
        row.serialize_field("old", &Columns(change.old))?;
        row.serialize_field("new", &Columns(change.new))?;
        row.end()
    }
}

struct Columns<'a>(Option<Record<'a>>);

impl Serialize for Columns<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let values = self.0.iter().flat_map(Record::values).enumerate();
        let known = values.filter(|(_, value)| *value != Value::Undefined);
        serializer.collect_map(known.map(|(at, value)| (at, Cell(value))))
    }
}

struct Cell<'a>(Value<'a>);

impl Serialize for Cell<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let tagged = |serializer: S, tag: &str, value: &str| {
            let mut map = serializer.serialize_map(Some(1))?;
            map.serialize_entry(tag, value)?;
            map.end()
        };
        match self.0 {
            Value::Undefined | Value::Null => serializer.serialize_unit(),
            Value::Integer(integer) => serializer.serialize_i64(integer),
            Value::Real(real) if real.is_finite() => serializer.serialize_f64(real),
            Value::Real(real) if real > 0.0 => tagged(serializer, "real", "Infinity"),
            Value::Real(_) => tagged(serializer, "real", "-Infinity"),
            Value::Text(bytes) => match str::from_utf8(bytes) {
                Ok(text) => serializer.serialize_str(text),
                Err(_) => tagged(serializer, "text", &hex(bytes)),
            },
            Value::Blob(bytes) => tagged(serializer, "blob", &hex(bytes)),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}
