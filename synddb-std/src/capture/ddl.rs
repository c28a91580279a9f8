//! What a change of the schema comes to, told from the schema before and after it.
//!
//! SQLite tells nobody which statements changed a schema, only that they did: `schema_version` moves
//! by one with each. So the objects are compared, and the number tells whether what is seen explains
//! everything. A table that was dropped and made again looks as if nothing had happened, but takes
//! two statements; VACUUM and a backup into the connection take one. Where statements are left over
//! that could be any of those, only a snapshot is right.
//!
//! ```text
//! dropped ─▶ DROP       created ─▶ CREATE, and all rows of tables
//! altered, nothing else in one statement ─▶ its new definition: rows stay as they are stored
//! altered otherwise ─▶ DROP, CREATE, all rows; past a limit a snapshot
//! ```

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use synddb_core::wire::schema::{ObjectKind, SchemaStep, encode_steps, steps_bound};

use super::Lost;
use super::ffi::{Db, SqliteError, Value};
use super::journal::Journal;
use super::sabotage::{Sabotage, sabotaged};
use super::schema::is_internal_table;
use super::sequence::{self, Rows, Sequences};
use super::tables::Tables;

/// Rows of tables that are not new are read on the application's thread, in its commit: more than so
/// many bytes are left to a snapshot.
const MAX_ALTERED_BYTES: usize = 1 << 20;

/// An object of the schema that has a definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) kind: ObjectKind,
    pub(super) name: String,
    /// The table it belongs to, or its own name.
    pub(super) table: String,
    pub(super) sql: String,
}

/// The definitions of a schema.
#[derive(Debug, Default)]
pub(super) struct Objects {
    list: Vec<Object>,
    /// Tables of planner statistics: no content, but they were made by statements.
    statistics: usize,
    /// A definition is no text: nothing can be said of this schema.
    unreadable: bool,
}

impl Objects {
    pub(super) fn load(db: Db) -> Result<Objects, SqliteError> {
        let mut objects = Objects::default();
        let mut rows = db.prepare(
            c"SELECT type, name, tbl_name, coalesce(rootpage, 0), sql FROM main.sqlite_schema
              WHERE sql IS NOT NULL ORDER BY rowid",
        )?;
        while rows.step()? {
            let name = rows.column_text(1);
            if is_internal_table(name.as_bytes()) {
                let lower = name.to_ascii_lowercase();
                objects.statistics += usize::from(lower.starts_with("sqlite_stat"));
                continue;
            }
            let kind = match &*rows.column_text(0) {
                "index" => ObjectKind::Index,
                "view" => ObjectKind::View,
                "trigger" => ObjectKind::Trigger,
                _ if rows.column_i64(3) == 0 => ObjectKind::VirtualTable,
                _ => ObjectKind::Table,
            };
            let sql = match rows.column_value(4) {
                Value::Text(sql) => String::from_utf8(sql).ok(),
                _ => None,
            };
            objects.unreadable |= sql.is_none();
            objects.list.push(Object {
                kind,
                name,
                table: rows.column_text(2),
                sql: sql.unwrap_or_default(),
            });
        }
        Ok(objects)
    }

    /// Whether the definitions are the same.
    pub(super) fn are(&self, others: &Objects) -> bool {
        self.list == others.list
    }

    /// Tables, indexes and views share their names; triggers do not.
    fn by_name(&self) -> HashMap<(bool, &str), usize> {
        let key = |object: &Object| object.kind == ObjectKind::Trigger;
        self.list.iter().enumerate().map(|(at, o)| ((key(o), &*o.name), at)).collect()
    }
}

fn is_table(object: &Object) -> bool {
    matches!(object.kind, ObjectKind::Table | ObjectKind::VirtualTable)
}

/// How a schema becomes another.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Before the rows.
    before: Vec<Step>,
    /// After them: a unique index would refuse what they were before.
    after: Vec<Step>,
    /// Tables of the new schema whose rows travel whole.
    whole: Vec<usize>,
    /// Tables of the old schema whose row events are of no use.
    stale: Vec<usize>,
    /// The rows that travel whole may be old ones.
    altered: bool,
}

/// Numbers are places in the list of the old schema's objects, for a drop, or of the new one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Drop(usize),
    Create(usize),
    Redefine(usize),
}

