//! Roots, pins, or both: the decision about a certificate. That its owner has the private key is
//! always checked, by the signature over the handshake.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    PeerIncompatible, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use crate::{Pin, TlsError, provider, refused};

/// A key that is not among the pinned ones.
#[derive(Debug)]
pub(crate) struct NotPinned(Option<Pin>);

impl fmt::Display for NotPinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(found) => write!(f, "its key is {found}, which is not pinned"),
            None => f.write_str("its certificate does not parse"),
        }
    }
}

impl std::error::Error for NotPinned {}

fn check_pin(pins: &[Pin], certificate: &CertificateDer<'_>) -> Result<(), Error> {
    let found = Pin::of_certificate(certificate);
    if found.is_some_and(|found| pins.contains(&found)) {
        return Ok(());
    }
    let error = OtherError(Arc::new(NotPinned(found)));
    Err(CertificateError::Other(error).into())
}

/// The store of these certificates; Mozilla's where there are none given.
fn store(roots: Option<Vec<CertificateDer<'static>>>) -> Result<Arc<RootCertStore>, TlsError> {
    let mut store = RootCertStore::empty();
    match roots {
        None => store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(roots) => {
            for root in roots {
                store.add(root).map_err(|error| refused(format!("a root: {error}")))?;
            }
        }
    }
    Ok(Arc::new(store))
}

/// Roots of a side, read: `None` where it has none, and in it `None` for those compiled in.
pub(crate) type LoadedRoots = Option<Option<Vec<CertificateDer<'static>>>>;

/// Checks a server's certificate.
#[derive(Debug)]
pub(crate) struct ServerCheck {
    provider: Arc<CryptoProvider>,
    by_roots: Option<Arc<WebPkiServerVerifier>>,
    /// Empty where roots are enough.
    pins: Vec<Pin>,
}

impl ServerCheck {
    pub(crate) fn new(roots: LoadedRoots, pins: &[Pin]) -> Result<Self, TlsError> {
        let by_roots = roots.map(|roots| {
            let builder = WebPkiServerVerifier::builder_with_provider(store(roots)?, provider());
            builder.build().map_err(refused)
        });
        Ok(Self { provider: provider(), by_roots: by_roots.transpose()?, pins: pins.to_vec() })
    }
}

impl ServerCertVerifier for ServerCheck {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(by_roots) = &self.by_roots {
            by_roots.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            )?;
        }
        if self.by_roots.is_none() || !self.pins.is_empty() {
            check_pin(&self.pins, end_entity)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Checks a client's certificate.
#[derive(Debug)]
pub(crate) struct ClientCheck {
    provider: Arc<CryptoProvider>,
    by_roots: Option<Arc<dyn ClientCertVerifier>>,
    /// `None` where any key will do.
    pins: Option<Vec<Pin>>,
    required: bool,
}

impl ClientCheck {
    pub(crate) fn new(
        roots: Option<Vec<CertificateDer<'static>>>,
        pins: Option<Vec<Pin>>,
        required: bool,
    ) -> Result<Self, TlsError> {
        let by_roots = roots.map(|roots| {
            let builder =
                WebPkiClientVerifier::builder_with_provider(store(Some(roots))?, provider());
            builder.build().map_err(refused)
        });
        Ok(Self { provider: provider(), by_roots: by_roots.transpose()?, pins, required })
    }
}

impl ClientCertVerifier for ClientCheck {
    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    /// Names no roots, so that a client always shows what it has and hears what is wrong with it.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if let Some(by_roots) = &self.by_roots {
            by_roots.verify_client_cert(end_entity, intermediates, now)?;
        }
        if let Some(pins) = &self.pins {
            check_pin(pins, end_entity)?;
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
