//! The content of a database as the sender knows it: hashes by parts, so that what goes with a table
//! can be taken away without its rows.

use std::collections::BTreeMap;

use synddb_core::{
    changeset::{Operation, Value, changes},
    content::{ContentKey, ContentSum, TableHasher, deltas, may_fill_cells},
    wire::{
        EntryKind,
        schema::{ObjectKind, SchemaChange, SchemaStep},
    },
};

use crate::capture::{SqliteError, library::Db, scan};

/// Its rows go with the tables that they count for.
const SEQUENCE: &str = "sqlite_sequence";

/// The hash of a database's content, and what it is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    key: ContentKey,
    total: ContentSum,
    tables: BTreeMap<String, ContentSum>,
    /// For each row of `sqlite_sequence` the table that it counts for, and its hash.
    sequence: BTreeMap<i64, (Vec<u8>, ContentSum)>,
}

/// A part of a content, to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) table: String,
    /// The row of `sqlite_sequence`; 0 for any other table.
    pub(crate) row: i64,
    /// The table that this row counts for.
    pub(crate) counts: Option<Vec<u8>>,
    pub(crate) sum: ContentSum,
}

impl Content {
    /// Of an empty database.
    pub(crate) fn empty(key: ContentKey) -> Content {
        let total = ContentSum::default();
        Content { key, total, tables: BTreeMap::new(), sequence: BTreeMap::new() }
    }

    /// Reads all of a database.
    ///
    /// # Errors
    /// SQLite's, for example where a table is ordered by a collation that only the application knows.
    pub(crate) fn read(
        key: ContentKey,
        db: Db,
        mut goes_on: impl FnMut() -> bool,
    ) -> Result<Option<Content>, SqliteError> {
        const LOOK_EVERY: u32 = 1 << 10;

        let (mut content, mut rows) = (Content::empty(key), 0u32);
        // The table that is being read.
        let (mut name, mut hasher, mut sum) = (String::new(), None, ContentSum::default());
        let mut finished = true;
        scan(db, |table, columns, row| {
            if hasher.is_none() || name != table {
                content.add(&name, std::mem::take(&mut sum));
                name = table.to_owned();
                hasher = Some(TableHasher::new(key, table));
            }
            let row_sum = hasher.as_ref().map(|hasher| hasher.row(columns, row.iter().copied()));
            let row_sum = row_sum.unwrap_or_default();
            if let (SEQUENCE, [Value::Integer(rowid), counts, ..]) = (table, row) {
                content.count(*rowid, Some(counts), row_sum);
            } else {
                sum += row_sum;
            }
            rows = rows.wrapping_add(1);
            finished = !rows.is_multiple_of(LOOK_EVERY) || goes_on();
            finished
        })?;
        content.add(&name, sum);
        Ok(finished.then_some(content))
    }

    /// As it was kept.
    pub(crate) fn of_parts(key: ContentKey, parts: Vec<Part>) -> Content {
        let mut content = Content::empty(key);
        for Part { table, row, counts, sum } in parts {
            match counts {
                Some(counts) => {
                    content.total += sum;
                    content.sequence.insert(row, (counts, sum));
                }
                None => content.add(&table, sum),
            }
        }
        content
    }

    /// The parts that are not in `before` any more, and those that are new or have changed.
    pub(crate) fn since(&self, before: Option<&Content>) -> (Vec<(String, i64)>, Vec<Part>) {
        let (mut gone, mut come) = (Vec::new(), Vec::new());
        for table in before.iter().flat_map(|before| before.tables.keys()) {
            if !self.tables.contains_key(table) {
                gone.push((table.clone(), 0));
            }
        }
        for row in before.iter().flat_map(|before| before.sequence.keys()) {
            if !self.sequence.contains_key(row) {
                gone.push((SEQUENCE.to_owned(), *row));
            }
        }
        for (table, sum) in &self.tables {
            if before.is_none_or(|before| before.tables.get(table) != Some(sum)) {
                come.push(Part { table: table.clone(), row: 0, counts: None, sum: *sum });
            }
        }
        for (row, known) in &self.sequence {
            if before.is_none_or(|before| before.sequence.get(row) != Some(known)) {
                let (counts, sum) = known.clone();
                come.push(Part {
                    table: SEQUENCE.to_owned(),
                    row: *row,
                    counts: Some(counts),
                    sum,
                });
            }
        }
        (gone, come)
    }

    /// The hash.
    pub(crate) fn total(&self) -> ContentSum {
        self.total
    }

    /// The content after an entry; `None` where the entry does not tell.
    pub(crate) fn after(mut self, kind: EntryKind, payload: &[u8]) -> Option<Content> {
        match kind {
            EntryKind::Changeset => self.change(payload)?,
            EntryKind::Schema => {
                let change = SchemaChange::parse(payload).ok()?;
                for step in change.steps() {
                    match step {
                        SchemaStep::Drop { kind: ObjectKind::Table, name } => self.drop_table(name),
                        SchemaStep::Redefine { kind: ObjectKind::Table, sql, .. }
                            if may_fill_cells(sql) =>
                        {
                            return None;
                        }
                        SchemaStep::Rows => self.change(change.changeset())?,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        Some(self)
    }

    fn change(&mut self, changeset: &[u8]) -> Option<()> {
        let mut has_sequence = false;
        deltas(self.key, changeset, |table, delta| match table {
            SEQUENCE => has_sequence = true,
            table => self.add(table, delta),
        })
        .ok()?;
        if !has_sequence {
            return Some(());
        }
        for change in changes(changeset) {
            let change = change.ok()?;
            if change.table.name != SEQUENCE {
                continue;
            }
            let hasher = TableHasher::new(self.key, SEQUENCE);
            let delta = hasher.delta(&change)?;
            let record = change.old.or(change.new)?;
            let mut values = record.values();
            let Some(Value::Integer(rowid)) = values.next() else { return None };
            let counts = match (change.operation, change.new) {
                (Operation::Insert, _) => values.next(),
                (Operation::Update, Some(new)) => {
                    new.values().nth(1).filter(|counts| *counts != Value::Undefined)
                }
                _ => None,
            };
            self.count(rowid, counts.as_ref(), delta);
            if change.operation == Operation::Delete {
                self.sequence.remove(&rowid);
            }
        }
        Some(())
    }

    fn add(&mut self, table: &str, delta: ContentSum) {
        if delta == ContentSum::default() {
            return;
        }
        self.total += delta;
        match self.tables.get_mut(table) {
            Some(sum) => *sum += delta,
            None => {
                self.tables.insert(table.to_owned(), delta);
            }
        }
    }

    fn count(&mut self, rowid: i64, counts: Option<&Value<'_>>, delta: ContentSum) {
        self.total += delta;
        let (known, sum) = self.sequence.entry(rowid).or_default();
        *sum += delta;
        if let Some(counts) = counts {
            *known = match counts {
                Value::Text(name) => name.to_vec(),
                _ => Vec::new(),
            };
        }
    }

    fn drop_table(&mut self, name: &str) {
        if let Some(sum) = self.tables.remove(name) {
            self.total -= sum;
        }
        let total = &mut self.total;
        self.sequence.retain(|_, (counts, sum)| {
            let stays = counts != name.as_bytes();
            if !stays {
                *total -= *sum;
            }
            stays
        });
    }
}
