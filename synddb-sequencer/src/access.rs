//! Who may do what.
//!
//! ```text
//!  credentials (token, key of a client certificate) ──▶ principal ──▶ rights on streams
//! ```
//!
//! Without [`Access`] everybody may do everything. With it, who shows nothing, or something that is
//! not known, may do nothing.

mod challenge;
mod rules;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use synddb_core::StreamId;

use self::challenge::Challenger;
pub(crate) use self::challenge::Greeting;
pub use self::rules::{Pattern, Principal, Rules, RulesError};

/// What a sender or reader shows of itself.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// A token; empty where none was sent.
    pub token: Vec<u8>,
    /// SHA-256 of the public key that it has proved to have: that of its client certificate, as
    /// `SubjectPublicKeyInfo` in DER.
    pub key: Option<[u8; 32]>,
}

impl fmt::Debug for Credentials {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (has_token, has_key) = (!self.token.is_empty(), self.key.is_some());
        write!(f, "Credentials {{ token: {has_token}, key: {has_key} }}")
    }
}

/// Whose token it is, as a [`TokenCheck`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Name of the principal, whose rights the [`Rules`] hold.
    pub principal: String,
    /// When the token expires.
    pub valid_until: Option<SystemTime>,
}

/// Understands tokens that the rules hold no hash of: signed ones, mostly. Implemented by closures.
///
/// ```
/// use synddb_sequencer::access::{Access, Rules, Subject};
///
/// let rules: Rules = r#"
///     [[principal]]
///     name = "workload@example.iam"
///     create = ["orders"]
/// "#.parse().unwrap();
/// let access = Access::new(rules).with_token_check(|token: &[u8]| {
///     // A JWT would be verified here: its signature, issuer, audience and dates.
///     let subject = token.strip_prefix(b"signed:").ok_or("not signed by us")?;
///     let principal = String::from_utf8_lossy(subject).into_owned();
///     Ok(Subject { principal, valid_until: None })
/// });
/// ```
pub trait TokenCheck: Send + Sync {
    /// Whose token this is.
    ///
    /// It is asked once per connection, over HTTP per request, and again once the token has expired
    /// or the rules have changed. It may block for a moment.
    ///
    /// # Errors
    /// Why the token is worth nothing. It is shown to whoever sent it.
    fn check(&self, token: &[u8]) -> Result<Subject, String>;
}

impl<F: Fn(&[u8]) -> Result<Subject, String> + Send + Sync> TokenCheck for F {
    fn check(&self, token: &[u8]) -> Result<Subject, String> {
        self(token)
    }
}

/// What somebody wants to do with a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Right {
    /// Begin it, and be its owner from then on.
    Create,
    /// Append to it.
    Append,
    /// Read it, and of it.
    Read,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "create",
            Self::Append => "append to",
            Self::Read => "read",
        })
    }
}

/// The stream that somebody wants to do something with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// The stream.
    pub stream: StreamId,
    /// What it is said to be called: believed only where the identifier comes from it.
    pub name: &'a str,
    /// The principal that created it; empty where it was created without access control.
    pub owner: &'a str,
}

/// Why somebody may not; for the one who wanted to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied(String);

impl Denied {
    pub(crate) fn because(why: &str) -> Self {
        Self(why.to_owned())
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Denied {}

/// Access control. Clones share the rules.
#[derive(Clone)]
pub struct Access(Arc<Shared>);

struct Shared {
    file: Option<PathBuf>,
    rules: Mutex<Arc<Rules>>,
    /// Counts the changes of the rules.
    generation: AtomicU64,
    check: Option<Box<dyn TokenCheck>>,
    /// `None` where the operating system gives no randomness.
    challenger: Option<Challenger>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("file", &self.0.file).finish_non_exhaustive()
    }
}

impl Access {
    /// By these rules.
    pub fn new(rules: Rules) -> Self {
        Self::of(None, rules)
    }

