//! What goes wrong, told apart by what to do about it.

use core::fmt;
use std::io;

use synddb_core::transport::{TransportError, TransportErrorKind};

use crate::watched::End;

/// Error of [`HyperClient`](crate::HyperClient) and [`HyperExchange`](crate::HyperExchange).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HyperError {
    /// The sequencer's address cannot be used. The address itself is left out: it may hold a
    /// password.
    InvalidUrl {
        /// What is wrong with it.
        why: String,
    },
    /// An address with TLS, and this build has none: enable the feature `tls`.
    NoTls,
    /// An address of a stream socket, and this build dials none: enable the feature `vsock`.
    NoSockets,
    /// Settings for TLS were given, and the address is without.
    NotHttps,
    /// Settings for TLS cannot be honoured.
    #[cfg(feature = "tls")]
    Tls(synddb_tls::TlsError),
    /// The runtime of an exchange could not start.
    Runtime(String),
    /// The runtime has one thread, which cannot both wait for a response and fetch it.
    CurrentThreadRuntime,
    /// There was no response.
    Failed {
        /// The address.
        url: String,
        /// What went wrong.
        kind: TransportErrorKind,
        /// What exactly, for people.
        text: String,
    },
}

/// Why there was no response, from whichever layer knows most.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) kind: TransportErrorKind,
    pub(crate) text: String,
}

impl Failed {
    pub(crate) fn new(kind: TransportErrorKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// Of a connection that is not there yet.
    pub(crate) fn connecting(error: &io::Error) -> Self {
        let kind = match io_kind(error.kind()) {
            // A name that nobody knows is an error of no particular kind.
            TransportErrorKind::Other => TransportErrorKind::Unreachable,
            kind => kind,
        };
        Self::new(kind, error.to_string())
    }

    /// Of a connection that hyper has given up, by how the stream below it ended.
    pub(crate) fn talking(error: &hyper::Error, end: Option<End>, is_new_http2: bool) -> Self {
        // hyper's own words leave out the cause.
        let mut text = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        match end {
            #[cfg(feature = "tls")]
            Some(End::Tls(failure)) => Self::new(failure.kind(), failure.to_string()),
            _ if error.is_parse() => Self::new(TransportErrorKind::NotASequencer, text),
            Some(End::Failed(kind, cause)) => Self::new(io_kind(kind), cause),
            None if is_new_http2 && !error.is_canceled() => {
                Self::new(TransportErrorKind::NotASequencer, text)
            }
            _ => Self::new(TransportErrorKind::Disconnected, text),
        }
    }

    pub(crate) fn at(self, url: &str) -> HyperError {
        let Self { kind, text } = self;
        HyperError::Failed { url: url.to_owned(), kind, text }
    }
}

impl fmt::Display for HyperError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidUrl { why } => write!(
                f,
                "the sequencer's address cannot be used: {why}; write http://host:port, \
                 https://host:port, http+unix:/path or http+vsock://CID:PORT"
            ),
            Self::NoTls => f.write_str(
                "the sequencer's address is https, and this build has no TLS: enable the feature \
                 `tls` of synddb-transport-hyper",
            ),
            Self::NoSockets => f.write_str(
                "the sequencer's address is one of a vsock or Unix socket, which this build does \
                 not dial: enable the feature `vsock` of synddb-transport-hyper",
            ),
            Self::NotHttps => f.write_str(
                "settings for TLS are given, and the sequencer's address is http: write https://, \
                 or leave them out",
            ),
            #[cfg(feature = "tls")]
            Self::Tls(error) => error.fmt(f),
            Self::Runtime(why) => write!(f, "the runtime for HTTP could not start: {why}"),
            Self::CurrentThreadRuntime => f.write_str(
                "a runtime of one thread cannot serve a thread that blocks: give a multi-thread \
                 one, or none",
            ),
            Self::Failed { url, kind, text } => {
                let what = match kind {
                    TransportErrorKind::Unreachable => "cannot be reached",
                    TransportErrorKind::TimedOut => "did not answer in time",
                    TransportErrorKind::Disconnected => "ended the connection",
                    TransportErrorKind::NotASequencer if url.starts_with("https") => {
                        "does not speak HTTP over TLS"
                    }
                    TransportErrorKind::NotASequencer => "does not speak HTTP",
                    TransportErrorKind::Untrusted => "is not trusted",
                    TransportErrorKind::Unauthorized => "grants no access",
                    TransportErrorKind::Misconfigured => "cannot be used as configured",
                    _ => "failed",
                };
                write!(f, "{url} {what}: {text}")
            }
        }
    }
}

impl core::error::Error for HyperError {}

impl TransportError for HyperError {
    fn kind(&self) -> TransportErrorKind {
        match self {
            Self::Failed { kind, .. } => *kind,
            _ => TransportErrorKind::Misconfigured,
        }
    }
}

fn io_kind(kind: io::ErrorKind) -> TransportErrorKind {
    match kind {
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown
        | io::ErrorKind::AddrNotAvailable
        | io::ErrorKind::NotFound => TransportErrorKind::Unreachable,
        io::ErrorKind::TimedOut => TransportErrorKind::TimedOut,
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::NotConnected
        | io::ErrorKind::UnexpectedEof => TransportErrorKind::Disconnected,
        _ => TransportErrorKind::Other,
    }
}
