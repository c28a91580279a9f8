//! What a Schema entry carries: a change of the schema, and the rows that changed with it.
//!
//! ```text
//! payload: number of steps varint │ steps │ changeset, which may be empty
//! ```
//!
//! Whoever replays takes the steps in their order, in one transaction; [`SchemaStep::Rows`] is the
//! place of the changeset among them. Definitions are texts as `sqlite_schema` holds them.

use serde::{Deserialize, Serialize};

use super::WireError;
use crate::changeset;

/// What an object of a schema is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ObjectKind {
    /// A table with rows of its own.
    Table,
    /// A virtual table. Its shadow tables are tables of their own; its module is never called.
    VirtualTable,
    /// An index.
    Index,
    /// A view.
    View,
    /// A trigger.
    Trigger,
}

/// One step of a change of the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum SchemaStep<'a> {
    /// The object goes, with its rows. A table takes its indexes and triggers along.
    Drop {
        /// What it is.
        kind: ObjectKind,
        /// Its name.
        name: &'a str,
    },
    /// The object comes; a table has no rows yet.
    Create {
        /// What it is.
        kind: ObjectKind,
        /// Its name.
        name: &'a str,
        /// The table it belongs to; its own name where it is one.
        table: &'a str,
        /// Its definition.
        sql: &'a str,
    },
    /// The object gets another definition under which what is stored of it stays as it is: a column
    /// was added or renamed.
    Redefine {
        /// What it is.
        kind: ObjectKind,
        /// Its name.
        name: &'a str,
        /// Its definition from now on.
        sql: &'a str,
    },
    /// The changeset is applied.
    Rows,
    /// `PRAGMA user_version` is set.
    UserVersion(i32),
    /// `PRAGMA application_id` is set.
    ApplicationId(i32),
}

/// The payload of a Schema entry, read to its end.
///
/// ```
/// use synddb_core::wire::schema::{ObjectKind, SchemaChange, SchemaStep, encode_steps};
///
/// let sql = "CREATE TABLE readings(id INTEGER PRIMARY KEY, celsius REAL)";
/// let create =
///     SchemaStep::Create { kind: ObjectKind::Table, name: "readings", table: "readings", sql };
/// let mut buffer = [0; 256];
/// let payload = encode_steps(&[create], &mut buffer)?;
/// let change = SchemaChange::parse(payload)?;
/// assert!(change.steps().eq([create]) && change.changeset().is_empty());
/// # Ok::<_, synddb_core::wire::WireError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchemaChange<'a> {
    count: u32,
    steps: &'a [u8],
    changeset: &'a [u8],
}

impl<'a> SchemaChange<'a> {
    /// Reads and checks a payload: every step, the changeset, and that there is a place for it.
    ///
    /// # Errors
    /// `Malformed`.
    pub fn parse(payload: &'a [u8]) -> Result<Self, WireError> {
        let (count, steps) = postcard::take_from_bytes::<u32>(payload)
            .map_err(|_| WireError::Malformed("number of schema steps"))?;
        let (mut rest, mut places) = (steps, 0);
        for _ in 0..count {
            let (step, behind) = postcard::take_from_bytes::<SchemaStep<'_>>(rest)
                .map_err(|_| WireError::Malformed("schema step"))?;
            places += u32::from(step == SchemaStep::Rows);
            rest = behind;
        }
        if places != u32::from(!rest.is_empty()) {
            return Err(WireError::Malformed("place of the rows in a change of the schema"));
        }
        changeset::validate(rest).map_err(|_| WireError::Malformed("rows of a schema change"))?;
        Ok(Self { count, steps: &steps[..steps.len() - rest.len()], changeset: rest })
    }

    /// The steps in their order.
    pub fn steps(&self) -> impl Iterator<Item = SchemaStep<'a>> + use<'a> {
        let mut rest = self.steps;
        (0..self.count).map_while(move |_| {
            // They were read before, so none is left out.
            let (step, behind) = postcard::take_from_bytes(rest).ok()?;
            rest = behind;
            Some(step)
        })
    }

    /// The rows that changed, for [`SchemaStep::Rows`].
    pub fn changeset(&self) -> &'a [u8] {
        self.changeset
    }
}

