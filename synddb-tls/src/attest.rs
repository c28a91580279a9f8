use std::{fmt, sync::Arc};

use rustls::{ConnectionCommon, SideData, pki_types::CertificateDer, server::ParsedCertificate};

use crate::Pin;

/// Who is at the other end of a connection whose handshake is done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Peer {
    /// Its public key, as `SubjectPublicKeyInfo` in DER: it has proved that it holds the private one.
    /// `None` for a client that showed no certificate.
    pub public_key: Option<Vec<u8>>,
    /// Its certificate in DER.
    pub certificate: Option<Vec<u8>>,
    /// The `tls-exporter` channel binding of [RFC 9266]: the same bytes on both sides, and on no
    /// other connection. An attestation that holds them was made for this connection.
    ///
    /// [RFC 9266]: https://www.rfc-editor.org/rfc/rfc9266
    pub exporter: [u8; 32],
}

impl Peer {
    /// The other end of a connection; `None` before its handshake is done.
    pub fn of<S: SideData>(connection: &ConnectionCommon<S>) -> Option<Self> {
        let label = b"EXPORTER-Channel-Binding";
        let exporter = connection.export_keying_material([0; 32], label, Some(b"")).ok()?;
        let certificate = connection.peer_certificates().and_then(<[_]>::first);
        Some(Self {
            public_key: certificate.and_then(public_key),
            certificate: certificate.map(|certificate| certificate.to_vec()),
            exporter,
        })
    }

    /// The pin of its key.
    pub fn pin(&self) -> Option<Pin> {
        self.public_key.as_deref().map(Pin::of_public_key)
    }
}

fn public_key(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    Some(parsed.subject_public_key_info().to_vec())
}

/// Decides whether the machine at the other end is what it should be.
///
/// Asked at each connection after the handshake and before anything else. It may block; the
/// connection waits, and is given up with the time limit for connecting.
#[derive(Clone)]
pub struct Attestation(Arc<Check>);

type Check = dyn Fn(&Peer) -> Result<(), String> + Send + Sync;

impl Attestation {
    /// Calls `check`, whose error says why the peer is refused; it is shown to the user.
    pub fn new(check: impl Fn(&Peer) -> Result<(), String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(check))
    }

    pub(crate) fn check(&self, peer: &Peer) -> Result<(), String> {
        (self.0)(peer)
    }
}

impl fmt::Debug for Attestation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Attestation(..)")
    }
}
