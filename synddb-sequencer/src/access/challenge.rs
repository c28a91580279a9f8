//! Nonces that tokens are bound to.
//!
//! A token that was made for one connection is worth nothing on another. The nonce says by itself
//! when and for which Hello it was given out, so that whatever a request came over, nothing has to be
//! remembered between two of them.
//!
//! ```text
//! time u64 BE, ms │ random [8] │ SHA-256(secret[32] ‖ time ‖ random ‖ stream[16] ‖ nonce of the Hello[16])[..16]
//! ```

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use synddb_core::{Nonce, StreamId};

/// How long a token for a nonce may be on its way: attestation services take their time.
const ANSWERED_WITHIN: Duration = Duration::from_secs(120);

/// Gives out nonces, and knows its own again.
pub(super) struct Challenger {
    secret: [u8; 32],
}

/// The Hello that a nonce is for: the same in every request of an HTTP session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Greeting {
    pub(crate) stream: StreamId,
    /// Freshly drawn by the sender for each connection.
    pub(crate) nonce: Nonce,
}

impl Challenger {
    /// With a secret of its own, which is gone with it.
    pub(super) fn new() -> Option<Self> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).ok()?;
        Some(Self { secret })
    }

    /// A nonce for a Hello. `None` where the operating system gives no randomness.
    pub(super) fn nonce(&self, greeting: Greeting) -> Option<[u8; 32]> {
        let mut nonce = [0; 32];
        nonce[..8].copy_from_slice(&now_ms().to_be_bytes());
        getrandom::fill(&mut nonce[8..16]).ok()?;
        let mark = self.mark(&nonce, greeting);
        nonce[16..].copy_from_slice(&mark);
        Some(nonce)
    }

    /// Whether a nonce was given out for a Hello; for one that begins a session, not long ago.
    pub(super) fn is_ours(&self, nonce: &[u8; 32], greeting: Greeting, begins: bool) -> bool {
        let mut time = [0; 8];
        time.copy_from_slice(&nonce[..8]);
        let age = now_ms().saturating_sub(u64::from_be_bytes(time));
        let is_marked = bool::from(nonce[16..].ct_eq(&self.mark(nonce, greeting)));
        is_marked && (!begins || u128::from(age) <= ANSWERED_WITHIN.as_millis())
    }

    /// Of parts of fixed length behind a secret, so that nobody else makes one from another.
    fn mark(&self, nonce: &[u8; 32], Greeting { stream, nonce: hello }: Greeting) -> [u8; 16] {
        let mut hash = Sha256::new();
        hash.update(self.secret);
        hash.update(&nonce[..16]);
        hash.update(stream.as_bytes());
        hash.update(hello.0);
        let mut mark = [0; 16];
        mark.copy_from_slice(&hash.finalize()[..16]);
        mark
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The nonces that a JWT says it is bound to: `eat_nonce` of
/// [RFC 9711](https://www.rfc-editor.org/rfc/rfc9711), one or several, or `nonce`; of 64 hexadecimal
/// digits each, others are left out. Whether the token is genuine is found out by who checks it.
pub(super) fn nonces_in(token: &[u8]) -> Vec<[u8; 32]> {
    let claims = || -> Option<Value> {
        let payload = token.split(|byte| *byte == b'.').nth(1)?;
        serde_json::from_slice(&base64url(payload)?).ok()
    };
    let Some(claims) = claims() else { return Vec::new() };
    let mut nonces = Vec::new();
    for claim in ["eat_nonce", "nonce"] {
        match &claims[claim] {
            Value::String(nonce) => nonces.extend(super::rules::sha256(nonce)),
            Value::Array(several) => {
                let texts = several.iter().filter_map(Value::as_str);
                nonces.extend(texts.filter_map(super::rules::sha256));
            }
            _ => {}
        }
    }
    nonces
}

fn base64url(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0);
    for character in text {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: Greeting =
        Greeting { stream: StreamId::from_bytes([1; 16]), nonce: Nonce([2; 16]) };

    #[test]
    fn a_nonce_is_known_for_its_hello_alone() {
        let challenger = Challenger::new().unwrap();
        let nonce = challenger.nonce(HELLO).unwrap();
        assert!(challenger.is_ours(&nonce, HELLO, true));
        assert_ne!(challenger.nonce(HELLO).unwrap(), nonce, "each is another");
        let other = Greeting { nonce: Nonce([3; 16]), ..HELLO };
        assert!(!challenger.is_ours(&nonce, other, true));
        let other = Greeting { stream: StreamId::from_bytes([9; 16]), ..HELLO };
        assert!(!challenger.is_ours(&nonce, other, false));
        assert!(!Challenger::new().unwrap().is_ours(&nonce, HELLO, true), "of another sequencer");
        for at in 0..32 {
            let mut forged = nonce;
            forged[at] ^= 1;
            assert!(!challenger.is_ours(&forged, HELLO, false), "byte {at}");
        }
    }

    #[test]
    fn a_nonce_begins_no_session_when_it_is_old() {
        let challenger = Challenger::new().unwrap();
        let mut nonce = challenger.nonce(HELLO).unwrap();
        let past = now_ms() - ANSWERED_WITHIN.as_millis() as u64 - 1000;
        nonce[..8].copy_from_slice(&past.to_be_bytes());
        let mark = challenger.mark(&nonce, HELLO);
        nonce[16..].copy_from_slice(&mark);
        assert!(!challenger.is_ours(&nonce, HELLO, true));
        assert!(challenger.is_ours(&nonce, HELLO, false), "a session goes on with it");
    }

    #[test]
    fn nonces_are_found_where_tokens_have_them() {
        // Payloads: {"eat_nonce":"00…"}, {"nonce":["11…","short"]}, {"eat_nonce":7}, [].
        let digits = |pair: &str| pair.repeat(32);
        let token = |payload: &str| format!("h.{}.s", encode(payload)).into_bytes();
        let one = token(&format!("{{\"eat_nonce\":\"{}\"}}", digits("00")));
        assert_eq!(nonces_in(&one), [[0; 32]]);
        let several = token(&format!("{{\"nonce\":[\"{}\",\"short\"]}}", digits("1f")));
        assert_eq!(nonces_in(&several), [[0x1f; 32]]);
        for none in ["{\"eat_nonce\":7}", "[]", "no JSON", "{\"a\":{\"nonce\":\"\"}}"] {
            assert!(nonces_in(&token(none)).is_empty(), "{none}");
        }
        for none in ["", "a", "a.b", "...", "a.!!!!.c"] {
            assert!(nonces_in(none.as_bytes()).is_empty(), "{none}");
        }
    }

    fn encode(text: &str) -> String {
        const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut encoded = String::new();
        for chunk in text.as_bytes().chunks(3) {
            let mut bits = 0;
            for at in 0..3 {
                bits = bits << 8 | u32::from(chunk.get(at).copied().unwrap_or(0));
            }
            for digit in 0..=chunk.len() {
                let value = bits >> (18 - 6 * digit) & 63;
                encoded.push(char::from(DIGITS[value as usize]));
            }
        }
        encoded
    }
}
