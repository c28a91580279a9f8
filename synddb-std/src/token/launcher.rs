//! Attestation tokens of Google Confidential Space, which its launcher gives out over a Unix socket.
//! See <https://cloud.google.com/confidential-computing/confidential-space/docs/connect-external-resources>.

mod http;
mod jwt;

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{TokenProvider, TokenRequest};

/// Where the launcher listens.
const SOCKET: &str = "/run/container_launcher/teeserver.sock";
/// How long the launcher may take: it asks a service on the network.
const TIMEOUT: Duration = Duration::from_secs(20);
/// A token is used no longer than until this long before it expires.
const MARGIN: Duration = Duration::from_secs(60);

/// Settings of [`TokenProvider::confidential_space`].
///
/// A token is kept until a minute before it expires, or until the sequencer refuses it. One that the
/// sequencer wants bound to a nonce is made for that connection alone: the nonce is in its
/// `eat_nonce`, in 64 hexadecimal digits.
///
/// ```
/// use synddb_std::{ConfidentialSpace, TokenProvider};
///
/// let provider = TokenProvider::confidential_space(ConfidentialSpace {
///     audience: "https://sequencer.example".into(),
///     ..Default::default()
/// });
/// # let _ = provider;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfidentialSpace {
    /// Whom the token is for: what the sequencer expects in `aud`.
    pub audience: String,
    /// `OIDC` or `PKI`. Default: `OIDC`.
    pub token_type: String,
    /// The launcher's socket. Default: `/run/container_launcher/teeserver.sock`.
    pub socket: PathBuf,
}

impl Default for ConfidentialSpace {
    fn default() -> Self {
        Self { audience: String::new(), token_type: "OIDC".into(), socket: SOCKET.into() }
    }
}

impl TokenProvider {
    /// Asks the launcher of Confidential Space for attestation tokens.
    pub fn confidential_space(settings: ConfidentialSpace) -> Self {
        let kept: Mutex<Option<(String, SystemTime)>> = Mutex::default();
        Self::new(move |request| {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            let now = SystemTime::now();
            let fits = request.challenge.is_none() && !request.refused;
            if let Some((token, until)) = &*kept
                && fits
                && now < *until
            {
                return Ok(token.clone());
            }
            let token = settings.ask(request)?;
            *kept = None;
            if request.challenge.is_none()
                && let Some(seconds) = jwt::expiry(&token)
            {
                let until = UNIX_EPOCH + Duration::from_secs(seconds);
                *kept = Some((token.clone(), until.checked_sub(MARGIN).unwrap_or(UNIX_EPOCH)));
            }
            Ok(token)
        })
    }
}

impl ConfidentialSpace {
    fn ask(&self, request: &TokenRequest) -> Result<String, String> {
        let problem = |what: String| format!("the launcher {}: {what}", self.socket.display());
        let nonces = match request.challenge {
            None => "[]".to_owned(),
            Some(nonce) => {
                let digits: String = nonce.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("[\"{digits}\"]")
            }
        };
        let (audience, token_type) = (quoted(&self.audience), quoted(&self.token_type));
        let body =
            format!("{{\"audience\":{audience},\"token_type\":{token_type},\"nonces\":{nonces}}}");
        let (status, answer) =
            http::post(&self.socket, "/v1/token", &body, TIMEOUT).map_err(problem)?;
        let answer = String::from_utf8_lossy(&answer).trim().to_owned();
        if status != 200 {
            let begin: String = answer.chars().take(200).collect();
            return Err(problem(format!("status {status}: {begin:?}")));
        }
        Ok(answer)
    }
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            character if character < ' ' => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            character => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_quoted() {
        assert_eq!(quoted("a\"b\\c\nd€"), "\"a\\\"b\\\\c\\u000ad€\"");
    }
}
