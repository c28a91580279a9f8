//! TLS for the links of synddb, by [rustls](https://docs.rs/rustls): who is believed, how one shows
//! who one is, and what a failure means.
//!
//! ```text
//!  ClientTls ── connector() ──▶ Connector ── connect(stream) ──▶ ClientStream: Read + Write
//!  ServerTls ── acceptor()  ──▶ Acceptor  ── config() ──▶ rustls::ServerConfig, per connection
//!                                         ── attest(peer) ──▶ what its attestation says
//! ```
//!
//! The stream under it can be anything that reads and writes: TCP, vsock, a unix socket, another
//! transport.
//!
//! # Whom to believe
//!
//! * **Roots**: a certificate that ends at one of them, valid today and, of a server, for its name.
//!   Mozilla's are compiled in; a PEM file holds others. `/etc/ssl/certs/ca-certificates.crt` or the
//!   like is the operating system's.
//! * **[Pins](Pin)**: only these keys. The other side proves by its signature in the handshake that
//!   it has the key; who signed the certificate, its names and its dates mean nothing. For machines
//!   that know each other by attestation, or by a file that was carried over.
//! * Both: both have to hold.
//!
//! ```
//! use synddb_tls::{ClientTls, Identity, Pem, Pin};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let pair = rcgen::generate_simple_self_signed(vec!["client".into()])?;
//! # std::fs::write(dir.path().join("client.crt"), pair.cert.pem())?;
//! # std::fs::write(dir.path().join("client.key"), pair.signing_key.serialize_pem())?;
//! # let certs = dir.path();
//! let settings = ClientTls {
//!     pins: vec!["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".parse()?],
//!     identity: Some(Identity {
//!         certificates: Pem::File(certs.join("client.crt")),
//!         key: Pem::File(certs.join("client.key")),
//!     }),
//!     ..Default::default()
//! };
//! // Everything is read and checked here, and read again at each connection.
//! let connector = settings.connector()?;
//! # let _ = connector;
//! # Ok(())
//! # }
//! ```
//!
//! # Attestation
//!
//! An [`Attestation`] is asked once the handshake is done and before anything else goes over the
//! connection: it gets the peer's key, and the [channel binding](https://www.rfc-editor.org/rfc/rfc9266)
//! that both sides of this very connection share and nobody between them.
//!
//! # What it does not do
//!
//! It speaks TLS 1.3 and nothing older, resumes no session (each connection proves everything anew),
//! sends no early data, and looks up no revocations: a key that is lost is taken out of the pins or
//! its certificate out of the roots.
#![forbid(unsafe_code)]

mod attest;
mod client;
mod failure;
mod pem;
mod pin;
mod server;
mod stream;
mod verify;

use std::{fmt, sync::Arc};

pub use attest::{Attestation, Peer};
pub use client::{ClientTls, Connector};
pub use failure::{Failure, failure_of};
pub use pem::{Identity, Pem, Roots};
pub use pin::{InvalidPin, Pin};
pub use rustls;
pub use server::{Acceptor, Clients, ServerTls};
pub use stream::ClientStream;

/// A setting that cannot be honoured.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    Read {
        /// The file.
        path: String,
        /// What the operating system said.
        message: String,
    },
    /// There is no certificate where one should be.
    NoCertificate {
        /// Where.
        place: String,
    },
    /// There is no private key where one should be.
    NoKey {
        /// Where.
        place: String,
    },
    /// What is there is not PEM, or not what its label says.
    Malformed {
        /// Where.
        place: String,
        /// What is wrong.
        message: String,
    },
    /// The private key is not the certificate's.
    KeyMismatch {
        /// Where the certificate is.
        certificate: String,
        /// Where the key is.
        key: String,
    },
    /// The server's name is neither a host name nor an address.
    InvalidName(String),
    /// Roots need a name to compare the certificate with, and the address holds none.
    NoName,
    /// What the settings say contradicts itself.
    Contradiction(&'static str),
    /// The TLS library refuses the settings.
    Refused(String),
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { path, message } => write!(f, "{path} cannot be read: {message}"),
            Self::NoCertificate { place } => write!(
                f,
                "{place} holds no certificate: expected PEM, `-----BEGIN CERTIFICATE-----`"
            ),
            Self::NoKey { place } => write!(
                f,
                "{place} holds no private key: expected PEM, such as `-----BEGIN PRIVATE KEY-----`, \
                 without a passphrase"
            ),
            Self::Malformed { place, message } => write!(f, "{place} is malformed: {message}"),
            Self::KeyMismatch { certificate, key } => {
                write!(f, "the key in {key} is not the one of the certificate in {certificate}")
            }
            Self::InvalidName(name) => write!(f, "{name:?} is neither a host name nor an address"),
            Self::NoName => f.write_str(
                "roots were given and no server name to compare the certificate with: set the \
                 server's name, or pin its key instead",
            ),
            Self::Contradiction(what) => f.write_str(what),
            Self::Refused(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for TlsError {}

fn refused(error: impl fmt::Display) -> TlsError {
    TlsError::Refused(error.to_string())
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
