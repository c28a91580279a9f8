use std::{fmt, path::PathBuf};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::{Pin, TlsError};

/// Certificates or a key in PEM.
#[derive(Clone, PartialEq, Eq)]
pub enum Pem {
    /// A file, which is read again at each connection or reload.
    File(PathBuf),
    /// The text itself.
    Text(String),
}

impl fmt::Debug for Pem {
    /// Without the text, which may be a private key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Text(_) => f.write_str("Text(..)"),
        }
    }
}

impl Pem {
    fn place(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Text(_) => "the given text".into(),
        }
    }

    fn read(&self) -> Result<Vec<u8>, TlsError> {
        match self {
            Self::Text(text) => Ok(text.clone().into_bytes()),
            Self::File(path) => std::fs::read(path).map_err(|error| TlsError::Read {
                path: path.display().to_string(),
                message: error.to_string(),
            }),
        }
    }

    /// The certificates in it, at least one.
    pub(crate) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let bytes = self.read()?;
        let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
        let certificates = parsed.map_err(|error| TlsError::Malformed {
            place: self.place(),
            message: error.to_string(),
        })?;
        if certificates.is_empty() {
            return Err(TlsError::NoCertificate { place: self.place() });
        }
        Ok(certificates)
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        let bytes = self.read()?;
        PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| TlsError::NoKey { place: self.place() })
    }
}

/// How one side shows who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, and those between it and a root, in this order.
    pub certificates: Pem,
    /// The certificate's private key: PKCS #8, PKCS #1 or SEC 1.
    pub key: Pem,
}

impl Identity {
    /// Reads both, and makes sure that they belong together.
    pub(crate) fn load(&self) -> Result<Loaded, TlsError> {
        let chain = self.certificates.certificates()?;
        let key = self.key.key()?;
        let signing = rustls::crypto::ring::sign::any_supported_type(&key).map_err(|error| {
            TlsError::Malformed { place: self.key.place(), message: error.to_string() }
        })?;
        let pin = Pin::of_certificate(&chain[0]).ok_or_else(|| TlsError::Malformed {
            place: self.certificates.place(),
            message: "the first certificate does not parse".into(),
        })?;
        let of_key = signing.public_key().map(|spki| Pin::of_public_key(&spki));
        if of_key.is_some_and(|of_key| of_key != pin) {
            return Err(TlsError::KeyMismatch {
                certificate: self.certificates.place(),
                key: self.key.place(),
            });
        }
        Ok(Loaded { chain, key })
    }

    /// The pin by which others know it.
    ///
    /// # Errors
    /// The certificate or the key cannot be read, or they do not belong together.
    pub fn pin(&self) -> Result<Pin, TlsError> {
        let chain = self.load()?.chain;
        Ok(Pin::of_certificate(&chain[0]).expect("checked when it was loaded"))
    }
}

/// What an [`Identity`] consists of at the moment.
#[derive(PartialEq, Eq)]
pub(crate) struct Loaded {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

/// Certificates that others have to end at.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Roots {
    /// Those of Mozilla, compiled in: what the web is served with.
    Web,
    /// These. The certificate of a server that signed its own is its root too.
    Pem(Pem),
}

impl Roots {
    /// Adds certificates of a file; nothing for those that are compiled in.
    pub(crate) fn load(&self) -> Result<Option<Vec<CertificateDer<'static>>>, TlsError> {
        match self {
            Self::Web => Ok(None),
            Self::Pem(pem) => pem.certificates().map(Some),
        }
    }
}
