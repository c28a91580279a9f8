//! Changesets that are too large for one request, in pieces that apply one after the other.
//!
//! ```text
//!  table by table:  deletes, as many as fit │ updates, all together │ inserts, as many as fit
//! ```
//!
//! In this order no piece meets a row that is still in its way: what deletes leave is part of the
//! state before, and what inserts add to is part of the state after. Updates may trade unique values
//! with each other, so those of a table stay together. The transaction is not atomic any more for
//! those who read the log. Replicas are expected to apply with foreign keys off, SQLite's default.

use synddb_core::changeset::{
    Change, ChangesetError, ChangesetWriter, Operation, Record, TableHeader, Value, WriteError,
    changes,
};

/// Changes that belong together, or one.
type Atom<'a> = Vec<Change<'a>>;

/// A part of a changeset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// A changeset.
    pub(crate) changeset: Vec<u8>,
    /// Where the next piece begins.
    pub(crate) end: u64,
    /// There is no next one.
    pub(crate) is_last: bool,
}

/// Why there is no piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Indivisible {
    /// A row, or the updates of one table, take more room than there is.
    NoRoom,
    /// It is no changeset.
    Malformed(ChangesetError),
}

/// The piece of `changeset` that begins at `from`, which is 0 or the end of the one before, in up to
/// `room` bytes. Where pieces begin does not depend on the room of those before.
///
/// # Errors
/// See [`Indivisible`].
pub(crate) fn piece(changeset: &[u8], from: u64, room: usize) -> Result<Piece, Indivisible> {
    let atoms = atoms(changeset).map_err(Indivisible::Malformed)?;
    let begin = usize::try_from(from).unwrap_or(usize::MAX).min(atoms.len());
    // What is left is never longer than all of it and a table's header more for each kind of change.
    let mut buffer = vec![0; room.min(changeset.len().saturating_mul(3))];
    let mut writer = ChangesetWriter::new(&mut buffer);
    let (mut end, mut len) = (begin, 0);
    let mut table = None;
    for atom in &atoms[begin..] {
        match write(&mut writer, atom, &mut table) {
            Ok(()) => {
                end += 1;
                len = writer.len();
            }
            Err(WriteError::Full) => break,
            // It was read, so it can be written.
            Err(_) => return Err(Indivisible::NoRoom),
        }
    }
    if end == begin && begin < atoms.len() {
        return Err(Indivisible::NoRoom);
    }
    buffer.truncate(len);
    Ok(Piece { changeset: buffer, end: end as u64, is_last: end == atoms.len() })
}

