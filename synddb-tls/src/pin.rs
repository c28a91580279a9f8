use std::{fmt, str::FromStr};

use rustls::{pki_types::CertificateDer, server::ParsedCertificate};
use sha2::{Digest, Sha256};

/// Names a public key: the SHA-256 of the `SubjectPublicKeyInfo` in its certificate, as in [RFC 7469].
/// A certificate that is renewed for the same key keeps its pin.
///
/// [RFC 7469]: https://www.rfc-editor.org/rfc/rfc7469#section-2.4
///
/// ```
/// use synddb_tls::Pin;
///
/// let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// let pin: Pin = text.parse().unwrap();
/// assert_eq!(pin.to_string(), text);
/// assert!("sha256:e3b0".parse::<Pin>().is_err());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pin(pub [u8; 32]);

impl Pin {
    /// The pin of a public key: its `SubjectPublicKeyInfo` in DER.
    pub fn of_public_key(spki: &[u8]) -> Self {
        Self(Sha256::digest(spki).into())
    }

    /// The pin of a certificate's key; `None` where the certificate does not parse.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let parsed = ParsedCertificate::try_from(certificate).ok()?;
        Some(Self::of_public_key(&parsed.subject_public_key_info()))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What was meant to be a [`Pin`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidPin(String);

impl fmt::Display for InvalidPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is no pin: expected sha256: and the 64 hexadecimal digits of a public key's \
             SHA-256, as `synddb keygen` prints it",
            self.0
        )
    }
}

impl std::error::Error for InvalidPin {}

impl FromStr for Pin {
    type Err = InvalidPin;

    fn from_str(text: &str) -> Result<Self, InvalidPin> {
        let invalid = || InvalidPin(text.to_owned());
        let digits = text.trim().strip_prefix("sha256:").ok_or_else(invalid)?;
        if digits.len() != 64 {
            return Err(invalid());
        }
        let mut pin = [0; 32];
        for (byte, pair) in pin.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let [high, low] = [pair[0], pair[1]].map(|digit| char::from(digit).to_digit(16));
            *byte = (high.ok_or_else(invalid)? << 4 | low.ok_or_else(invalid)?) as u8;
        }
        Ok(Self(pin))
    }
}