/// Encodes `steps` into the start of `buffer` and returns the part used: a payload but for its
/// changeset, which goes right behind it. [`steps_bound`] tells how much room suffices.
///
/// # Errors
/// `BufferFull`.
pub fn encode_steps<'b>(
    steps: &[SchemaStep<'_>],
    buffer: &'b mut [u8],
) -> Result<&'b [u8], WireError> {
    let full = |_| WireError::BufferFull { needed: steps_bound(steps) as u64 };
    let count = u32::try_from(steps.len()).map_err(|_| WireError::Malformed("too many steps"))?;
    let mut len = postcard::to_slice(&count, buffer).map_err(full)?.len();
    for step in steps {
        len += postcard::to_slice(step, &mut buffer[len..]).map_err(full)?.len();
    }
    Ok(&buffer[..len])
}

/// Bytes that suffice for [`encode_steps`].
pub fn steps_bound(steps: &[SchemaStep<'_>]) -> usize {
    // Two discriminants and three lengths, of five bytes each at most.
    const AROUND: usize = 25;
    let texts = |step: &SchemaStep<'_>| match step {
        SchemaStep::Drop { name, .. } => name.len(),
        SchemaStep::Create { name, table, sql, .. } => name.len() + table.len() + sql.len(),
        SchemaStep::Redefine { name, sql, .. } => name.len() + sql.len(),
        _ => 0,
    };
    5 + steps.iter().map(|step| AROUND + texts(step)).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::changeset::{ChangesetWriter, Value};

    const STEPS: [SchemaStep<'_>; 6] = [
        SchemaStep::Drop { kind: ObjectKind::View, name: "v" },
        SchemaStep::Create {
            kind: ObjectKind::Table,
            name: "t",
            table: "t",
            sql: "CREATE TABLE t(a)",
        },
        SchemaStep::Redefine { kind: ObjectKind::Trigger, name: "g", sql: "CREATE TRIGGER g" },
        SchemaStep::Rows,
        SchemaStep::UserVersion(-3),
        SchemaStep::ApplicationId(i32::MAX),
    ];

    fn with_rows(buffer: &mut [u8]) -> &[u8] {
        let len = encode_steps(&STEPS, buffer).unwrap().len();
        let mut writer = ChangesetWriter::new(&mut buffer[len..]);
        writer.table("t", &[1, 0]).unwrap();
        writer.insert(&[Value::Integer(1), Value::Null]).unwrap();
        let rows = writer.len();
        &buffer[..len + rows]
    }

    #[test]
    fn steps_and_rows_come_out_as_they_went_in() {
        let mut buffer = [0; 512];
        let payload = with_rows(&mut buffer);
        let change = SchemaChange::parse(payload).unwrap();
        assert!(change.steps().eq(STEPS));
        assert!(changeset::validate(change.changeset()).is_ok_and(|summary| summary.inserts == 1));
        assert!(steps_bound(&STEPS) >= payload.len() - change.changeset().len());
    }

    #[test]
    fn rows_without_a_place_and_places_without_rows_are_refused() {
        let mut buffer = [0; 512];
        let len = encode_steps(&STEPS, &mut buffer).unwrap().len();
        assert!(SchemaChange::parse(&buffer[..len]).is_err());
        let mut buffer = [0; 512];
        let payload = with_rows(&mut buffer);
        let mut placeless = [0; 512];
        let len = encode_steps(&STEPS[..3], &mut placeless).unwrap().len();
        let rows = SchemaChange::parse(payload).unwrap().changeset();
        placeless[len..len + rows.len()].copy_from_slice(rows);
        assert!(SchemaChange::parse(&placeless[..len + rows.len()]).is_err());
    }

    #[test]
    fn no_damaged_payload_is_read_without_an_error_or_a_difference() {
        let mut buffer = [0; 512];
        let payload = with_rows(&mut buffer);
        for end in 0..payload.len() {
            // But for a table in which nothing changed, which is no harm.
            let read = SchemaChange::parse(&payload[..end]);
            assert!(
                read.is_ok_and(|change| changeset::changes(change.changeset()).count() == 0)
                    || SchemaChange::parse(&payload[..end]).is_err(),
                "cut at {end}"
            );
        }
        let (mut damaged, len) = ([0; 512], payload.len());
        damaged[..len].copy_from_slice(payload);
        for at in 0..len {
            for bit in 0..8 {
                damaged[at] ^= 1 << bit;
                if let Ok(change) = SchemaChange::parse(&damaged[..len]) {
                    assert!(change.steps().count() == STEPS.len(), "bit {bit} at {at}");
                }
                damaged[at] ^= 1 << bit;
            }
        }
        // More steps than bytes.
        assert!(SchemaChange::parse(&[0xFF, 0xFF, 0xFF, 0xFF, 0x0F]).is_err());
    }
}
