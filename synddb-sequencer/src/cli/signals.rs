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
        // Here and not in the thread: who gets a `Stop` is not killed by a signal any more.
        let mut signals = runtime.block_on(async { Signals::listen() })?;
        std::thread::Builder::new().name("synddb-signals".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = signals.stop() => {}
                    () = closed_output(), if or_closed_output => {}
                }
                setter.set();
                signals.stop().await;
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

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// To stop.
    Stop,
    /// To read files again: SIGHUP.
    #[cfg_attr(windows, expect(dead_code, reason = "there is no SIGHUP"))]
    Reload,
}

/// Ctrl-C, requests to terminate and SIGHUP, which do not end the process while this lives.
pub(crate) struct Signals {
    #[cfg(unix)]
    hangup: Option<tokio::signal::unix::Signal>,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(windows)]
    interrupt: tokio::signal::windows::CtrlC,
}

#[cfg(unix)]
impl Signals {
    /// Needs a runtime around it. SIGHUP ends the process as ever.
    pub(crate) fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            hangup: None,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// And SIGHUP, from now on.
    pub(crate) fn with_reload(mut self) -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        self.hangup = Some(signal(SignalKind::hangup())?);
        Ok(self)
    }

    /// The next signal.
    pub(crate) async fn next(&mut self) -> Signal {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Stop,
            _ = self.terminate.recv() => Signal::Stop,
            _ = hangup => Signal::Reload,
        }
    }
}

impl Signals {
    /// Returns at a wish to stop.
    pub(crate) async fn stop(&mut self) {
        while self.next().await != Signal::Stop {}
    }
}

#[cfg(windows)]
impl Signals {
    /// Needs a runtime around it.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self { interrupt: tokio::signal::windows::ctrl_c()? })
    }

    pub(crate) fn with_reload(self) -> io::Result<Self> {
        Ok(self)
    }

    /// The next signal.
    pub(crate) async fn next(&mut self) -> Signal {
        let _ = self.interrupt.recv().await;
        Signal::Stop
    }
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