impl Plan {
    /// None where it cannot be told, or takes a snapshot. `rewritten` are tables of the old schema
    /// of which row events came that did not fit them. `single` says that one transaction made the
    /// whole difference.
    fn of(old: &Tables, new: &Tables, rewritten: &[usize], single: bool) -> Option<Plan> {
        let (before, after) = (&old.objects, &new.objects);
        if before.unreadable || after.unreadable {
            return None;
        }
        let (old_names, new_names) = (before.by_name(), after.by_name());
        let find = |names: &HashMap<(bool, &str), usize>, object: &Object| {
            names.get(&(object.kind == ObjectKind::Trigger, &*object.name)).copied()
        };
        let dropped: Vec<usize> = (0..before.list.len())
            .filter(|&at| find(&new_names, &before.list[at]).is_none())
            .collect();
        let created: Vec<usize> = (0..after.list.len())
            .filter(|&at| find(&old_names, &after.list[at]).is_none())
            .collect();
        let altered: Vec<usize> = (0..after.list.len())
            .filter(|&at| {
                find(&old_names, &after.list[at])
                    .is_some_and(|old| before.list[old] != after.list[at])
            })
            .collect();

        // The statements that it takes at least.
        let goes_along = |at: &&usize| {
            let object = &before.list[**at];
            dropped.iter().any(|&other| {
                let other = &before.list[other];
                let shadow = other.kind == ObjectKind::VirtualTable
                    && object.kind == ObjectKind::Table
                    && super::tables::is_shadow_of(&object.name, &other.name);
                let part = object.name != other.name && object.table == other.name;
                shadow || (part && !is_table(object))
            })
        };
        let drops = dropped.iter().filter(|at| !goes_along(at)).count();
        let dropped_tables = dropped.iter().filter(|&&at| is_table(&before.list[at])).count();
        let created_tables = created.iter().filter(|&&at| is_table(&after.list[at])).count();
        let renamed = dropped_tables.min(created_tables).min(drops);
        // ANALYZE makes several at once.
        let statistics = usize::from(before.statistics != after.statistics);
        let least = created.len() + drops - renamed
            + usize::from(!altered.is_empty() && renamed == 0)
            + statistics;
        let statements = new.schema_version.wrapping_sub(old.schema_version);
        let statements = usize::try_from(statements).ok()?;
        // In one transaction there is no VACUUM and no backup, and one statement makes no table anew.
        let spare = usize::from(single && statements > 1);
        if least == 0 || !(least..=least + spare).contains(&statements) {
            return None;
        }

        let mut plan = Plan::default();
        let columns = |tables: &Tables, object: &Object| {
            tables.find(object.name.as_bytes()).and_then(|at| tables.get(at)).map(|t| t.width)
        };
        let stays_stored = |at: &usize| {
            let object = &after.list[*at];
            let rewritten = || {
                old.find(object.name.as_bytes()).is_some_and(|number| rewritten.contains(&number))
            };
            object.kind != ObjectKind::Table
                || (columns(old, object) <= columns(new, object) && !rewritten())
        };
        let alone = created.is_empty() && drops == 0 && statements == 1 && statistics == 0;
        if alone && altered.iter().all(stays_stored) {
            // Row events of before it have the columns of before it.
            plan.after = altered.iter().map(|&at| Step::Redefine(at)).collect();
            return Some(plan);
        }
        plan.altered = renamed > 0 || !altered.is_empty();
        let anew: Vec<usize> = altered
            .iter()
            .copied()
            .filter(|&at| after.list[at].kind == ObjectKind::Table)
            .collect();
        let taken_along = |object: &Object| {
            !is_table(object) && anew.iter().any(|&at| after.list[at].name == object.table)
        };
        // What goes: dropped, or altered. Tables last, of these virtual ones first.
        let mut goes: Vec<usize> = dropped.clone();
        goes.extend(altered.iter().filter_map(|&at| find(&old_names, &after.list[at])));
        let order = |object: &Object| match object.kind {
            ObjectKind::Table => 2,
            ObjectKind::VirtualTable => 1,
            _ => 0,
        };
        goes.sort_by_key(|&at| (order(&before.list[at]), at));
        for at in goes {
            let object = &before.list[at];
            let with_table = dropped.iter().any(|&other| {
                let other = &before.list[other];
                !is_table(object) && other.name != object.name && other.name == object.table
            });
            if !with_table && !taken_along(object) {
                plan.before.push(Step::Drop(at));
            }
            if object.kind == ObjectKind::Table {
                plan.stale.extend(old.find(object.name.as_bytes()));
            }
        }
        // What comes: created, altered, or gone with a table that is made anew.
        let mut comes: Vec<usize> = (0..after.list.len())
            .filter(|at| {
                created.contains(at) || altered.contains(at) || taken_along(&after.list[*at])
            })
            .collect();
        comes.sort_by_key(|&at| (after.list[at].kind == ObjectKind::VirtualTable, at));
        for at in comes {
            let object = &after.list[at];
            if is_table(object) { &mut plan.before } else { &mut plan.after }
                .push(Step::Create(at));
            if object.kind == ObjectKind::Table {
                plan.whole.push(new.find(object.name.as_bytes())?);
            }
        }
        Some(plan)
    }

