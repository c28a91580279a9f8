//! Tokens: what a sender shows to be let in.

#[cfg(unix)]
mod launcher;

use std::{fmt, path::PathBuf, sync::Arc};

#[cfg(unix)]
pub use launcher::ConfidentialSpace;

/// What a token is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct TokenRequest {
    /// A nonce of the sequencer's that the token has to be bound to, where it asks for that.
    pub challenge: Option<[u8; 32]>,
    /// The sequencer refused the last token: one that was kept must not be given again.
    pub refused: bool,
}

/// Gives the token that the sequencer checks.
///
/// It is asked at each connection, on the link's thread. It is sent in the Hello, and over HTTP as
/// `Authorization: Bearer` too; never in the clear but within this machine: with an address that
/// would, attaching fails. A token is made of visible ASCII characters, 8 KiB at the most.
///
/// Where the sequencer refuses it, in the middle of a stream too, the link says so, asks for another
/// one, and tries again at growing intervals; commits keep queueing.
///
/// ```
/// use synddb_std::{Config, TokenProvider};
///
/// let config = Config {
///     sequencer_url: "https://sequencer.example:8433".into(),
///     token_provider: Some(TokenProvider::file("/run/secrets/synddb-token")),
///     ..Default::default()
/// };
/// # let _ = config;
/// // Or anything else that gives one:
/// let provider = TokenProvider::new(|request| {
///     let fresh = request.refused;
///     Ok(if fresh { "another-one" } else { "the-one-we-have" }.into())
/// });
/// # let _ = provider;
/// ```
#[derive(Clone)]
pub struct TokenProvider(Arc<Provide>);

type Provide = dyn Fn(&TokenRequest) -> Result<String, String> + Send + Sync;

impl TokenProvider {
    /// Calls `provide` at each connection. What it answers instead of a token is shown as the link's
    /// error, and the link tries again later.
    pub fn new(
        provide: impl Fn(&TokenRequest) -> Result<String, String> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(provide))
    }

    /// The same token always.
    pub fn fixed(token: impl Into<String>) -> Self {
        let token = token.into();
        Self::new(move |_| Ok(token.clone()))
    }

    /// The content of a file, read at each connection, without white space at its ends.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self::new(move |_| match std::fs::read_to_string(&path) {
            Ok(token) => Ok(token.trim().to_owned()),
            Err(error) => Err(format!("the token's file {}: {error}", path.display())),
        })
    }

    pub(crate) fn token(&self, request: &TokenRequest) -> Result<String, String> {
        let token = (self.0)(request)?;
        if token.is_empty() {
            return Err("the token is empty".into());
        }
        if token.len() > MAX_TOKEN_LEN {
            return Err(format!("the token has over {MAX_TOKEN_LEN} bytes"));
        }
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("the token has characters that are not visible ASCII".into());
        }
        Ok(token)
    }
}

use synddb_core::wire::message::MAX_TOKEN_LEN;

impl fmt::Debug for TokenProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenProvider(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_header_can_hold_is_no_token() {
        let token =
            |text: &str| TokenProvider::fixed(text).token(&TokenRequest::default()).map(|_| ());
        assert_eq!(token("abc.def-_~+/="), Ok(()));
        let long = "x".repeat(MAX_TOKEN_LEN + 1);
        for bad in ["", "a b", "a\nb", "ä", "\u{7f}", &long] {
            let error = token(bad).unwrap_err();
            assert!(bad.is_empty() || !error.contains(bad), "{error}");
        }
    }

    #[test]
    fn a_file_is_read_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let provider = TokenProvider::file(&path);
        let token = || provider.token(&TokenRequest::default());
        assert!(token().unwrap_err().contains("token's file"));
        std::fs::write(&path, "first\n").unwrap();
        assert_eq!(token().unwrap(), "first");
        std::fs::write(&path, "second").unwrap();
        assert_eq!(token().unwrap(), "second");
        assert!(!format!("{provider:?}").contains("second"));
    }
}
