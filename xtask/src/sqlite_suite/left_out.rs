//! The scripts, or tests in them, that tell nothing about capture. At most one script in twenty.

/// A script that is left out.
pub(super) struct LeftOut {
    pub(super) script: &'static str,
    /// The tests whose failure does not count, `*` at the end for any rest; all if empty.
    pub(super) tests: &'static [&'static str],
    pub(super) why: &'static str,
}

const fn left_out(
    script: &'static str,
    tests: &'static [&'static str],
    why: &'static str,
) -> LeftOut {
    LeftOut { script, tests, why }
}

const OPENING_READS: &str = "attaching reads the database when it is opened";
const SEEN: &str = "the script's authorizer or trace sees the engine's statements";
const HOOK: &str = "the write-ahead log hook is the engine's";
const COUNTS: &str = "counts what the engine's own reads add to";
const MEMORY: &str = "counts memory, statements or mutexes, of which the engine has some";
const CHANGES: &str = "changes() says 0 where it is read in mid-statement and there are triggers";
const CHANGES_C: &str = "sqlite3_changes() says 0 while a statement that has written gives rows";
const TRUNCATE: &str = "with a preupdate hook a DELETE without WHERE goes row by row";
const TRUNCATE_DAMAGED: &str = "with a preupdate hook a DELETE without WHERE goes row by row, by indexes that the script has \
     damaged";
const BLOB: &str = "with a preupdate hook, blob I/O of this SQLite asks for the key of a row it has lost; mended \
     in later versions";
const REPLACED: &str = "the script's hooks or sessions take the place of the engine's preupdate hook, whereupon it \
     does not see every row";
const EXPIRED: &str =
    "a refused sqlite3_close ends capture, whereby statements of the old sqlite3_prepare expire";
const DESERIALIZE: &str = "sqlite3_deserialize of this SQLite frees a schema that eponymous tables, the engine's and \
     SQLite's own, go on using; mended in later versions";
const DEFAULT: &str = "this SQLite tells NULL for the old value of a column added with a default; mended in later \
     versions";