    fn steps<'t>(
        steps: &[Step],
        old: &'t Tables,
        new: &'t Tables,
    ) -> impl Iterator<Item = SchemaStep<'t>> {
        steps.iter().map(move |step| match *step {
            Step::Drop(at) => {
                let Object { kind, name, .. } = &old.objects.list[at];
                SchemaStep::Drop { kind: *kind, name }
            }
            Step::Create(at) => {
                let Object { kind, name, table, sql } = &new.objects.list[at];
                SchemaStep::Create { kind: *kind, name, table, sql }
            }
            Step::Redefine(at) => {
                let Object { kind, name, sql, .. } = &new.objects.list[at];
                SchemaStep::Redefine { kind: *kind, name, sql }
            }
        })
    }
}

/// The schema as it is now, and how it came about.
pub(super) struct Look {
    pub(super) tables: Arc<Tables>,
    pub(super) sequences: Option<Sequences>,
    /// Or what only a snapshot can carry.
    pub(super) found: Result<Found, Lost>,
}

/// What has to travel beside the row events.
pub(super) struct Found {
    plan: Plan,
    /// A journal of the new schema's tables.
    rows: Vec<u8>,
}

impl Found {
    /// Whether row events of a table of the old schema are not needed.
    pub(super) fn makes_anew(&self, table: usize) -> bool {
        self.plan.stale.contains(&table)
    }
}

/// What [`look`] compares with.
pub(super) struct Before<'a> {
    pub(super) tables: &'a Arc<Tables>,
    /// `sqlite_sequence`, as it was handed over last.
    pub(super) sequence: Option<&'a Rows>,
    /// See [`Plan::of`].
    pub(super) rewritten: &'a [usize],
    pub(super) single: bool,
}

/// Reads the schema, and the rows that have to travel whole. Where statements may read: at safe
/// points, and before a commit.
pub(super) fn look(
    db: Db,
    schema_version: u32,
    before: &Before<'_>,
    limit: usize,
) -> Result<Look, SqliteError> {
    let tables = Arc::new(Tables::load(db, schema_version)?);
    let sequences = Sequences::load(db)?;
    let lost = Lost::SchemaChanged { from: before.tables.schema_version, to: schema_version };
    let plan = Plan::of(before.tables, &tables, before.rewritten, before.single);
    let found = match plan {
        None => Err(lost),
        Some(plan) => {
            let limit = if plan.altered { limit.min(MAX_ALTERED_BYTES) } else { limit };
            whole_rows(db, &tables, &plan, limit)?.map(|mut rows| {
                let now = sequences.as_ref().map(|sequences| &sequences.rows);
                put_sequence(before, now, &tables, &plan, &mut rows);
                Found { plan, rows }
            })
        }
    };
    Ok(Look { tables, sequences, found })
}

fn whole_rows(
    db: Db,
    tables: &Tables,
    plan: &Plan,
    limit: usize,
) -> Result<Result<Vec<u8>, Lost>, SqliteError> {
    let mut out = Vec::new();
    for &number in &plan.whole {
        let Some(table) = tables.get(number) else { continue };
        let mut rows = table.select(db, "")?;
        while rows.step()? {
            if table.unreachable() {
                return Ok(Err(Lost::Unaddressable { table: table.name.clone() }));
            }
            if table.put_selected(&rows, number, &mut out) {
                return Ok(Err(Lost::NullKey { table: table.name.clone() }));
            }
            if out.len() > limit {
                return Ok(Err(Lost::TooLarge { limit }));
            }
        }
    }
    Ok(Ok(out))
}

