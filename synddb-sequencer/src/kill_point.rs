//! Places at which a test has this process killed. Compiled only with the feature `kill-points`, which
//! nothing but the crash tests turns on; else they are no code at all.
//!
//! `SYNDDB_KILL_POINT=NAME` chooses the place, `SYNDDB_KILL_AFTER=N` how often it is passed before.

use std::{
    env, process,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

/// Ends the process with signal 9 where `name` was chosen.
pub(crate) fn reached(name: &str) {
    static CHOSEN: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let chosen = CHOSEN.get_or_init(|| {
        let after = env::var("SYNDDB_KILL_AFTER").ok().and_then(|after| after.parse().ok());
        Some((env::var("SYNDDB_KILL_POINT").ok()?, after.unwrap_or(0)))
    });
    let Some((point, after)) = chosen else { return };
    if point == name && PASSED.fetch_add(1, Ordering::Relaxed) == *after {
        // Not by `abort`, which a core dump may delay. This thread goes no further.
        let killed =
            process::Command::new("kill").args(["-9", &process::id().to_string()]).status();
        tracing::error!(?killed, "still alive");
        loop {
            thread::park();
        }
    }
}
