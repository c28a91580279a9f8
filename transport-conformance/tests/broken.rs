//! Transports that break a promise each, and the check that notices.
#![allow(clippy::unwrap_used)] // helpers of tests may panic, as tests may

use std::{
    collections::VecDeque, net::TcpListener, os::unix::net::UnixListener, thread, time::Duration,
};

use synddb_core::{
    http::{HttpExchange, HttpFrames, HttpRequest, HttpResponse},
    transport::{Transport, TransportError, TransportErrorKind},
};
use synddb_transport_conformance::{LIMIT, Protocol, Report, run};
use synddb_transport_ureq::{UreqConfig, UreqError, UreqExchange};
use synddb_transport_vsock::{Address, Timeouts, VsockTransport, transport_with};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Splits,
    Glues,
    Reorders,
    IgnoresTimeouts,
    NeverWaits,
    ZeroIsNever,
    CutsLargeFrames,
    FlipsABit,
    SendsTwice,
    LosesAnswers,
    KeepsAnswers,
    AllErrorsAreOthers,
    SwallowsErrors,
    ConnectsOnce,
    PanicsAtClose,
    WaitsForDeafPeers,
    PassesNonsense,
}

/// The fault, and the check that is there for it.
const FAULTS: [(Fault, &str); 17] = [
    (Fault::Splits, "answers of every size arrive whole"),
    (Fault::Glues, "frames in flight are answered in order"),
    (Fault::Reorders, "frames in flight are answered in order"),
    (Fault::IgnoresTimeouts, "a time-out is kept where nothing comes"),
    (Fault::NeverWaits, "a time-out is kept where nothing comes"),
    (Fault::ZeroIsNever, "a time-out of zero only takes what is there"),
    (Fault::CutsLargeFrames, "frames of every size arrive whole"),
    (Fault::FlipsABit, "answers of every size arrive whole"),
    (Fault::SendsTwice, "nothing of a connection outlives it"),
    (Fault::LosesAnswers, "frames in flight are answered in order"),
    (Fault::KeepsAnswers, "nothing of a connection outlives it"),
    (Fault::AllErrorsAreOthers, "a peer that hangs up is noticed"),
    (Fault::SwallowsErrors, "a frame that is cut short is never given"),
    (Fault::ConnectsOnce, "a peer that hangs up is noticed"),
    (Fault::PanicsAtClose, "close() twice, connect() twice"),
    (Fault::WaitsForDeafPeers, "a deaf peer holds nobody"),
    (Fault::PassesNonsense, "garbage is no sequencer"),
];

struct Broken {
    inner: VsockTransport,
    fault: Fault,
    /// What came and was not given.
    kept: VecDeque<Vec<u8>>,
    count: usize,
    connected: bool,
}

#[derive(Debug)]
struct Failed(TransportErrorKind);

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl TransportError for Failed {
    fn kind(&self) -> TransportErrorKind {
        self.0
    }
}

impl Broken {
    fn failed(&self, error: &impl TransportError) -> Failed {
        match self.fault {
            Fault::AllErrorsAreOthers => Failed(TransportErrorKind::Other),
            _ => Failed(error.kind()),
        }
    }

    fn give(&mut self, reply: &mut [u8]) -> Option<usize> {
        let frame = self.kept.pop_front()?;
        reply[..frame.len()].copy_from_slice(&frame);
        Some(frame.len())
    }
}

impl Transport for Broken {
    type Error = Failed;

    fn connect(&mut self) -> Result<(), Failed> {
        if self.fault == Fault::ConnectsOnce && self.connected {
            return Ok(());
        }
        if self.fault != Fault::KeepsAnswers {
            self.kept.clear();
        }
        self.connected = true;
        self.inner.connect().map_err(|error| self.failed(&error))
    }

    fn close(&mut self) {
        if self.fault == Fault::PanicsAtClose {
            assert!(self.connected, "nothing to close");
        }
        self.connected = self.fault == Fault::ConnectsOnce;
        if self.fault != Fault::KeepsAnswers {
            self.kept.clear();
        }
        self.inner.close();
    }

    fn send(&mut self, frame: &[u8]) -> Result<(), Failed> {
        let frame = match self.fault {
            Fault::CutsLargeFrames => &frame[..frame.len().min(1 << 16)],
            _ => frame,
        };
        self.inner.send(frame).map_err(|error| self.failed(&error))?;
        if self.fault == Fault::SendsTwice {
            return self.inner.send(frame).map_err(|error| self.failed(&error));
        }
        Ok(())
    }

