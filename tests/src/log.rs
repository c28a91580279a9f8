//! What a sequencer in this process logs.

use std::{
    io,
    sync::{Mutex, Once, PoisonError},
    time::{Duration, Instant},
};

static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Keep;

impl io::Write for Keep {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps what is logged from now on.
pub fn keep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing_subscriber::filter::LevelFilter::INFO)
            .with_writer(|| Keep)
            .init();
    });
}

/// All of it.
pub fn all() -> String {
    String::from_utf8_lossy(&LOG.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
}

/// Waits for a line with all of these parts.
pub fn wait_for(parts: &[&str]) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !all().lines().any(|line| parts.iter().all(|part| line.contains(part))) {
        assert!(Instant::now() < deadline, "no {parts:?} in:\n{}", all());
        std::thread::sleep(Duration::from_millis(5));
    }
}
