//! SIGINT, SIGTERM and SIGHUP end the demo as an error does, so that it tidies up.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use tokio::runtime::Builder;

use crate::Result;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From here on a signal ends nothing by itself: whoever waits has to [`check`].
pub(crate) fn watch() -> Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let signal = runtime.block_on(async { signal() })?;
    thread::spawn(move || {
        runtime.block_on(signal);
        INTERRUPTED.store(true, Ordering::Relaxed);
    });
    Ok(())
}

/// Whether a signal came.
pub(crate) fn came() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// An error once a signal came.
pub(crate) fn check() -> Result<()> {
    if came() { Err("interrupted".into()) } else { Ok(()) }
}

/// Its handlers are in place when this returns; the future waits for them.
#[cfg(unix)]
fn signal() -> Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

#[cfg(not(unix))]
fn signal() -> Result<impl Future<Output = ()>> {
    Ok(async {
        if tokio::signal::ctrl_c().await.is_err() {
            // Without a handler the system ends the process itself.
            std::future::pending::<()>().await;
        }
    })
}
