//! What goes wrong, told apart by what to do about it.

use core::fmt;

use synddb_core::transport::{TransportError, TransportErrorKind};

/// Error of [`UreqExchange`](crate::UreqExchange).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum UreqError {
    /// The sequencer's address cannot be used. The address itself is left out: it may hold a
    /// password.
    InvalidUrl {
        /// What is wrong with it.
        why: &'static str,
    },
    /// An https address, and this build has no TLS: enable the feature `tls`.
    NoTls,
    /// Settings for TLS were given, and the address is http.
    NotHttps,
    /// Settings for TLS cannot be honoured.
    #[cfg(feature = "tls")]
    Tls(synddb_tls::TlsError),
    /// There was no response.
    Failed {
        /// The address.
        url: String,
        /// What went wrong.
        kind: TransportErrorKind,
        /// What ureq says.
        text: String,
    },
}

impl UreqError {
    pub(crate) fn from_ureq(url: &str, error: ureq::Error) -> Self {
        #[cfg(feature = "tls")]
        if let ureq::Error::Io(io) = &error
            && let Some(failure) = synddb_tls::failure_of(io)
        {
            let (url, kind) = (url.to_owned(), failure.kind());
            return Self::Failed { url, kind, text: failure.to_string() };
        }
        Self::Failed { url: url.to_owned(), kind: kind_of(&error), text: error.to_string() }
    }
}

impl fmt::Display for UreqError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidUrl { why } => write!(
                f,
                "the sequencer's address cannot be used: {why}; write http://host:port or \
                 https://host:port"
            ),
            Self::NoTls => f.write_str(
                "the sequencer's address is https, and this build has no TLS: enable the feature \
                 `tls` of synddb-transport-ureq",
            ),
            Self::NotHttps => f.write_str(
                "settings for TLS are given, and the sequencer's address is http: write https://, \
                 or leave them out",
            ),
            #[cfg(feature = "tls")]
            Self::Tls(error) => error.fmt(f),
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

impl core::error::Error for UreqError {}

impl TransportError for UreqError {
    fn kind(&self) -> TransportErrorKind {
        match self {
            Self::InvalidUrl { .. } | Self::NoTls | Self::NotHttps => {
                TransportErrorKind::Misconfigured
            }
            #[cfg(feature = "tls")]
            Self::Tls(_) => TransportErrorKind::Misconfigured,
            Self::Failed { kind, .. } => *kind,
        }
    }
}

fn kind_of(error: &ureq::Error) -> TransportErrorKind {
    match error {
        ureq::Error::Io(error) => error.kind().into(),
        ureq::Error::Timeout(_) => TransportErrorKind::TimedOut,
        ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::ConnectProxyFailed(_) => TransportErrorKind::Unreachable,
        ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..) => {
            TransportErrorKind::NotASequencer
        }
        ureq::Error::BadUri(_)
        | ureq::Error::Http(_)
        | ureq::Error::InvalidProxyUrl
        | ureq::Error::TlsRequired => TransportErrorKind::Misconfigured,
        _ => TransportErrorKind::Other,
    }
}