fn atoms(changeset: &[u8]) -> Result<Vec<Atom<'_>>, ChangesetError> {
    let mut tables: Vec<(&str, [Vec<Change<'_>>; 3])> = Vec::new();
    for change in changes(changeset) {
        let change = change?;
        let name = change.table.name;
        if tables.last().is_none_or(|(last, _)| *last != name)
            && !tables.iter().any(|(known, _)| *known == name)
        {
            tables.push((name, Default::default()));
        }
        let kind = match change.operation {
            Operation::Delete => 0,
            Operation::Update => 1,
            Operation::Insert => 2,
        };
        if let Some((_, kinds)) = tables.iter_mut().rev().find(|(known, _)| *known == name) {
            kinds[kind].push(change);
        }
    }
    let mut atoms = Vec::new();
    for (_, [deletes, updates, inserts]) in tables {
        atoms.extend(deletes.into_iter().map(|delete| vec![delete]));
        if !updates.is_empty() {
            atoms.push(updates);
        }
        atoms.extend(inserts.into_iter().map(|insert| vec![insert]));
    }
    Ok(atoms)
}

fn write<'a>(
    writer: &mut ChangesetWriter<'_>,
    atom: &Atom<'a>,
    table: &mut Option<TableHeader<'a>>,
) -> Result<(), WriteError> {
    let values = |record: Option<Record<'a>>| -> Vec<Value<'a>> {
        record.map(|record| record.values().collect()).unwrap_or_default()
    };
    for change in atom {
        if *table != Some(change.table) {
            writer.table(change.table.name, change.table.key)?;
            *table = Some(change.table);
        }
        let (old, new) = (values(change.old), values(change.new));
        match change.operation {
            Operation::Delete => writer.delete(&old)?,
            Operation::Update => writer.update(&old, &new)?,
            Operation::Insert => writer.insert(&new)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rusqlite::{
        Connection,
        session::{ConflictAction, Session},
    };
    use synddb_core::Rng;

    use super::*;

    fn database(rows: u64, rng: &mut Rng) -> Connection {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(
            "CREATE TABLE one(id INTEGER PRIMARY KEY, name TEXT UNIQUE, data BLOB);
             CREATE TABLE two(a TEXT, b INTEGER, c, PRIMARY KEY (a, b)) WITHOUT ROWID;
             CREATE UNIQUE INDEX two_c ON two(c);",
        )
        .unwrap();
        write_rows(&db, rows, 1, rng);
        db
    }

    fn write_rows(db: &Connection, rows: u64, step: u64, rng: &mut Rng) {
        for row in (0..rows).step_by(step as usize) {
            let data = vec![0xABu8; rng.up_to(300) as usize];
            db.execute(
                "INSERT OR REPLACE INTO one VALUES (?1, ?2, ?3)",
                rusqlite::params![row as i64, format!("name {}", row * step % (rows + 1)), data],
            )
            .unwrap();
            db.execute(
                "INSERT OR REPLACE INTO two VALUES (?1, ?2, ?3)",
                rusqlite::params![format!("{}", row % 7), row as i64, (row * step) as i64],
            )
            .unwrap();
        }
    }

    fn content(db: &Connection) -> Vec<String> {
        let mut rows = Vec::new();
        for sql in [
            "SELECT id || '|' || name || '|' || hex(data) FROM one ORDER BY id",
            "SELECT a || '|' || b || '|' || c FROM two ORDER BY a, b",
        ] {
            let mut select = db.prepare(sql).unwrap();
            let found = select.query_map([], |row| row.get(0)).unwrap();
            rows.extend(found.map(Result::unwrap));
        }
        rows
    }

    #[test]
    fn pieces_of_any_size_apply_one_after_the_other() {
        let mut pieces = 0;
        for seed in 0..60 {
            let mut rng = Rng::new(seed);
            let rows = 20 + rng.up_to(60);
            let mut source = database(rows, &mut rng);
            let copied = source.serialize("main").unwrap().to_vec();
            let mut replica = Connection::open_in_memory().unwrap();
            replica.deserialize_read_exact("main", copied.as_slice(), copied.len(), false).unwrap();
            let mut session = Session::new(&source).unwrap();
            session.attach(None::<&str>).unwrap();
            source.execute_batch("BEGIN").unwrap();
            source.execute("DELETE FROM one WHERE id % 3 = ?1", [rng.up_to(2) as i64]).unwrap();
            // Unique values that change hands.
            source.execute_batch("UPDATE two SET c = -c; UPDATE two SET c = 1 - c").unwrap();
            let step = 1 + rng.up_to(2);
            write_rows(&source, rows + 30, step, &mut rng);
            source.execute_batch("COMMIT").unwrap();
            let mut whole = Vec::new();
            session.changeset_strm(&mut whole).unwrap();
            drop(session);

            let mut from = 0;
            loop {
                let room = 1000 + rng.up_to(2000) as usize;
                let piece = match piece(&whole, from, room) {
                    Ok(piece) => piece,
                    // The updates of a table, or a row.
                    Err(Indivisible::NoRoom) => piece(&whole, from, whole.len()).unwrap(),
                    Err(error) => panic!("seed {seed}: {error:?}"),
                };
                pieces += 1;
                replica
                    .apply_strm(
                        &mut piece.changeset.as_slice(),
                        None::<fn(&str) -> bool>,
                        move |conflict, _| -> ConflictAction {
                            panic!("seed {seed}: {conflict:?}")
                        },
                    )
                    .unwrap();
                from = piece.end;
                if piece.is_last {
                    break;
                }
            }
            assert_eq!(content(&replica), content(&source), "seed {seed}");
        }
        assert!(pieces > 120, "they were to be split: {pieces}");
    }

    #[test]
    fn what_has_no_room_is_said_so() {
        let mut buffer = [0; 200];
        let mut writer = ChangesetWriter::new(&mut buffer);
        writer.table("t", &[1, 0]).unwrap();
        writer.insert(&[Value::Integer(1), Value::Blob(&[0; 100])]).unwrap();
        let changeset = writer.finish();
        assert_eq!(piece(changeset, 0, 50), Err(Indivisible::NoRoom));
        let all = piece(changeset, 0, 150).unwrap();
        assert_eq!((all.changeset.as_slice(), all.is_last), (changeset, true));
        assert!(matches!(piece(b"X", 0, 50), Err(Indivisible::Malformed(_))));
        assert!(piece(&[], 0, 50).unwrap().is_last);
    }
}
