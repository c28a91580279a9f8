//! What a synddb transport has to do, as tests that any [`Transport`] can run.
//!
//! ```text
//!  check ── make() ──▶ the transport under test ══ socket, pipe, channel ══▶ a peer, by accept()
//!    │                                                                        │
//!    └──────────── has the peer answer, dawdle, hang up, talk nonsense ───────┘
//! ```
//!
//! The suite has both ends: it makes transports, and it is the sequencer that they reach. A transport
//! needs a test of a few lines:
//!
//! ```
//! # #[cfg(unix)] {
//! use std::os::unix::net::UnixListener;
//! use synddb_transport_conformance::{LIMIT, Protocol, check};
//! use synddb_transport_vsock::{Address, Timeouts, transport_with};
//!
//! let dir = tempfile::tempdir().unwrap();
//! let path = dir.path().join("socket");
//! let listener = UnixListener::bind(&path).unwrap();
//! check(
//!     Protocol::Stream,
//!     move || listener.accept().map(|(socket, _)| socket),
//!     || {
//!         let address = Address::Unix { path: path.clone() };
//!         transport_with(address, Timeouts { connect: LIMIT, write: LIMIT })
//!     },
//! );
//! # }
//! ```
//!
//! `accept` gives the peer's end of the next connection as a stream of bytes; it may do a TLS handshake
//! first, or whatever else belongs to the way there. Where whole messages travel and no bytes,
//! [`Messages`] is that stream.
//!
//! # What it does not do
//!
//! It asks for nothing that the [`Transport`] trait does not promise: not for speed, and not for
//! anything that goes on before a connection is there, such as certificates.
#![forbid(unsafe_code)]

mod checks;
mod messages;
mod peer;
mod talk;

use std::{
    any::Any,
    fmt,
    io::{self, Read, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc,
    thread,
    time::Duration,
};

pub use messages::Messages;
use synddb_core::transport::Transport;

use crate::{peer::Peer, talk::Talk};

/// The transports that `make` gives have to give up within this time by themselves what a silent or
/// deaf peer holds up: set their limits to it.
pub const LIMIT: Duration = Duration::from_secs(1);

/// How much later than promised is still in time, on a machine that does other things too.
const SLACK: Duration = Duration::from_secs(2);
/// When a check hangs.
const HANGS: Duration = Duration::from_secs(30);

/// How frames travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Back to back, both ways.
    Stream,
    /// In the bodies of requests and responses: what [`HttpFrames`](synddb_core::http::HttpFrames)
    /// makes of an HTTP client.
    Http,
}

/// What every check found.
#[derive(Debug, Clone)]
pub struct Report {
    outcomes: Vec<(&'static str, Result<(), String>)>,
}

impl Report {
    /// The checks that ran, by name, and what each found wrong.
    pub fn outcomes(&self) -> impl Iterator<Item = (&'static str, Option<&str>)> {
        self.outcomes.iter().map(|(name, outcome)| (*name, outcome.as_ref().err().map(|s| &**s)))
    }

    /// The checks that failed, by name, and what each found wrong.
    pub fn failures(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.outcomes().filter_map(|(name, wrong)| Some((name, wrong?)))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failed = self.failures().count();
        write!(f, "{} of {} checks failed", failed, self.outcomes.len())?;
        self.failures().try_for_each(|(name, wrong)| write!(f, "\n  {name}: {wrong}"))
    }
}

/// Runs every check, and panics with what is wrong if anything is.
///
/// `accept` waits for the next connection and gives the peer's end of it; its errors are ignored where
/// a later call may succeed, and end the peer where they are
/// [`BrokenPipe`](io::ErrorKind::BrokenPipe). `make` gives a transport that reaches it and is not
/// connected yet.
///
/// # Panics
/// The transport breaks a promise.
pub fn check<W, T>(
    protocol: Protocol,
    accept: impl FnMut() -> io::Result<W> + Send + 'static,
    make: impl FnMut() -> T,
) where
    W: Read + Write + Send + 'static,
    T: Transport + Send + 'static,
{
    let report = run(protocol, accept, make);
    assert!(report.failures().next().is_none(), "{report}");
}

/// Runs every check: as [`check`], for those who want to see what was found.
pub fn run<W, T>(
    protocol: Protocol,
    accept: impl FnMut() -> io::Result<W> + Send + 'static,
    mut make: impl FnMut() -> T,
) -> Report
where
    W: Read + Write + Send + 'static,
    T: Transport + Send + 'static,
{
    let peer = Peer::start(protocol, accept);
    let mut outcomes = Vec::new();
    for (name, only_over, check) in checks::all::<T>() {
        if only_over.is_some_and(|only_over| only_over != protocol) {
            continue;
        }
        peer.begin();
        let (transport, peer) = (make(), peer.clone());
        let (done, outcome) = mpsc::channel();
        // A transport that never comes back must not take the suite along.
        let _detached = thread::spawn(move || {
            let mut talk = Talk::new(transport, protocol, peer);
            let found = catch_unwind(AssertUnwindSafe(|| check(&mut talk)));
            let found = found.unwrap_or_else(|panic| Err(format!("panicked: {}", words(&*panic))));
            // Whoever waited may have given up.
            let _ = done.send(found.map_err(|wrong| wrong + &talk.peer().complaints()));
        });
        let outcome = outcome.recv_timeout(HANGS);
        outcomes.push((name, outcome.unwrap_or_else(|_| Err(format!("hangs after {HANGS:?}")))));
    }
    peer.begin();
    Report { outcomes }
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without words")
}