    /// By the rules of a file, which [`reload`](Self::reload) reads again.
    ///
    /// # Errors
    /// The file cannot be read, or says what cannot be honoured.
    pub fn from_file(path: impl Into<PathBuf>) -> Result<Self, RulesError> {
        let path = path.into();
        let rules = read(&path)?;
        Ok(Self::of(Some(path), rules))
    }

    fn of(file: Option<PathBuf>, rules: Rules) -> Self {
        Self(Arc::new(Shared {
            file,
            rules: Mutex::new(Arc::new(rules)),
            generation: AtomicU64::new(0),
            check: None,
            challenger: Challenger::new(),
        }))
    }

    /// Also lets in who has a token that `check` understands.
    ///
    /// # Panics
    /// Where it was cloned before.
    #[must_use]
    pub fn with_token_check(mut self, check: impl TokenCheck + 'static) -> Self {
        let shared = Arc::get_mut(&mut self.0).expect("access control is not in use yet");
        shared.check = Some(Box::new(check));
        self
    }

    /// Reads the file of the rules again, if there is one. Whether they changed: connections that
    /// are open are measured by the new ones from their next frame on.
    ///
    /// # Errors
    /// The file cannot be used; the rules that were read before stay.
    pub fn reload(&self) -> Result<bool, RulesError> {
        let Some(file) = &self.0.file else { return Ok(false) };
        let rules = read(file)?;
        let mut current = self.rules();
        if **current == rules {
            return Ok(false);
        }
        *current = Arc::new(rules);
        self.0.generation.fetch_add(1, Ordering::Release);
        Ok(true)
    }

    /// Who shows these credentials. A token decides where there is one, whatever key comes with it.
    ///
    /// # Errors
    /// There are none, or they are not known.
    pub fn identify(&self, credentials: &Credentials) -> Result<Identity, Denied> {
        // Before the rules are read: they may change meanwhile, and are then looked at once more.
        let generation = self.generation();
        let rules = Arc::clone(&self.rules());
        let has_token = !credentials.token.is_empty();
        let (principal, valid_until) = if !credentials.token.is_empty() {
            self.by_token(&rules, &credentials.token)?
        } else if let Some(key) = &credentials.key {
            let principal = rules.by_key(key).ok_or_else(|| {
                Denied("the key of this client's certificate is not known here".into())
            })?;
            (principal, None)
        } else {
            return Err(Denied(
                "neither a token nor a client certificate was shown, and one is needed".into(),
            ));
        };
        let needs_nonce = has_token && principal.challenge;
        Ok(Identity { principal, generation, valid_until, needs_nonce, shares: false })
    }

    /// A nonce for the token of the next Hello.
    pub(crate) fn challenge(&self, greeting: Greeting) -> Result<[u8; 32], Denied> {
        let nonce = self.0.challenger.as_ref().and_then(|challenger| challenger.nonce(greeting));
        nonce.ok_or_else(|| Denied("there is no randomness here for a nonce".into()))
    }

    /// Whether a genuine token is bound to this nonce.
    pub(crate) fn holds(&self, token: &[u8], nonce: &[u8; 32]) -> bool {
        challenge::nonces_in(token).contains(nonce)
    }

    /// Whether a genuine token is bound to a nonce that was given out for this Hello; for one that
    /// begins a session, not long ago.
    pub(crate) fn is_bound(&self, token: &[u8], greeting: Greeting, begins: bool) -> bool {
        self.0.challenger.as_ref().is_some_and(|challenger| {
            let nonces = challenge::nonces_in(token);
            nonces.iter().any(|nonce| challenger.is_ours(nonce, greeting, begins))
        })
    }

    /// Somebody who can never be let in: a nonce is wanted in a token that nobody here understands.
    pub(crate) fn challenged_in_vain(&self) -> Option<String> {
        let rules = self.rules();
        rules.challenged().filter(|_| self.0.check.is_none()).map(str::to_owned)
    }

