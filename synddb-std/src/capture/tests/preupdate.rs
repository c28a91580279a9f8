//! The preupdate engine.

use super::*;

const SCHEMA: &str = "CREATE TABLE item(id INTEGER PRIMARY KEY, v)";

fn app(mode: Mode, schema: &str) -> App {
    let mut app = App::by(CaptureEngine::Preupdate, mode);
    app.run(schema);
    app.attach();
    app
}

#[test]
fn every_commit_is_handed_over_before_its_statement_returns_in_every_mode() {
    for mode in [Mode::Wal, Mode::Delete, Mode::Memory] {
        let app = app(mode, SCHEMA);
        let replica = Replica::of(&app.conn);
        for sql in [
            "INSERT INTO item VALUES (1, 'a'), (2, 2.5), (3, x'00')",
            "UPDATE item SET v = NULL WHERE id = 2",
            "BEGIN; DELETE FROM item WHERE id = 1; UPDATE item SET id = 7 WHERE id = 3; COMMIT",
            "DELETE FROM item",
        ] {
            app.run(sql);
            let commits = app.commits();
            assert_eq!((commits.len(), commits[0].commits), (1, 1), "{mode:?}, {sql}");
            replica.apply(&commits[0]);
            replica.assert_equals(&app.conn, sql);
        }
    }
}