/// Differences of `sqlite_sequence`. At the replica its rows go with the tables they are of.
fn put_sequence(
    before: &Before<'_>,
    now: Option<&Rows>,
    tables: &Tables,
    plan: &Plan,
    out: &mut Vec<u8>,
) {
    let Some(now) = now else { return };
    let mut rows = before.sequence.cloned().unwrap_or_default();
    rows.retain(|_, [name, _]| {
        !plan.stale.iter().filter_map(|&number| before.tables.get(number)).any(|table| {
            matches!(name, Value::Text(name) if name.eq_ignore_ascii_case(table.name.as_bytes()))
        })
    });
    sequence::journal_changes(&rows, now, tables.sequence(), out);
}

/// A committed change of the schema, and the rows that changed with it.
pub(crate) struct SchemaJournal {
    old: Arc<Tables>,
    new: Arc<Tables>,
    plan: Plan,
    header: Header,
    /// Row events, of the old schema's tables.
    events: Journal,
    /// Rows that travel whole, of the new one's.
    rows: Journal,
    limit: usize,
}

/// Numbers in the database's header that changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) user_version: Option<i32>,
    pub(super) application_id: Option<i32>,
}

impl Header {
    /// What became of `user_version`.
    pub(super) fn between(before: i64, now: i64) -> Header {
        let user_version = (before != now).then_some(now as i32);
        Header { user_version, application_id: None }
    }
}

impl SchemaJournal {
    /// `found` was told of a change from `old` to `new`; None where only the header changed.
    pub(super) fn new(
        old: Arc<Tables>,
        new: Arc<Tables>,
        found: Option<Found>,
        header: Header,
        events: Journal,
        limit: usize,
    ) -> SchemaJournal {
        let Found { plan, rows } =
            found.unwrap_or_else(|| Found { plan: Plan::default(), rows: Vec::new() });
        let rows = events.beside(rows, Arc::clone(&new));
        SchemaJournal { old, new, plan, header, events, rows, limit }
    }

    /// Bytes it holds.
    pub(crate) fn len(&self) -> usize {
        let texts = |steps| {
            Plan::steps(steps, &self.old, &self.new).map(|step| steps_bound(&[step])).sum::<usize>()
        };
        self.events.len()
            + self.rows.len()
            + texts(&self.plan.before)
            + texts(&self.plan.after)
            + 32
    }

    /// The payload of a Schema entry; None where there is nothing in it.
    ///
    /// # Errors
    /// As [`Journal::to_changeset`].
    pub(crate) fn to_payload(&self) -> Result<Option<Vec<u8>>, Lost> {
        let mut changeset = self.events.to_changeset_without(&self.plan.stale)?;
        changeset.append(&mut self.rows.to_changeset()?);
        let (old, new) = (&*self.old, &*self.new);
        let mut steps: Vec<_> = Plan::steps(&self.plan.before, old, new).collect();
        steps.extend((!changeset.is_empty()).then_some(SchemaStep::Rows));
        steps.extend(Plan::steps(&self.plan.after, old, new));
        if sabotaged(Sabotage::ForgottenDefinition) {
            steps.retain(|step| !matches!(step, SchemaStep::Redefine { .. }));
        }
        steps.extend(self.header.user_version.map(SchemaStep::UserVersion));
        steps.extend(self.header.application_id.map(SchemaStep::ApplicationId));
        if steps.is_empty() {
            return Ok(None);
        }
        let mut payload = vec![0; steps_bound(&steps)];
        let len = encode_steps(&steps, &mut payload).expect("there is room for the steps").len();
        payload.truncate(len);
        payload.append(&mut changeset);
        if payload.len() > self.limit {
            return Err(Lost::TooLarge { limit: self.limit });
        }
        Ok(Some(payload))
    }
}

impl fmt::Debug for SchemaJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SchemaJournal({:?}, {:?}, {:?})", self.plan, self.events, self.rows)
    }
}