/// Every one of them.
pub(super) const LEFT_OUT: &[LeftOut] = &[
    left_out("alter2", &["replica: *"], DEFAULT),
    left_out("alterauth2", &["alterauth2-1.*"], SEEN),
    left_out("altercorrupt", &[], DESERIALIZE),
    left_out(
        "alterdropcol",
        &["replica: *"],
        "edits the schema by hand to an AUTOINCREMENT without the table for it",
    ),
    left_out("auth", &["auth-1.136.3", "auth-4.1", "auth-5.3.2", "auth-6.2"], SEEN),
    left_out("auth2", &["auth2-2.1", "auth2-2.2"], SEEN),
    left_out("auth3", &["auth3-2.1"], TRUNCATE),
    left_out("autovacuum", &["autovacuum-8.2"], OPENING_READS),
    left_out("cache", &["cache-1.1"], OPENING_READS),
    left_out("capi3", &["capi3-6.2", "capi3-6.3"], EXPIRED),
    left_out("capi3d", &["capi3-1.*", "capi3d-1.*"], MEMORY),
    left_out("changes2", &["changes2-1.1", "changes2-1.3"], CHANGES_C),
    left_out("collate3", &["collate3-3.6", "collate3-3.9"], TRUNCATE),
    left_out(
        "corruptI",
        &["corruptI-6.1"],
        "deletes a row whose values are damaged, and with a preupdate hook they are read",
    ),
    left_out("corruptL", &[], DESERIALIZE),
    left_out("corruptN", &[], DESERIALIZE),
    left_out("dbfuzz001", &[], DESERIALIZE),
    left_out("dbstatus2", &["dbstatus2-1.*"], COUNTS),
    left_out("e_blobclose", &[], BLOB),
    left_out("e_blobopen", &[], BLOB),
    left_out("e_blobwrite", &[], BLOB),
    left_out("e_changes", &["e_changes-5.2.1", "e_changes-5.2.2"], CHANGES),
    left_out("e_wal", &["e_wal-2.*"], OPENING_READS),
    left_out("e_walckpt", &["e_walckpt-4.*"], OPENING_READS),
    left_out("e_walhook", &["e_walhook-*"], HOOK),
    left_out("exclusive", &["exclusive-2.*", "exclusive-7.1"], OPENING_READS),
    left_out("fkey1", &["fkey1-5.2.1"], SEEN),
    left_out("fkey2", &["fkey2-18.2"], SEEN),
    left_out(
        "fordelete",
        &["replica: table x1*"],
        "writes to a b-tree by hand, without a statement",
    ),
    left_out("fts3corrupt4", &[], DESERIALIZE),
    left_out("fts3fuzz001", &[], DESERIALIZE),
    left_out("gencol1", &[], DESERIALIZE),
    left_out("hook", &["replica: *"], REPLACED),
    left_out("imposter1", &["imposter-2.*", "imposter-3.1"], TRUNCATE_DAMAGED),
    left_out("incrblob", &["incrblob-2.*"], COUNTS),
    left_out("incrblob2", &["incrblob2-7.*"], MEMORY),
    left_out("incrvacuum", &[], DESERIALIZE),
    left_out("intck2", &["intck2-3.4.*", "intck2-3.5.*"], TRUNCATE_DAMAGED),
    left_out("laststmtchanges", &["laststmtchanges-2.2"], CHANGES),
    left_out(
        "mallocH",
        &["mallocH-5.*"],
        "the allocation that was to fail was one of the engine's flush between two statements, which copes",
    ),
    left_out("memdb1", &[], DESERIALIZE),
    left_out("memsubsys1", &["memsubsys1-4.*"], MEMORY),
    left_out("memsubsys2", &["memsubsys2-4.*"], MEMORY),
    left_out(
        "multiplex",
        &["multiplex-3.1.6"],
        "SQLite's log tells that a statement of the engine was compiled anew",
    ),
    left_out("nolock", &["nolock-1.*", "nolock-2.*"], COUNTS),
    left_out(
        "notify2",
        &["replica: *"],
        "connections that share a cache, of which one is told nothing of the others' commits",
    ),
    left_out("notify3", &["notify3-2.*"], OPENING_READS),
    left_out("pager1", &[], OPENING_READS),
    left_out(
        "pragma",
        &["pragma-7.2", "replica: table t1x: NOT NULL*"],
        "attaching reads the database when it is opened; and a table that holds NULL is declared NOT NULL by \
         editing the schema",
    ),
    left_out("pragma6", &[], DESERIALIZE),
    left_out("recovercorrupt2", &[], DESERIALIZE),
    left_out(
        "resetdb",
        &["resetdb-840", "resetdb-850", "resetdb-860", "replica: the definitions of t1*"],
        "attaching reads the database when it is opened; and while it is marked to be reset, the suite's image is \
         empty",
    ),
    left_out("rtreecheck", &["rtreecheck-6.1"], OPENING_READS),
    left_out("rtreefuzz001", &[], DESERIALIZE),
    left_out("session1", &["replica: *"], REPLACED),
    left_out("sessionalter", &["replica: *"], REPLACED),
    left_out("stmtvtab1", &["stmtvtab1-*"], MEMORY),
    left_out(
        "superlock",
        &["superlock-6.*"],
        "exchanges files under an open connection, which notices only if it recovers the log itself",
    ),
    left_out("tkt3838", &["replica: *"], DEFAULT),
    left_out("tkt3992", &["replica: *"], DEFAULT),
    left_out("trace", &["trace-*"], SEEN),
    left_out("trace2", &["trace2-2.*"], SEEN),
    left_out("vtab3", &["vtab3-1.2", "vtab3-1.3"], SEEN),
    left_out(
        "vtabK",
        &[],
        "has a full text table called sqlite_stat1, which ANALYZE writes to without telling it of \
         a transaction if there is any preupdate hook",
    ),
    left_out("wal", &["wal-4.5.1", "wal-24.2"], OPENING_READS),
    left_out(
        "wal2",
        &["wal2-1.12.2", "wal2-6.*", "wal2-10.1.4", "replica: table t1: (1, 1)*"],
        "attaching reads the database when it is opened; and the script writes to the shared memory by hand",
    ),
    left_out("walcrash4", &[], OPENING_READS),
    left_out("walhook", &["walhook-*"], HOOK),
    left_out("walmode", &["walmode-2.1"], OPENING_READS),
    left_out("walnoshm", &["walnoshm-3.2"], OPENING_READS),
    left_out("walvfs", &["walvfs-9.1"], OPENING_READS),
    left_out("without_rowid3", &["without_rowid3-18.2"], SEEN),
    left_out("zeroblob", &["zeroblob-1.1.2"], MEMORY),
];

