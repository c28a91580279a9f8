//! The file that says who may do what.

use std::{collections::BTreeSet, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, de::Error as _};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use synddb_core::StreamId;

/// Who may do what: what an access file says, in TOML.
///
/// ```
/// use synddb_sequencer::access::Rules;
///
/// let rules: Rules = r#"
///     [[principal]]
///     name = "order-book"
///     ## SHA-256 of its token: `printf %s TOKEN | sha256sum`. Several while one replaces another.
///     tokens_sha256 = ["b9f195c5cc7ef6afadbfbc42892ad47d3b24c6bc94bb510c4564a90a14e8b799"]
///     ## Streams that it may create. Those that it created it may append to and read.
///     create = ["orders", "orders-*"]
///
///     [[principal]]
///     name = "backup"
///     ## Keys of client certificates, as `synddb keygen` prints them.
///     keys = ["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]
///     read = ["*"]
/// "#.parse().unwrap();
///
/// assert!("[[principal]]\nname = 'x'\nwrite = ['*']".parse::<Rules>().is_err());
/// # let _ = rules;
/// ```
///
/// Streams are named by their name, the beginning of it and `*`, `*` alone for all, or the 32
/// hexadecimal digits of their identifier. A name is believed only where the stream's identifier was
/// made from it. `append` and `read` are about streams that others created.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// A name, a token and a key belong to one of them.
    principals: Vec<Arc<Principal>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RulesFile {
    #[serde(default)]
    principal: Vec<Principal>,
}

/// Somebody who may do something.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Principal {
    /// Name: what the owner of a stream is recorded as.
    pub name: String,
    /// SHA-256 of its tokens.
    #[serde(default, deserialize_with = "tokens")]
    pub tokens_sha256: Vec<[u8; 32]>,
    /// SHA-256 of the public keys of its client certificates.
    #[serde(default, deserialize_with = "keys")]
    pub keys: Vec<[u8; 32]>,
    /// Streams that it may create; it owns them, and may append to and read them.
    #[serde(default)]
    pub create: Vec<Pattern>,
    /// Streams of others that it may append to.
    #[serde(default)]
    pub append: Vec<Pattern>,
    /// Streams of others that it may read.
    #[serde(default)]
    pub read: Vec<Pattern>,
    /// Its tokens have to be bound to the connection that they are shown on, by a nonce that the
    /// sequencer gives out for it: a JWT with that nonce in its `eat_nonce` or `nonce`. It takes a
    /// [`TokenCheck`](super::TokenCheck), for no token that is known beforehand can hold one.
    #[serde(default)]
    pub challenge: bool,
}

impl fmt::Debug for Principal {
    /// Without its credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, create, append, read, .. } = self;
        f.debug_struct("Principal")
            .field("name", name)
            .field("create", create)
            .field("append", append)
            .field("read", read)
            .finish_non_exhaustive()
    }
}

/// Names streams.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum Pattern {
    /// All of them.
    All,
    /// The one with this identifier.
    Id(StreamId),
    /// Those whose name begins like this.
    Prefix(String),
}

impl Pattern {
    pub(super) fn matches(&self, stream: StreamId, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Id(id) => *id == stream,
            // Anybody can call a stream anything.
            Self::Prefix(prefix) => {
                name.starts_with(prefix.as_str()) && StreamId::from_name(name) == stream
            }
        }
    }
}

impl From<String> for Pattern {
    fn from(text: String) -> Self {
        match text.strip_suffix('*') {
            Some("") => Self::All,
            Some(prefix) => Self::Prefix(prefix.to_owned()),
            None => Self::Id(text.parse().unwrap_or_else(|_| StreamId::from_name(&text))),
        }
    }
}

/// What is wrong with the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RulesError(String);

impl RulesError {
    pub(super) fn new(problem: String) -> Self {
        Self(problem)
    }
}

impl fmt::Display for RulesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for RulesError {}

impl FromStr for Rules {
    type Err = RulesError;

    fn from_str(text: &str) -> Result<Self, RulesError> {
        let file: RulesFile = toml::from_str(text).map_err(|error| {
            // Without the lines of the file that it would show: there may be a secret in them.
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            RulesError(format!("line {}: {}", before.matches('\n').count() + 1, error.message()))
        })?;
        Self::new(file.principal)
    }
}

impl Rules {
    /// Of these principals.
    ///
    /// # Errors
    /// One has no name, or two have the same name, token or key.
    pub fn new(principals: impl IntoIterator<Item = Principal>) -> Result<Self, RulesError> {
        let principals: Vec<_> = principals.into_iter().map(Arc::new).collect();
        let (mut names, mut tokens, mut keys) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for principal in &principals {
            let name = &principal.name;
            if name.is_empty() {
                return Err(RulesError("a principal has no name".into()));
            }
            if !names.insert(name.as_str()) {
                return Err(RulesError(format!("there are two principals {name}")));
            }
            if !principal.tokens_sha256.iter().all(|token| tokens.insert(token)) {
                return Err(RulesError(format!("a token of {name} is there twice")));
            }
            if principal.challenge && !principal.tokens_sha256.is_empty() {
                return Err(RulesError(format!(
                    "{name} is to be challenged, and has tokens that are known by their hash, which \
                     cannot hold a nonce: leave out tokens_sha256 or challenge"
                )));
            }
            if !principal.keys.iter().all(|key| keys.insert(key)) {
                return Err(RulesError(format!("a key of {name} is there twice")));
            }
        }
        Ok(Self { principals })
    }

