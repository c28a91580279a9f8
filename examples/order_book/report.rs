//! Lines of JSON on standard output: how the stream stands.

use std::{
    io::{self, Write},
    sync::mpsc::{self, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::json;
use synddb_client::{Handle, LinkState, Stats};

/// Prints until it is dropped.
pub(crate) struct Reporter {
    // `None` only while it is dropped.
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // Its panic was reported where it happened.
            let _ = thread.join();
        }
    }
}

/// Prints the figures of `handle` every `interval`, from a thread of its own.
pub(crate) fn every(interval: Duration, handle: Handle) -> Reporter {
    let (stop, stopped) = mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
            print(&handle.stats());
        }
    });
    Reporter { stop: Some(stop), thread: Some(thread) }
}

/// Prints one line.
pub(crate) fn print(stats: &Stats) {
    let lag = stats.oldest_unacknowledged.unwrap_or_default();
    let link = match &stats.link {
        LinkState::Connecting => "connecting",
        LinkState::Up => "up",
        LinkState::Failing { .. } => "down",
        LinkState::Stopped(_) | LinkState::NotDriven => "stopped",
    };
    let line = json!({
        "commits": stats.last_commit,
        "unacknowledged": stats.unacknowledged_commits,
        "lag_ms": lag.as_millis() as u64,
        "link": link,
        "resyncs": stats.resyncs.iter().map(|(_, count)| count).sum::<u64>(),
    });
    // Whoever read it may be gone; the book goes on.
    let _ = writeln!(io::stdout(), "{line}");
}
