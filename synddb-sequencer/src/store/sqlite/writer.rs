//! One thread writes; whatever waits goes into one transaction, and one sync pays for all of it.

use std::{
    sync::mpsc::{self, Receiver, Sender, SyncSender},
    thread::JoinHandle,
};

use rusqlite::{Connection, ErrorCode};

use crate::store::StoreError;

/// Most requests in one transaction.
const MAX_GROUP: usize = 256;

type Work = Box<dyn FnOnce(&Connection) -> Result<(), StoreError> + Send>;

struct Request {
    work: Work,
    answer: SyncSender<Result<(), StoreError>>,
}

#[derive(Debug)]
pub(super) struct Writer {
    /// `None` only while it is dropped.
    requests: Option<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(connection: Connection) -> Result<Self, StoreError> {
        let (requests, inbox) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("synddb-log-writer".into())
            .spawn(move || write_groups(&connection, &inbox))
            .map_err(|error| StoreError::Io {
                path: "thread of the log's writer".into(),
                message: error.to_string(),
            })?;
        Ok(Self { requests: Some(requests), thread: Some(thread) })
    }

    /// Runs `work` in a transaction and returns once it is durable. Where `work` fails, nothing
    /// of it is stored, and what others wanted is.
    pub(super) fn run(
        &self,
        work: impl FnOnce(&Connection) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), StoreError> {
        let (answer, outcome) = mpsc::sync_channel(1);
        let requests = self.requests.as_ref().ok_or(StoreError::Failed)?;
        requests.send(Request { work: Box::new(work), answer }).map_err(|_| StoreError::Failed)?;
        outcome.recv().map_err(|_| StoreError::Failed)?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // Its panic was reported where it happened.
            let _ = thread.join();
        }
    }
}

fn write_groups(connection: &Connection, inbox: &Receiver<Request>) {
    let mut failed = false;
    while let Ok(first) = inbox.recv() {
        let mut group = vec![first];
        group.extend(inbox.try_iter().take(MAX_GROUP - 1));
        let (works, answers): (Vec<_>, Vec<_>) =
            group.into_iter().map(|request| (request.work, request.answer)).unzip();
        let outcomes = if failed {
            Err(StoreError::Failed)
        } else {
            write_group(connection, works, &mut failed)
        };
        for (at, answer) in answers.iter().enumerate() {
            let outcome = match &outcomes {
                Ok(outcomes) => outcomes[at].clone(),
                Err(error) => Err(error.clone()),
            };
            // Whoever asked may have gone; what it wanted is stored all the same.
            let _ = answer.send(outcome);
        }
    }
}

/// `Ok`: the group is durable but for those that failed by themselves. `Err`: nothing is.
fn write_group(
    connection: &Connection,
    works: Vec<Work>,
    failed: &mut bool,
) -> Result<Vec<Result<(), StoreError>>, StoreError> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let mut outcomes = Vec::with_capacity(works.len());
    for work in works {
        let outcome = in_savepoint(connection, work);
        if connection.is_autocommit() {
            // SQLite rolled the whole transaction back: a full disk, an I/O error.
            return Err(outcome.err().unwrap_or(StoreError::Failed));
        }
        outcomes.push(outcome);
    }
    kill_point!("store");
    if let Err(error) = connection.execute_batch("COMMIT") {
        tracing::error!(%error, "the log could not be synced");
        // After a failed sync nobody knows what the disk holds: trying again could succeed
        // without storing. A full disk is another matter.
        *failed = error.sqlite_error_code() != Some(ErrorCode::DiskFull);
        if !connection.is_autocommit()
            && let Err(error) = connection.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "the log's transaction could not be rolled back");
            *failed = true;
        }
        return Err(error.into());
    }
    Ok(outcomes)
}

fn in_savepoint(connection: &Connection, work: Work) -> Result<(), StoreError> {
    connection.prepare_cached("SAVEPOINT request")?.execute([])?;
    let outcome = work(connection);
    if outcome.is_err() && !connection.is_autocommit() {
        connection.prepare_cached("ROLLBACK TO request")?.execute([])?;
    }
    if !connection.is_autocommit() {
        connection.prepare_cached("RELEASE request")?.execute([])?;
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_request_takes_nobody_with_it() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE t(x INTEGER PRIMARY KEY)").unwrap();
        let insert = |x: i64, fail: bool| -> Work {
            Box::new(move |db| {
                db.execute("INSERT INTO t VALUES (?1)", [x])?;
                if fail { Err(StoreError::Conflict) } else { Ok(()) }
            })
        };
        let works = vec![insert(1, false), insert(2, true), insert(1, false), insert(3, false)];
        let outcomes = write_group(&connection, works, &mut false).unwrap();
        assert_eq!(outcomes[0], Ok(()));
        assert_eq!(outcomes[1], Err(StoreError::Conflict));
        assert!(matches!(outcomes[2], Err(StoreError::Sqlite(_))), "{:?}", outcomes[2]);
        let sum: i64 = connection.query_row("SELECT sum(x) FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(sum, 4);
    }
}
