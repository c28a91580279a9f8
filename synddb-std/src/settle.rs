//! Whether a stream can go on where the last process left it, without a snapshot.
//!
//! ```text
//! entries in the outbox │ prepared commits: 1 2 3 … n │ the database
//!                 place ┴ place before each           ┴ where it is now
//! ```
//!
//! A process that prepared commit n knew that those before it had happened; whether the last one did
//! it could not tell any more, and a power cut may have taken more of them. So the place decides: the
//! database is where it was before one of them, or one commit past the last. Since a place tells how
//! many commits came but not whose, the rows that they changed have to be as they left them. Where
//! none of this can be shown the stream begins anew from a snapshot.

use rusqlite::{Connection, types::ValueRef};
use synddb_core::{
    changeset::{self, Change, Record, TableHeader, Value},
    wire::{EntryKind, message::ResyncReason},
};

use crate::{
    capture::{Distance, Position, Present},
    outbox::{NewEntry, Outbox, OutboxError, State, Trace},
};

/// How a stream begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// Everything that the database holds is captured, and in the outbox or acknowledged.
    GoesOn,
    Behind(ResyncReason),
}

/// Sees to what the last process left in the outbox. `unchanged` where its clean stop is proved.
///
/// # Errors
/// Those of the outbox: nothing was changed that another try would miss.
pub(crate) fn settle(
    conn: &Connection,
    present: Option<Present>,
    outbox: &Outbox,
    unchanged: bool,
) -> Result<Start, OutboxError> {
    let state = outbox.state()?;
    let place = present.as_ref().and_then(Present::position);
    let committed = match &present {
        _ if unchanged => Some(Vec::new()),
        Some(present) if has_base(&state) => committed(conn, present, outbox, &state)?,
        _ => None,
    };
    let Some(committed) = committed else {
        outbox.forget_place()?;
        if state.wish.is_some() {
            // Its snapshot went with the process that wished for it.
            outbox.withdraw_next()?;
        }
        let first = state.position.epoch.0 == 0;
        return Ok(Start::Behind(match first {
            true => ResyncReason::FirstAttach,
            false => ResyncReason::UncleanRestart,
        }));
    };
    if !committed.is_empty() {
        tracing::info!(commits = committed.len(), "commits that were kept before they happened");
        outbox.append(&committed, place)?;
    }
    outbox.settled(place)?;
    Ok(Start::GoesOn)
}

/// Whether changesets lead somewhere: the epoch's snapshot is stored, and none is due.
fn has_base(state: &State) -> bool {
    state.wish.is_none() && state.base_noted && !state.collapsed
}

/// The commits that happened and are not in the outbox; `None` where that cannot be shown.
fn committed(
    conn: &Connection,
    present: &Present,
    outbox: &Outbox,
    state: &State,
) -> Result<Option<Vec<NewEntry>>, OutboxError> {
    let traces = outbox.traces()?;
    let beyond = traces.prepared.partition_point(|trace| trace.number <= state.last_commit);
    if beyond == traces.prepared.len() {
        let Some(position) = present.position() else {
            tracing::warn!("the database's state has no name that a restart could compare");
            return Ok(None);
        };
        if traces.place == Some(position) {
            return Ok(Some(Vec::new()));
        }
    }
    let Some(happened) = happened(conn, present, &traces.prepared, state.last_commit) else {
        tracing::warn!(
            place = ?traces.place,
            now = ?present.position(),
            prepared = traces.prepared.len(),
            "nobody can tell what was committed since: a snapshot is needed"
        );
        return Ok(None);
    };
    if happened < beyond {
        tracing::error!("commits that were shipped are not in the database any more: power loss?");
        return Ok(None);
    }
    let entry = |trace: &Trace| NewEntry {
        kind: EntryKind::Changeset,
        first_commit: trace.number,
        last_commit: trace.number,
        time_ms: trace.time_ms,
        schema_version: trace.schema_version,
        payload: trace.payload.clone(),
    };
    Ok(Some(traces.prepared[beyond..happened].iter().map(entry).collect()))
}