/// What `cargo xtask test` runs.
#[rustfmt::skip]
pub(super) const QUICK: &[&str] = &[
    "alter3", "altertab", "attach2", "autoinc", "autovacuum2", "bind", "blob",
    "check", "cast", "conflict", "conflict2", "conflict3", "count", "createtab", "cursorhint",
    "date", "default", "delete2", "delete_db", "descidx1", "distinct", "e_delete", "e_droptrigger",
    "e_insert", "e_reindex", "e_update", "e_uri", "eqp", "expr", "fkey3", "fkey4", "fkey5", "fkey6",
    "fkey7", "fkey8", "fts3aa", "fts3ab", "fts3d", "fts4content", "fts5content", "hook2",
    "hidden", "incrblob3", "incrblob4", "incrvacuum2", "index", "insert", "insert2", "insert3",
    "insert4", "insert5", "intpkey", "istrue", "json101", "keyword1", "lastinsert", "limit", "lock",
    "lock2", "lock3", "main", "memdb", "misc1", "misc2", "misc3", "misc5", "nan", "normalize",
    "notnull", "null", "nulls1", "pragma2", "pragma3", "pragma4", "quote", "reindex", "returning1",
    "rollback", "rollback2", "rowvalue", "rowvalue9", "rtree1", "rtree5", "rtree6", "savepoint5",
    "savepoint7", "schema", "schema2", "select1", "select4", "shared", "shared3", "shared4",
    "sidedelete", "snapshot", "spellfix", "stmt", "strict1", "strict2", "subquery", "tableopts",
    "temptrigger", "tempdb", "trans3", "transitive1", "trigger1", "trigger2", "trigger3",
    "trigger4", "trigger5", "trigger6", "trigger7", "trigger8", "trigger9", "triggerB", "triggerD",
    "triggerE", "triggerG", "triggerupfrom", "update", "update2", "upfrom1", "upfrom2", "upfrom3",
    "upsert1", "upsert2", "upsert3", "upsert4", "upsert5", "utf16align", "vacuum", "vacuum2",
    "vacuum4", "vacuum-into", "view", "vtab1", "vtab2", "vtab4", "vtab5", "vtabA", "vtab_shared",
    "wal7", "wal8", "walro", "where", "without_rowid1", "without_rowid2", "without_rowid4",
    "without_rowid5", "without_rowid6", "sessionD",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_script_is_listed_once_with_a_reason() {
        for (at, entry) in LEFT_OUT.iter().enumerate() {
            assert!(LEFT_OUT[..at].iter().all(|other| other.script < entry.script));
            assert!(!entry.why.is_empty());
        }
    }

    #[test]
    fn the_quick_ones_are_not_left_out() {
        for (at, name) in QUICK.iter().enumerate() {
            assert!(!QUICK[..at].contains(name), "{name} twice");
            assert!(!LEFT_OUT.iter().any(|entry| entry.script == *name), "{name}");
        }
        assert!(!QUICK.is_empty());
    }
}
