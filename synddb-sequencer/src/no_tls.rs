//! Stands in for `tls` where this is built without it.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::{Config, StartError};

/// A connection that is never accepted.
pub(crate) struct Accepted<S> {
    pub(crate) stream: S,
    pub(crate) key: Option<[u8; 32]>,
    pub(crate) refused: Option<&'static str>,
}

/// TLS of no address.
#[derive(Clone)]
pub(crate) struct Tls;

impl Tls {
    pub(crate) fn new(config: &Config) -> Result<Self, StartError> {
        if let Some(address) = config.listen.iter().find(|address| address.has_tls()) {
            return Err(StartError::NoTls(address.clone()));
        }
        if config.access.as_ref().is_some_and(|access| access.knows_keys()) {
            return Err(StartError::NoTlsAddress);
        }
        Ok(Self)
    }

    pub(crate) fn is_strict(&self) -> bool {
        false
    }

    pub(crate) fn reload(&self) -> Result<bool, String> {
        Ok(false)
    }

    /// Not called, as no address has TLS; and lets in nobody.
    pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        _: S,
        _: Duration,
        _: &[u8],
        _: &[&[u8]],
    ) -> Result<Accepted<S>, &'static str> {
        Err("this program was built without TLS")
    }
}