/// How many of the prepared commits happened; `None` where that cannot be shown.
fn happened(
    conn: &Connection,
    present: &Present,
    prepared: &[Trace],
    last_appended: u64,
) -> Option<usize> {
    // A commit that was not prepared leaves a hole. The first may be in the outbox already.
    let first = prepared.first()?.number;
    let numbered = |(number, trace): (u64, &Trace)| trace.number == number;
    let seamless = (first == last_appended || first == last_appended + 1)
        && (first..).zip(prepared).all(numbered);
    if !seamless {
        return None;
    }
    let distance = |place: &Option<Position>| {
        place.as_ref().map_or(Distance::Unknown, |place| present.distance_from(place))
    };
    let last = prepared.len() - 1;
    let happened = match distance(&prepared[last].place) {
        Distance::OneCommit => prepared.len(),
        Distance::Same => last,
        Distance::Unknown => {
            prepared.iter().rposition(|trace| distance(&trace.place) == Distance::Same)?
        }
    };
    let shows = |at: usize, when: When| {
        prepared.get(at).is_none_or(|trace| match is_as(conn, &trace.payload, when) {
            Ok(shows) => shows,
            Err(error) => {
                tracing::warn!(%error, "the rows of a commit in doubt cannot be read");
                false
            }
        })
    };
    let agrees = happened.checked_sub(1).is_none_or(|at| shows(at, When::After))
        && shows(happened, When::Before);
    agrees.then_some(happened)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Before,
    After,
}