    fn by_token(
        &self,
        rules: &Rules,
        token: &[u8],
    ) -> Result<(Arc<Principal>, Option<SystemTime>), Denied> {
        if let Some(principal) = rules.by_token(token) {
            return Ok((principal, None));
        }
        let Some(check) = &self.0.check else {
            return Err(Denied("the token is not known here".into()));
        };
        let Subject { principal, valid_until } =
            check.check(token).map_err(|why| Denied(format!("the token is refused: {why}")))?;
        if valid_until.is_some_and(|until| until <= SystemTime::now()) {
            return Err(Denied("the token has expired".into()));
        }
        let known = rules.by_name(&principal);
        let known = known
            .ok_or_else(|| Denied(format!("the token is {principal}'s, who is not known here")))?;
        Ok((known, valid_until))
    }

    /// Whether anybody is known by the key of a client certificate.
    pub(crate) fn knows_keys(&self) -> bool {
        self.rules().know_keys()
    }

    fn rules(&self) -> std::sync::MutexGuard<'_, Arc<Rules>> {
        self.0.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }
}

fn read(path: &Path) -> Result<Rules, RulesError> {
    let problem = |problem: String| RulesError::new(format!("{}: {problem}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| problem(error.to_string()))?;
    text.parse().map_err(|error: RulesError| problem(error.to_string()))
}

/// Who has a key that TLS let in, where there are no rules: may create all streams, owns those, and
/// shares those of nobody. Its name is the key's pin, so that rules that come later can call it so.
pub(crate) fn of_key(key: &[u8; 32]) -> Identity {
    let digits: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let principal = Principal {
        name: format!("sha256:{digits}"),
        create: vec![Pattern::All],
        ..Default::default()
    };
    Identity {
        principal: Arc::new(principal),
        generation: 0,
        valid_until: None,
        needs_nonce: false,
        shares: true,
    }
}

/// Somebody whose credentials were found good.
#[derive(Debug, Clone)]
pub struct Identity {
    principal: Arc<Principal>,
    generation: u64,
    valid_until: Option<SystemTime>,
    needs_nonce: bool,
    /// Streams that nobody owns are its as well.
    shares: bool,
}

impl Identity {
    /// Whether its token is good only on the connection whose nonce it holds.
    pub(crate) fn needs_nonce(&self) -> bool {
        self.needs_nonce
    }

    /// Name of the principal.
    pub fn name(&self) -> &str {
        &self.principal.name
    }

    /// Whether the credentials need no second look: the rules are as they were, and a token has not
    /// expired since.
    pub fn is_fresh(&self, access: &Access) -> bool {
        self.generation == access.generation()
            && self.valid_until.is_none_or(|until| SystemTime::now() < until)
    }

    /// Whether it has a right on a stream.
    ///
    /// # Errors
    /// It has not.
    pub fn may(&self, right: Right, target: &Target<'_>) -> Result<(), Denied> {
        let principal = &*self.principal;
        let owns = target.owner == principal.name || (self.shares && target.owner.is_empty());
        let patterns = match right {
            Right::Create => &principal.create,
            Right::Append => &principal.append,
            Right::Read => &principal.read,
        };
        let granted = patterns.iter().any(|pattern| pattern.matches(target.stream, target.name));
        if granted || (owns && right != Right::Create) {
            return Ok(());
        }
        let Target { stream, name, .. } = target;
        let called = if name.is_empty() { String::new() } else { format!(" ({name:?})") };
        let other = match right {
            Right::Append if target.owner.is_empty() => "",
            Right::Append if self.shares => {
                ", which another key created: access rules can give several keys the same rights"
            }
            Right::Append => ", which another principal created",
            _ => "",
        };
        Err(Denied(format!("{} may not {right} stream {stream}{called}{other}", principal.name)))
    }
}