    fn recv(&mut self, reply: &mut [u8], timeout: Duration) -> Result<Option<usize>, Failed> {
        let timeout = match self.fault {
            Fault::IgnoresTimeouts => Duration::from_secs(3),
            Fault::NeverWaits => Duration::ZERO,
            Fault::ZeroIsNever if timeout.is_zero() => return Ok(None),
            _ => timeout,
        };
        if self.fault == Fault::Splits
            && let Some(len) = self.give(reply)
        {
            return Ok(Some(len));
        }
        let len = match self.inner.recv(reply, timeout) {
            Ok(Some(len)) => len,
            Ok(None) => return Ok(self.give(reply)),
            Err(_) if self.fault == Fault::SwallowsErrors => {
                thread::sleep(timeout);
                return Ok(None);
            }
            Err(error)
                if self.fault == Fault::PassesNonsense
                    && error.kind() == TransportErrorKind::NotASequencer =>
            {
                reply[..4].copy_from_slice(b"SSH-");
                return Ok(Some(4));
            }
            Err(error) => return Err(self.failed(&error)),
        };
        self.count += 1;
        match self.fault {
            Fault::Splits => {
                self.kept.push_back(reply[len / 2..len].to_vec());
                return Ok(Some(len / 2));
            }
            Fault::FlipsABit if len > 4000 => reply[2000] ^= 1,
            Fault::LosesAnswers if self.count.is_multiple_of(10) => return Ok(None),
            // The answer to Hello is given as it comes, so that there is something to see.
            Fault::Glues | Fault::Reorders | Fault::KeepsAnswers if self.count > 1 => {
                self.kept.push_back(reply[..len].to_vec());
                while let Ok(Some(len)) = self.inner.recv(reply, Duration::from_millis(5)) {
                    self.kept.push_back(reply[..len].to_vec());
                }
                if self.fault == Fault::Reorders {
                    self.kept.make_contiguous().reverse();
                }
                if self.fault == Fault::Glues {
                    let all = self.kept.drain(..).flatten().collect();
                    self.kept.push_back(all);
                }
                return Ok(self.give(reply));
            }
            _ => {}
        }
        Ok(Some(len))
    }

    fn max_in_flight(&self) -> usize {
        self.inner.max_in_flight()
    }
}

fn over_a_socket(fault: Fault) -> Report {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let write = if fault == Fault::WaitsForDeafPeers { LIMIT * 60 } else { LIMIT };
    run(
        Protocol::Stream,
        move || listener.accept().map(|(socket, _)| socket),
        || {
            let address = Address::Unix { path: path.clone() };
            let inner = transport_with(address, Timeouts { connect: LIMIT, write });
            Broken { inner, fault, kept: VecDeque::new(), count: 0, connected: false }
        },
    )
}

#[test]
fn a_transport_that_breaks_no_promise_passes() {
    let report = over_a_socket(Fault::None);
    assert!(report.failures().next().is_none(), "{report}");
    assert!(report.outcomes().count() > 15);
}

#[test]
fn every_fault_is_noticed_by_the_check_that_is_there_for_it() {
    let running =
        FAULTS.map(|(fault, check)| (fault, check, thread::spawn(move || over_a_socket(fault))));
    for (fault, check, report) in running {
        let report = report.join().unwrap();
        assert!(report.failures().any(|(name, _)| name == check), "{fault:?}: {report}");
    }
}

/// The same for HTTP clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClientFault {
    None,
    NoToken,
    NoContentType,
    StatusIsLost,
    RetryAfterIsLost,
    CutBodyIsFine,
    Spins,
}

const CLIENT_FAULTS: [(ClientFault, &str); 6] = [
    (ClientFault::NoToken, "requests say what they are"),
    (ClientFault::NoContentType, "requests say what they are"),
    (ClientFault::StatusIsLost, "statuses are told apart"),
    (ClientFault::RetryAfterIsLost, "statuses are told apart"),
    (ClientFault::CutBodyIsFine, "a body that is cut short is a lost connection"),
    (ClientFault::Spins, "a time-out is kept where nothing comes"),
];

struct BrokenClient(UreqExchange, ClientFault);

impl HttpExchange for BrokenClient {
    type Error = UreqError;

    fn post(
        &mut self,
        mut request: HttpRequest<'_>,
        body: &mut Vec<u8>,
        limit: usize,
    ) -> Result<HttpResponse, UreqError> {
        match self.1 {
            ClientFault::NoToken => request.token = "",
            ClientFault::NoContentType => request.content_type = "application/octet-stream",
            _ => {}
        }
        let mut response = match self.0.post(request, body, limit) {
            Err(error)
                if self.1 == ClientFault::CutBodyIsFine
                    && error.kind() == TransportErrorKind::Disconnected =>
            {
                body.clear();
                return Ok(HttpResponse { status: 200, is_frames: true, retry_after: None });
            }
            response => response?,
        };
        match self.1 {
            ClientFault::StatusIsLost => response.status = 200,
            ClientFault::RetryAfterIsLost => response.retry_after = None,
            _ => {}
        }
        Ok(response)
    }

    fn idle(&mut self, timeout: Duration) {
        if self.1 != ClientFault::Spins {
            self.0.idle(timeout);
        }
    }
}

fn over_http(fault: ClientFault) -> Report {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    run(
        Protocol::Http,
        move || listener.accept().map(|(socket, _)| socket),
        || {
            let limits = UreqConfig { connect_timeout: LIMIT, timeout: LIMIT };
            HttpFrames::new(BrokenClient(UreqExchange::new(&url, limits).unwrap(), fault))
        },
    )
}

#[test]
fn an_http_client_that_breaks_no_promise_passes() {
    let report = over_http(ClientFault::None);
    assert!(report.failures().next().is_none(), "{report}");
    assert!(report.outcomes().count() > 18);
}

#[test]
fn every_fault_of_an_http_client_is_noticed() {
    let running =
        CLIENT_FAULTS.map(|(fault, check)| (fault, check, thread::spawn(move || over_http(fault))));
    for (fault, check, report) in running {
        let report = report.join().unwrap();
        assert!(report.failures().any(|(name, _)| name == check), "{fault:?}: {report}");
    }
}