/// Whether the rows of a changeset are in the database as they were before or after it.
fn is_as(conn: &Connection, changeset: &[u8], when: When) -> Result<bool, rusqlite::Error> {
    let mut table = None;
    for change in changeset::changes(changeset) {
        let Ok(change) = change else { return Ok(false) };
        if table.as_ref().is_none_or(|table: &Table| table.name != change.table.name) {
            table = Some(Table::look(conn, change.table)?);
        }
        let Some(table) = &table else { return Ok(false) };
        if !table.shows(conn, &change, when)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// How to find rows of a table by the key of a changeset.
struct Table {
    name: String,
    select: Option<String>,
}

impl Table {
    fn look(conn: &Connection, header: TableHeader<'_>) -> Result<Table, rusqlite::Error> {
        let name = header.name.to_owned();
        let mut columns: Vec<(String, i64)> = conn
            .prepare_cached(
                "SELECT name, pk FROM pragma_table_xinfo(?1, 'main') WHERE hidden = 0 ORDER BY cid",
            )?
            .query_map([&name], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        if columns.iter().all(|(_, place)| *place == 0) {
            let taken = |alias: &&str| {
                !columns.iter().any(|(column, _)| column.eq_ignore_ascii_case(alias))
            };
            let Some(rowid) = ["_rowid_", "rowid", "oid"].into_iter().find(taken) else {
                return Ok(Table { name, select: None });
            };
            columns.insert(0, (rowid.into(), 1));
        }
        let key: Vec<_> = columns.iter().enumerate().filter(|(_, (_, place))| *place > 0).collect();
        let same = columns.len() == header.columns()
            && columns.iter().zip(header.key).all(|((_, here), there)| (*here > 0) == (*there > 0));
        let list = |columns: &mut dyn Iterator<Item = String>, by: &str| {
            columns.collect::<Vec<_>>().join(by)
        };
        let select = format!(
            "SELECT {} FROM main.{} WHERE {}",
            list(&mut columns.iter().map(|(column, _)| quoted(column)), ", "),
            quoted(&name),
            list(
                &mut key
                    .iter()
                    .zip(1..)
                    .map(|((_, (column, _)), n)| { format!("{} = ?{n}", quoted(column)) }),
                " AND "
            ),
        );
        Ok(Table { name, select: same.then_some(select) })
    }

    fn shows(
        &self,
        conn: &Connection,
        change: &Change<'_>,
        when: When,
    ) -> Result<bool, rusqlite::Error> {
        let Some(select) = &self.select else { return Ok(false) };
        let expected = match when {
            When::Before => change.old,
            When::After => change.new,
        };
        // Of an UPDATE unchanged columns are left out, but for the key, which stands in the old row.
        let Some(keys) = change.old.or(change.new) else { return Ok(false) };
        let is_key = |column: usize| change.table.key[column] > 0;
        let mut statement = conn.prepare_cached(select)?;
        let key = keys.values().enumerate().filter(|(column, _)| is_key(*column));
        for (at, (_, value)) in key.enumerate() {
            bind(&mut statement, at + 1, &value)?;
        }
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next()? {
            let mut same_key = true;
            for (column, value) in keys.values().enumerate() {
                same_key &= !is_key(column) || is(row.get_ref(column)?, &value);
            }
            if !same_key {
                // It compares equal, by the column's collation or affinity.
                continue;
            }
            return match expected {
                Some(expected) => holds(row, &expected),
                None => Ok(false),
            };
        }
        Ok(expected.is_none())
    }
}

fn holds(row: &rusqlite::Row<'_>, expected: &Record<'_>) -> Result<bool, rusqlite::Error> {
    for (column, value) in expected.values().enumerate() {
        if value != Value::Undefined && !is(row.get_ref(column)?, &value) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is(found: ValueRef<'_>, value: &Value<'_>) -> bool {
    let found = match found {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(integer) => Value::Integer(integer),
        ValueRef::Real(real) => Value::Real(real),
        ValueRef::Text(text) => Value::Text(text),
        ValueRef::Blob(blob) => Value::Blob(blob),
    };
    found.is_identical(value)
}

fn bind(
    statement: &mut rusqlite::Statement<'_>,
    at: usize,
    value: &Value<'_>,
) -> Result<(), rusqlite::Error> {
    use rusqlite::types::{ToSqlOutput, Value as Owned};

    let value = match *value {
        Value::Undefined | Value::Null => ToSqlOutput::Owned(Owned::Null),
        Value::Integer(integer) => ToSqlOutput::Owned(Owned::Integer(integer)),
        Value::Real(real) => ToSqlOutput::Owned(Owned::Real(real)),
        Value::Text(text) => ToSqlOutput::Borrowed(ValueRef::Text(text)),
        Value::Blob(blob) => ToSqlOutput::Borrowed(ValueRef::Blob(blob)),
    };
    statement.raw_bind_parameter(at, value)
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::session::Session;

    /// What `sql` changes in a database made by `schema`, as SQLite tells it.
    fn changeset(conn: &Connection, sql: &str) -> Vec<u8> {
        let mut session = Session::new(conn).unwrap();
        session.attach::<&str>(None).unwrap();
        conn.execute_batch(sql).unwrap();
        let mut changeset = Vec::new();
        session.changeset_strm(&mut changeset).unwrap();
        changeset
    }

    #[test]
    fn rows_tell_before_from_after() {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(
            r#"CREATE TABLE "odd ""name"(a, k TEXT COLLATE NOCASE, "b c" REAL,
                   g AS (a), PRIMARY KEY(k, a)) WITHOUT ROWID;
               INSERT INTO "odd ""name" VALUES (1, 'one', 1), (2, 'two', 2), (3, 'three', x'00')"#,
        )
        .unwrap();
        let changeset = changeset(
            &conn,
            r#"BEGIN;
               INSERT INTO "odd ""name" VALUES (4, 'four', NULL);
               UPDATE "odd ""name" SET "b c" = 2.5 WHERE a = 2;
               DELETE FROM "odd ""name" WHERE a = 3;
               COMMIT"#,
        );
        let is_as = |when| is_as(&conn, &changeset, when).unwrap();
        assert_eq!((is_as(When::Before), is_as(When::After)), (false, true));
        conn.execute_batch(
            r#"INSERT INTO "odd ""name" VALUES (3, 'three', x'00');
               UPDATE "odd ""name" SET "b c" = 2 WHERE a = 2;
               DELETE FROM "odd ""name" WHERE a = 4"#,
        )
        .unwrap();
        assert_eq!((is_as(When::Before), is_as(When::After)), (true, false));
        // The key only compares equal now.
        conn.execute_batch(r#"UPDATE "odd ""name" SET k = 'Two' WHERE a = 2"#).unwrap();
        assert_eq!((is_as(When::Before), is_as(When::After)), (false, false));
        conn.execute_batch(r#"ALTER TABLE "odd ""name" ADD COLUMN d"#).unwrap();
        assert_eq!((is_as(When::Before), is_as(When::After)), (false, false));
    }
}
