//! Wishes to stop, from outside.

use std::{
    io,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

/// Set by Ctrl-C or a request to terminate, and where asked for once nobody reads the output any
/// more. A second such signal ends the process at once.
#[derive(Debug, Clone)]
pub(crate) struct Stop(Arc<(Mutex<bool>, Condvar)>);

impl Stop {
    /// Listens from now on, in a thread of its own.
    pub(crate) fn on_signals(or_closed_output: bool) -> io::Result<Self> {
        let stop = Self(Arc::default());
        let setter = stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("synddb-signals".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = signalled() => {}
                    () = closed_output(), if or_closed_output => {}
                }
                setter.set();
                signalled().await;
                std::process::exit(1);
            });
        })?;
        Ok(stop)
    }

    pub(crate) fn is_set(&self) -> bool {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits that long, or until it is set. Whether it is.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        let (set, changed) = &*self.0;
        let set = set.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = changed.wait_timeout_while(set, timeout, |set| !*set);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn set(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }
}

/// Returns at a signal; never where they cannot be listened to, and end the process themselves.
async fn signalled() {
    if signal().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Returns at Ctrl-C or a request to terminate.
#[cfg(unix)]
pub(crate) async fn signal() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
    }
}

/// Returns at Ctrl-C.
#[cfg(not(unix))]
pub(crate) async fn signal() -> io::Result<()> {
    tokio::signal::ctrl_c().await
}

/// Returns once nobody reads standard output any more, where it is a pipe, a socket or a terminal.
#[cfg(unix)]
async fn closed_output() {
    use std::os::fd::AsFd;
    use tokio::{io::Interest, net::unix::pipe::Sender};
    // Only looked at: as it is shared, it must go on to block those who write to it.
    let output = io::stdout().as_fd().try_clone_to_owned();
    if let Ok(output) = output.and_then(Sender::from_owned_fd_unchecked)
        && output.ready(Interest::ERROR).await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// Seen at the next line only.
#[cfg(not(unix))]
async fn closed_output() {
    std::future::pending().await
}