    pub(super) fn know_keys(&self) -> bool {
        self.principals.iter().any(|principal| !principal.keys.is_empty())
    }

    /// Somebody whose tokens have to be bound to a connection.
    pub(super) fn challenged(&self) -> Option<&str> {
        let challenged = self.principals.iter().find(|principal| principal.challenge)?;
        Some(&challenged.name)
    }

    pub(super) fn by_name(&self, name: &str) -> Option<Arc<Principal>> {
        self.principals.iter().find(|principal| principal.name == name).map(Arc::clone)
    }

    /// Takes as long for one that is known as for another.
    pub(super) fn by_token(&self, token: &[u8]) -> Option<Arc<Principal>> {
        let hash = Sha256::digest(token).into();
        self.find(&hash, |principal| &principal.tokens_sha256)
    }

    pub(super) fn by_key(&self, key: &[u8; 32]) -> Option<Arc<Principal>> {
        self.find(key, |principal| &principal.keys)
    }

    fn find(
        &self,
        wanted: &[u8; 32],
        secrets: impl Fn(&Principal) -> &[[u8; 32]],
    ) -> Option<Arc<Principal>> {
        let mut found = None;
        for principal in &self.principals {
            for secret in secrets(principal) {
                if bool::from(secret.ct_eq(wanted)) {
                    found = Some(principal);
                }
            }
        }
        found.map(Arc::clone)
    }
}

fn tokens<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<[u8; 32]>, D::Error> {
    let hashes = Vec::<String>::deserialize(deserializer)?;
    let read = hashes.iter().map(|text| {
        sha256(text).ok_or_else(|| {
            D::Error::custom(
                "what is no SHA-256 of 64 hexadecimal digits: not the token belongs here, but what \
                 `printf %s TOKEN | sha256sum` prints",
            )
        })
    });
    read.collect()
}

fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<[u8; 32]>, D::Error> {
    let pins = Vec::<String>::deserialize(deserializer)?;
    let read = pins.iter().map(|text| {
        text.strip_prefix("sha256:").and_then(sha256).ok_or_else(|| {
            D::Error::custom(format!(
                "{text:?} is no pin: expected sha256: and 64 hexadecimal digits, as `synddb keygen` \
                 prints it"
            ))
        })
    });
    read.collect()
}

pub(super) fn sha256(digits: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        let [high, low] = [pair[0], pair[1]].map(|digit| char::from(digit).to_digit(16));
        *byte = (high? << 4 | low?) as u8;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> String {
        text.parse::<Rules>().unwrap_err().to_string()
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        let hash = "ab".repeat(32);
        for (text, says) in [
            ("[[principal]]", "missing field `name`"),
            ("[[principal]]\nname = ''", "no name"),
            ("[[principal]]\nname = 'a'\n[[principal]]\nname = 'a'", "two principals a"),
            ("[[principal]]\nname = 'a'\nraed = ['*']", "unknown field `raed`"),
            ("[[principals]]\nname = 'a'", "unknown field `principals`"),
            ("[[principal]]\nname = 'a'\nkeys = ['abc']", "no pin"),
            ("not toml", ""),
        ] {
            assert!(problem(text).contains(says), "{text}: {}", problem(text));
        }
        let both =
            format!("[[principal]]\nname = 'a'\nchallenge = true\ntokens_sha256 = ['{hash}']");
        assert!(problem(&both).contains("cannot hold a nonce"), "{}", problem(&both));
        let twice = |field: &str, value: &str| {
            format!(
                "[[principal]]\nname = 'a'\n{field} = ['{value}']\n\
                 [[principal]]\nname = 'b'\n{field} = ['{value}']"
            )
        };
        assert!(problem(&twice("tokens_sha256", &hash)).contains("a token of b is there twice"));
        assert!(problem(&twice("keys", &format!("sha256:{hash}"))).contains("a key of b"));
    }

    #[test]
    fn a_token_instead_of_its_hash_is_not_repeated() {
        let said = problem("[[principal]]\nname = 'a'\ntokens_sha256 = ['hunter2']");
        assert!(said.contains("line 3") && said.contains("sha256sum"), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }

    #[test]
    fn a_name_counts_only_where_the_stream_is_made_of_it() {
        let orders = StreamId::from_name("orders");
        let matches = |pattern: &str, stream, name: &str| {
            Pattern::from(pattern.to_owned()).matches(stream, name)
        };
        assert!(matches("*", StreamId::from_bytes([1; 16]), ""));
        assert!(matches("orders", orders, "") && matches("orders", orders, "orders"));
        assert!(matches("ord*", orders, "orders"));
        assert!(!matches("ord*", orders, ""), "its name is not known");
        assert!(!matches("orders", StreamId::from_bytes([1; 16]), "orders"), "just called so");
        assert!(!matches("ord*", StreamId::from_bytes([1; 16]), "orders"), "just called so");
        assert!(!matches("order", orders, "orders"));
        assert!(matches(&orders.to_string(), orders, ""));
    }
}
