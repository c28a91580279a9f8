use std::{fmt, io};

use rustls::{AlertDescription, CertificateError, Error, pki_types::UnixTime};
use synddb_core::transport::{TransportError, TransportErrorKind};

/// What it means that a TLS connection failed, for whoever has to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// The other side is not who it should be: its certificate or its key.
    Untrusted(String),
    /// The other side does not take this side for who it should be, or wants a certificate.
    Refused(String),
    /// What came is not TLS: the other side speaks in the clear.
    NotTls,
    /// The other side ended the connection in the middle of the handshake.
    HungUp,
    /// The handshake was not done in time.
    Slow,
    /// The files of this side cannot be used now.
    Misconfigured(String),
    /// Anything else.
    Other(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untrusted(why) => write!(f, "the other side is not trusted: {why}"),
            Self::Refused(why) => write!(f, "the other side refuses this one: {why}"),
            Self::NotTls => f.write_str("what answers does not speak TLS"),
            Self::HungUp => f.write_str(
                "the other side hung up in the middle of the TLS handshake; does it speak TLS there?",
            ),
            Self::Slow => f.write_str("the TLS handshake was not done in time"),
            Self::Misconfigured(why) => write!(f, "TLS cannot be used as configured: {why}"),
            Self::Other(why) => write!(f, "TLS failed: {why}"),
        }
    }
}

impl std::error::Error for Failure {}

impl TransportError for Failure {
    fn kind(&self) -> TransportErrorKind {
        match self {
            Self::Untrusted(_) => TransportErrorKind::Untrusted,
            Self::Refused(_) => TransportErrorKind::Unauthorized,
            Self::NotTls => TransportErrorKind::NotASequencer,
            Self::HungUp => TransportErrorKind::Disconnected,
            Self::Slow => TransportErrorKind::TimedOut,
            Self::Misconfigured(_) => TransportErrorKind::Misconfigured,
            Self::Other(_) => TransportErrorKind::Other,
        }
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        let kind = match &failure {
            Failure::Untrusted(_) | Failure::NotTls => io::ErrorKind::InvalidData,
            Failure::Refused(_) => io::ErrorKind::PermissionDenied,
            Failure::Misconfigured(_) => io::ErrorKind::InvalidInput,
            Failure::HungUp => io::ErrorKind::UnexpectedEof,
            Failure::Slow => io::ErrorKind::TimedOut,
            Failure::Other(_) => io::ErrorKind::Other,
        };
        Self::new(kind, failure)
    }
}

/// What a failed read, write or handshake means, where TLS is why it failed.
pub fn failure_of(error: &io::Error) -> Option<Failure> {
    let mut inner = error.get_ref()? as &(dyn std::error::Error + 'static);
    loop {
        if let Some(failure) = inner.downcast_ref::<Failure>() {
            return Some(failure.clone());
        }
        if let Some(error) = inner.downcast_ref::<Error>() {
            return Some(explain(error));
        }
        inner = match inner.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => wrapped,
            None => inner.source()?,
        };
    }
}

fn explain(error: &Error) -> Failure {
    match error {
        Error::InvalidCertificate(error) => Failure::Untrusted(untrusted(error)),
        Error::NoCertificatesPresented => Failure::Untrusted("it showed no certificate".into()),
        Error::AlertReceived(alert) => match refusal(*alert) {
            Some(why) => Failure::Refused(why.into()),
            None => Failure::Other(format!("the other side says {alert:?}")),
        },
        // Every message after the first is protected, and what is wrong with it is told otherwise.
        Error::InvalidMessage(_) => Failure::NotTls,
        Error::PeerIncompatible(why) => Failure::Other(format!(
            "the two sides have nothing in common ({why:?}); TLS 1.3 is spoken here"
        )),
        other => Failure::Other(other.to_string()),
    }
}

fn untrusted(error: &CertificateError) -> String {
    match error {
        CertificateError::Expired => "its certificate has expired".into(),
        CertificateError::ExpiredContext { time, not_after } => {
            format!("its certificate expired {} ago", since(not_after, time))
        }
        CertificateError::NotValidYet => "its certificate is not valid yet".into(),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "its certificate becomes valid in {}; are both clocks right?",
            since(time, not_before)
        ),
        CertificateError::UnknownIssuer => {
            "its certificate ends at no root that is trusted here".into()
        }
        CertificateError::NotValidForName => "its certificate is for another name".into(),
        CertificateError::NotValidForNameContext { expected, presented } => format!(
            "its certificate is not for {}, but for {}",
            expected.to_str(),
            if presented.is_empty() { "no name".into() } else { presented.join(", ") }
        ),
        CertificateError::BadSignature => {
            "it lacks the private key of its certificate, or its issuer has only the name of a root \
             that is trusted here"
                .into()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is for another purpose".into()
        }
        CertificateError::Other(ours) => ours.to_string(),
        other => other.to_string(),
    }
}

fn since(earlier: &UnixTime, later: &UnixTime) -> String {
    let seconds = later.as_secs().saturating_sub(earlier.as_secs());
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Alerts by which the other side says that it does not take us for who we should be.
fn refusal(alert: AlertDescription) -> Option<&'static str> {
    Some(match alert {
        AlertDescription::CertificateRequired => {
            "it wants a client certificate, and none was shown: set one"
        }
        AlertDescription::UnknownCA => "it trusts nobody who signed this side's certificate",
        AlertDescription::CertificateExpired => "this side's certificate has expired",
        AlertDescription::CertificateRevoked => "this side's certificate is revoked",
        AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate => {
            "it does not accept this side's certificate; is its key pinned there?"
        }
        AlertDescription::AccessDenied => "it grants no access",
        AlertDescription::DecryptError => {
            "it finds this side's proof of its private key wrong, or the link damaged"
        }
        _ => return None,
    })
}
