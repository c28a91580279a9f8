//! What to do with a frame, whatever it came over.
//!
//! A transport makes one [`Connection`] per connection (HTTP: per request) and hands it each frame
//! in order; the [`Reply`] is what goes back. What an answer acknowledges is stored durably before
//! [`Connection::handle`] returns.

use std::{sync::Arc, time::SystemTime};

use synddb_core::{
    StreamId, changeset,
    receiver::{Admission, FragmentAdmission, Receiver, Session},
    wire::{
        EntriesFrame, EntryKind, EntryMeta, Message, SnapshotNote, WireError,
        header::{self, VERSION},
        message::{
            Ack, Bye, Challenge, Farewell, Fragment, Hello, HelloAck, Limits, MAX_CONTROL_FRAME,
            Nack, OpenEpoch, Refusal, SnapshotProgress, Staged, TooLarge, feature,
        },
        schema::SchemaChange,
    },
};

use crate::{
    access::{self, Access, Credentials, Denied, Greeting, Identity, Right, Target},
    decompress::decompress,
    rate::{Rate, Rates},
    store::{Change, LogStore, MAX_NUMBER, NewEntry, SnapshotOutcome, StoreError},
};

/// Limits where nothing else is set: frames of 4 MiB, entries of 256 MiB, snapshots of 64 GiB,
/// 8 MiB on their way.
pub const DEFAULT_LIMITS: Limits =
    Limits { max_frame: 4 << 20, max_entry: 256 << 20, max_snapshot: 64 << 30, credit: 8 << 20 };

/// What this side can do, of what a sender may offer.
const FEATURES: u32 = feature::LZ4;
/// How often a decision is made anew because the stream moved meanwhile, before the sender is
/// asked to wait.
const MAX_CONFLICTS: u32 = 16;
/// Bytes that a new session counts as, besides its own.
const HELLO_COST: usize = 16 << 10;
/// What a sender is asked to wait where others keep moving its stream.
const BUSY_MS: u32 = 100;

/// The receiving end of every stream, shared by all connections.
#[derive(Clone)]
pub struct Ingest {
    store: Arc<dyn LogStore>,
    limits: Limits,
    access: Option<Access>,
    rates: Option<Arc<Rates>>,
    clock: fn() -> u64,
}

impl Ingest {
    /// Stores into `store`, within `limits`, with the system's clock, whatever anybody sends.
    pub fn new(store: Arc<dyn LogStore>, limits: Limits) -> Self {
        Self { store, limits, access: None, rates: None, clock: system_time_ms }
    }

    /// Takes from each what it may send, and nothing from others.
    #[must_use]
    pub fn with_access(mut self, access: Access) -> Self {
        self.access = Some(access);
        self
    }

    /// Takes no more than this from each principal; without access control, from each stream.
    #[must_use]
    pub fn with_rate(mut self, rate: Rate) -> Self {
        self.rates = Some(Arc::new(Rates::new(rate)));
        self
    }

    /// Who shows these credentials; `None` where anybody may do everything. Without access control
    /// a key is somebody: TLS asks only those for one whom it may refuse.
    ///
    /// # Errors
    /// They are not known, or there are none.
    pub(crate) fn identify(&self, credentials: &Credentials) -> Result<Option<Identity>, Denied> {
        match (&self.access, &credentials.key) {
            (Some(access), _) => access.identify(credentials).map(Some),
            (None, Some(key)) => Ok(Some(access::of_key(key))),
            (None, None) => Ok(None),
        }
    }

    /// Who may do what, where that is checked.
    pub fn access(&self) -> Option<&Access> {
        self.access.as_ref()
    }

    /// The log.
    pub fn store(&self) -> &Arc<dyn LogStore> {
        &self.store
    }

    /// The limits that senders are told.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }
}

/// What goes back for a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// One frame.
    Frame(Vec<u8>),
    /// Nothing: a Hello that goes on with a session.
    Silence,
    /// The connection must end, after this frame where there is one: nothing that follows can be
    /// trusted.
    Close(Option<Vec<u8>>),
}

/// One connection of a sender.
pub struct Connection {
    ingest: Ingest,
    /// What the connection itself shows: a header's token, a certificate's key.
    shown: Credentials,
    /// Whether more frames of the same sender come over other connections.
    is_request: bool,
    /// Why nobody is let in over this connection.
    refused: Option<Denied>,
    /// The nonce that the token of the next Hello is to be bound to.
    challenged: Option<[u8; 32]>,
    /// Who is at the other end, as the last Hello showed.
    caller: Option<Caller>,
    session: Option<(StreamId, Session)>,
    /// Room for a frame's data, decompressed.
    raw: Vec<u8>,
}

impl Connection {
    /// A connection that nothing came over yet.
    pub fn new(ingest: Ingest) -> Self {
        Self::with_credentials(ingest, Credentials::default())
    }

    /// A connection that shows something before any frame: a token of a header, which counts where
    /// a Hello brings none, and the key of a client certificate.
    pub fn with_credentials(ingest: Ingest, shown: Credentials) -> Self {
        Self {
            ingest,
            shown,
            is_request: false,
            refused: None,
            challenged: None,
            caller: None,
            session: None,
            raw: Vec::new(),
        }
    }

    /// The frames of one request: a session goes on in others, and a nonce that one of them was
    /// answered with is held by the token of the next.
    #[must_use]
    pub fn of_request(mut self) -> Self {
        self.is_request = true;
        self
    }

    /// Tells every Hello why it is not let in.
    pub(crate) fn refusing(mut self, why: Option<Denied>) -> Self {
        self.refused = why;
        self
    }

    pub(crate) fn limits(&self) -> &Limits {
        self.ingest.limits()
    }

    /// Whether a Hello was let in.
    pub(crate) fn has_session(&self) -> bool {
        self.session.is_some()
    }

    /// Takes one whole frame, stores what it brings, and gives the answer. Blocks on the disk.
    pub fn handle(&mut self, frame: &[u8]) -> Reply {
        let (header, body) = match header::open(frame, frame.len()) {
            Ok(opened) => opened,
            Err(WireError::Version { .. }) => {
                let frame = encode(0, &nack(unsupported(), "the frame is of another version"));
                return Reply::Close(Some(frame));
            }
            Err(_) => return Reply::Close(None),
        };
        let tag = header.tag;
        if frame.len() > self.ingest.limits.max_frame as usize {
            let limit = self.ingest.limits.max_frame.into();
            let refusal = Refusal::TooLarge { what: TooLarge::Frame, limit };
            return Reply::Frame(encode(tag, &nack(refusal, "")));
        }
        let message = match Message::decode_body(&header, body) {
            Ok(message) => message,
            Err(WireError::UnknownKind(_)) => {
                return Reply::Frame(encode(tag, &nack(unsupported(), "unknown kind of frame")));
            }
            Err(_) => return Reply::Close(None),
        };
        kill_point!("received");
        match self.answer(&message, frame.len()) {
            Ok(Answer::Silence) => Reply::Silence,
            Ok(Answer::Close) => Reply::Close(None),
            Ok(Answer::Challenge(nonce)) => {
                Reply::Frame(encode(tag, &Message::Challenge(Challenge { nonce })))
            }
            Ok(Answer::HelloAck(ack)) => Reply::Frame(encode(tag, &Message::HelloAck(ack))),
            Ok(Answer::Snapshot(progress)) => {
                Reply::Frame(encode(tag, &Message::SnapshotAck(progress)))
            }
            Ok(Answer::Ack(state)) => Reply::Frame(encode(tag, &self.ack(&state))),
            Err(refused) => Reply::Frame(encode(tag, &nack(refused.refusal, &refused.text))),
        }
    }

    fn ack(&self, state: &Receiver) -> Message<'static> {
        Message::Ack(Ack {
            head: state.head(),
            staged: state.staged(),
            credit: self.ingest.limits.credit,
            time_ms: (self.ingest.clock)(),
            signature: b"",
        })
    }

    fn answer(&mut self, message: &Message<'_>, frame_len: usize) -> Result<Answer, Refused> {
        match message {
            Message::Hello(hello) => return self.hello(hello, frame_len),
            Message::Bye(_) => return Ok(Answer::Close),
            _ => {}
        }
        let (stream, session) = self.session.ok_or(Refusal::NoHello)?;
        self.look_again(stream)?;
        self.count(stream, frame_len)?;
        let mut raw = std::mem::take(&mut self.raw);
        let answer = decompress(message, frame_len, self.ingest.limits.max_frame, &mut raw)
            .map_err(Refused::from)
            .and_then(|message| self.answer_in_session(stream, &session, &message));
        self.raw = raw;
        answer
    }

    fn answer_in_session(
        &self,
        stream: StreamId,
        session: &Session,
        message: &Message<'_>,
    ) -> Result<Answer, Refused> {
        for _ in 0..MAX_CONFLICTS {
            match self.decide(stream, session, message) {
                Err(Failure::Conflict) => {}
                Err(Failure::Refused(refused)) => return Err(refused),
                Ok(answer) => return Ok(answer),
            }
        }
        Err(Refusal::Busy { retry_after_ms: BUSY_MS }.into())
    }

    /// Makes sure that who began the session still may.
    fn look_again(&mut self, stream: StreamId) -> Result<(), Refused> {
        let Some(access) = &self.ingest.access else { return Ok(()) };
        let caller = self.caller.as_mut().ok_or(Refusal::Unauthorized)?;
        if caller.identity.is_fresh(access) {
            return Ok(());
        }
        let owner = self.ingest.store.owner(stream).map_err(Refused::from)?.unwrap_or_default();
        let target = Target { stream, name: &caller.name, owner: &owner };
        let identity = access.identify(&caller.credentials)?;
        identity.may(Right::Append, &target)?;
        if identity.needs_nonce() && !caller.is_bound {
            return Err(Denied::because("the token has to hold a nonce now: connect again").into());
        }
        caller.identity = identity;
        Ok(())
    }

    /// Whose stream it is to be where it is new, and that whoever says Hello may have it.
    fn authorize(&self, hello: &Hello<'_>) -> Result<Option<String>, Failure> {
        let known = self.ingest.store.owner(hello.stream)?;
        let by = self.caller.as_ref().map(|caller| &caller.identity);
        if let Some(identity) = by {
            let right = if known.is_some() { Right::Append } else { Right::Create };
            let owner = known.as_deref().unwrap_or_default();
            identity.may(right, &Target { stream: hello.stream, name: hello.name, owner })?;
        }
        Ok(known.is_none().then(|| by.map(Identity::name).unwrap_or_default().to_owned()))
    }

    /// Who says this Hello.
    fn identify(&mut self, hello: &Hello<'_>) -> Result<Who, Denied> {
        if let Some(why) = &self.refused {
            return Err(why.clone());
        }
        let mut credentials = self.shown.clone();
        if !hello.token.is_empty() {
            credentials.token = hello.token.to_vec();
        }
        let Some(identity) = self.ingest.identify(&credentials)? else { return Ok(Who::Anybody) };
        let is_bound = identity.needs_nonce();
        if is_bound && let Some(access) = &self.ingest.access {
            let greeting = Greeting { stream: hello.stream, nonce: hello.nonce };
            let begins = hello.ticket == 0;
            let bound = match self.challenged {
                // Of this connection.
                Some(nonce) => access.holds(&credentials.token, &nonce),
                None => self.is_request && access.is_bound(&credentials.token, greeting, begins),
            };
            if !bound && begins && self.challenged.is_none() {
                let nonce = access.challenge(greeting)?;
                self.challenged = Some(nonce);
                return Ok(Who::Challenged(nonce));
            }
            if !bound {
                return Err(Denied::because(
                    "the token does not hold the nonce that it was asked to be bound to",
                ));
            }
        }
        let name = hello.name.to_owned();
        Ok(Who::Known(Caller { identity, credentials, name, is_bound }))
    }

    fn count(&self, stream: StreamId, bytes: usize) -> Result<(), Refusal> {
        let Some(rates) = &self.ingest.rates else { return Ok(()) };
        let who = self.caller.as_ref().map(|caller| caller.identity.name());
        rates.take(who, stream, bytes).map_err(|wait| Refusal::Busy {
            retry_after_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).max(1),
        })
    }

    fn hello(&mut self, hello: &Hello<'_>, frame_len: usize) -> Result<Answer, Refused> {
        // Whoever says a new Hello gives up the session before it, whatever becomes of the new one.
        self.session = self.session.take().filter(|(stream, session)| {
            hello.ticket == 0 && *stream == hello.stream && session.began_with(hello)
        });
        self.caller = None;
        self.caller = match self.identify(hello)? {
            Who::Anybody => None,
            Who::Known(caller) => Some(caller),
            Who::Challenged(nonce) => return Ok(Answer::Challenge(nonce)),
        };
        if hello.ticket > 0 {
            self.count(hello.stream, frame_len)?;
            self.authorize(hello).map_err(Refused::from)?;
            self.session = Some((hello.stream, Session::resumed(hello)));
            return Ok(Answer::Silence);
        }
        // A new session is written to the log.
        self.count(hello.stream, frame_len + HELLO_COST)?;
        for _ in 0..MAX_CONFLICTS {
            match self.begin_session(hello) {
                Err(Failure::Conflict) => {}
                Err(Failure::Refused(refused)) => return Err(refused),
                Ok(ack) => return Ok(Answer::HelloAck(ack)),
            }
        }
        Err(Refusal::Busy { retry_after_ms: BUSY_MS }.into())
    }

    fn begin_session(&mut self, hello: &Hello<'_>) -> Result<HelloAck, Failure> {
        let store = &self.ingest.store;
        let now_ms = (self.ingest.clock)();
        let before = store.receiver(hello.stream)?;
        let new_owner = self.authorize(hello)?;
        let mut after = before.clone();
        let session = match self.session {
            // The link repeated the Hello.
            Some((_, session)) => session,
            None => after.handle_hello(hello)?,
        };
        let head = after.head();
        let chain_at_next = if hello.epoch == head.epoch {
            store.chain_at(hello.stream, head.epoch, hello.next_seq.previous())?
        } else {
            None
        };
        let snapshot = store.snapshot_progress(hello.stream, None)?;
        let change = match new_owner {
            Some(owner) => Change::Create { name: hello.name.to_owned(), owner },
            None => {
                let name = (!hello.name.is_empty()).then(|| hello.name.to_owned());
                Change::Session { name }
            }
        };
        store.commit(&before, &after, change, now_ms)?;
        self.session = Some((hello.stream, session));
        Ok(HelloAck {
            version: VERSION,
            features: hello.features & FEATURES,
            nonce: hello.nonce,
            ticket: session.ticket,
            head,
            genesis: after.genesis(),
            chain_at_next,
            staged: after.staged(),
            snapshot,
            limits: self.ingest.limits,
            time_ms: now_ms,
        })
    }

    fn decide(
        &self,
        stream: StreamId,
        session: &Session,
        message: &Message<'_>,
    ) -> Result<Answer, Failure> {
        let before = self.ingest.store.receiver(stream)?;
        let mut after = before.clone();
        let claimed = after.claim(session)?;
        let decision = Decision { ingest: &self.ingest, before: &before, after };
        match message {
            Message::OpenEpoch(open) => decision.open_epoch(open, claimed),
            Message::Entries(frame) => decision.entries(frame, claimed),
            Message::Fragment(fragment) => decision.fragment(fragment, claimed),
            Message::Ping => decision.settle(claimed),
            Message::SnapshotBegin(_) | Message::SnapshotChunk(_) | Message::SnapshotEnd(_) => {
                if claimed {
                    decision.settle(true)?;
                }
                self.snapshot(stream, message)
            }
            _ => Err(unsupported().into()),
        }
    }

    fn snapshot(&self, stream: StreamId, message: &Message<'_>) -> Result<Answer, Failure> {
        let store = &self.ingest.store;
        let max_snapshot = self.ingest.limits.max_snapshot;
        let outcome = match message {
            Message::SnapshotBegin(begin) => {
                if begin.len > max_snapshot {
                    let what = TooLarge::Snapshot;
                    return Err(Refusal::TooLarge { what, limit: max_snapshot }.into());
                }
                let now_ms = (self.ingest.clock)();
                store.begin_snapshot(stream, begin.epoch, begin.id, begin.len, now_ms)?
            }
            Message::SnapshotChunk(chunk) => {
                check_len(chunk.len, chunk.data)?;
                store.write_snapshot(stream, chunk.id, chunk.offset, chunk.data)?
            }
            Message::SnapshotEnd(end) => {
                store.end_snapshot(stream, end.id, end.len, &end.sha256)?
            }
            _ => return Err(unsupported().into()),
        };
        match outcome {
            SnapshotOutcome::Progress(progress) => Ok(Answer::Snapshot(progress)),
            SnapshotOutcome::Gap(progress) => Err(Refusal::SnapshotGap(progress).into()),
            SnapshotOutcome::Invalid => Err(Refusal::SnapshotInvalid.into()),
        }
    }
}

/// Who says a Hello.
enum Who {
    /// That is not asked here.
    Anybody,
    Known(Caller),
    /// It is told once its token holds this nonce.
    Challenged([u8; 32]),
}

/// Who is at the other end of a connection.
struct Caller {
    identity: Identity,
    credentials: Credentials,
    /// The Hello's name of the stream.
    name: String,
    /// Its token is bound to this connection.
    is_bound: bool,
}

/// A decision on one frame: `before` is what it rests on, `after` what it leads to.
struct Decision<'a> {
    ingest: &'a Ingest,
    before: &'a Receiver,
    after: Receiver,
}

impl Decision<'_> {
    /// Nothing but perhaps a claim changes.
    fn settle(self, claimed: bool) -> Result<Answer, Failure> {
        if claimed {
            self.commit(Change::Session { name: None })
        } else {
            Ok(Answer::Ack(self.after))
        }
    }

    fn commit(self, change: Change) -> Result<Answer, Failure> {
        self.ingest.store.commit(self.before, &self.after, change, (self.ingest.clock)())?;
        kill_point!("stored");
        Ok(Answer::Ack(self.after))
    }

    /// Stores a claim that the refusal of the frame must not undo.
    fn refuse(self, claimed: bool, refusal: impl Into<Failure>) -> Result<Answer, Failure> {
        self.settle(claimed)?;
        Err(refusal.into())
    }

    fn open_epoch(mut self, open: &OpenEpoch, claimed: bool) -> Result<Answer, Failure> {
        if open.floor.0 >= MAX_NUMBER {
            let head = self.after.head();
            return self.refuse(claimed, Refusal::HeadMoved(head));
        }
        match self.after.handle_open(open) {
            Err(refusal) => self.refuse(claimed, refusal),
            Ok(None) => self.settle(claimed),
            Ok(Some(head)) => {
                self.after.opened(head);
                self.commit(Change::OpenEpoch { reason: open.reason })
            }
        }
    }

    fn entries(mut self, frame: &EntriesFrame<'_>, claimed: bool) -> Result<Answer, Failure> {
        let mut failed = None;
        let store = &self.ingest.store;
        let stream = self.after.stream();
        let admission = self.after.admit(frame, |seq| {
            store.chain_at(stream, frame.epoch, seq).unwrap_or_else(|error| {
                failed = Some(error);
                None
            })
        });
        if let Some(error) = failed {
            return Err(error.into());
        }
        let (skip, head) = match admission {
            Err(refusal) => return self.refuse(claimed, refusal),
            Ok(Admission::AlreadyHave) => return self.settle(claimed),
            Ok(Admission::Append { skip, head }) => (skip as usize, head),
        };
        match self.new_entries(frame, skip) {
            Err(failure) => self.refuse(claimed, failure),
            Ok(entries) => {
                self.after.appended(head);
                self.commit(Change::Append(entries))
            }
        }
    }

    fn new_entries(&self, frame: &EntriesFrame<'_>, skip: usize) -> Result<Vec<NewEntry>, Failure> {
        let received_ms = (self.ingest.clock)();
        let mut chain = frame.chain_before;
        let mut entries = Vec::new();
        for (at, entry) in frame.entries().enumerate() {
            let (meta, entry) = entry.map_err(|_| Refusal::Corrupt)?;
            chain = chain.next(entry.meta, entry.payload);
            if at >= skip {
                self.check_entry(&meta, entry.payload)?;
                let (meta_bytes, payload) = (entry.meta.to_vec(), entry.payload.to_vec());
                let seq = meta.seq;
                entries.push(NewEntry { seq, meta: meta_bytes, payload, chain, received_ms });
            }
        }
        Ok(entries)
    }

    fn fragment(mut self, fragment: &Fragment<'_>, claimed: bool) -> Result<Answer, Failure> {
        let limit = self.ingest.limits.max_entry;
        if fragment.total > limit {
            let refusal = Refusal::TooLarge { what: TooLarge::Entry, limit };
            return self.refuse(claimed, refusal);
        }
        if let Err(refusal) = check_len(fragment.len, fragment.data) {
            return self.refuse(claimed, refusal);
        }
        match self.after.admit_fragment(fragment) {
            Err(refusal) => self.refuse(claimed, refusal),
            Ok(FragmentAdmission::AlreadyHave) => self.settle(claimed),
            Ok(FragmentAdmission::Stage(staged)) => {
                let (offset, data) = self.new_part(fragment);
                let data = data.to_vec();
                self.after.staged_up_to(staged);
                self.commit(Change::Stage { offset, data })
            }
            Ok(FragmentAdmission::Complete) => self.complete(fragment, claimed),
        }
    }

    /// The part of a piece that is not staged, and where it goes.
    fn new_part<'f>(&self, fragment: &Fragment<'f>) -> (u64, &'f [u8]) {
        let here = match self.before.staged() {
            Some(Staged { seq, chain_after, offset })
                if seq == fragment.seq && chain_after == fragment.chain_after =>
            {
                offset
            }
            _ => 0,
        };
        // Admitted, so the piece begins at or before what is here, and ends behind it.
        let known = here.saturating_sub(fragment.offset) as usize;
        (here, fragment.data.get(known..).unwrap_or_default())
    }

    fn complete(mut self, fragment: &Fragment<'_>, claimed: bool) -> Result<Answer, Failure> {
        let (here, data) = self.new_part(fragment);
        let mut payload = match here {
            0 => Vec::new(),
            _ => self.ingest.store.staged(self.after.stream())?,
        };
        payload.extend_from_slice(data);
        if payload.len() as u64 != fragment.total {
            // Another connection moved the stream between the two reads, or pieces of different
            // totals were sent; only the former goes away by looking again.
            if self.ingest.store.receiver(self.after.stream())? != *self.before {
                return Err(Failure::Conflict);
            }
            return self.unstage(Refusal::Corrupt.into());
        }
        let chain = self.after.head().chain.next(fragment.meta, &payload);
        let head = match self.after.complete(fragment, chain) {
            Ok(head) => head,
            Err(refusal) => return self.unstage(refusal.into()),
        };
        let meta = EntryMeta::decode(fragment.meta).map_err(|_| Refusal::Corrupt)?;
        match self.check_entry(&meta, &payload) {
            Err(failure @ Failure::Refused(Refused { refusal: Refusal::StorageFailed, .. })) => {
                self.refuse(claimed, failure)
            }
            Err(failure) => self.unstage(failure),
            Ok(()) => {
                self.after.appended(head);
                let received_ms = (self.ingest.clock)();
                self.commit(Change::Append(vec![NewEntry {
                    seq: fragment.seq,
                    meta: fragment.meta.to_vec(),
                    payload,
                    chain,
                    received_ms,
                }]))
            }
        }
    }

    fn unstage(mut self, failure: Failure) -> Result<Answer, Failure> {
        self.after.unstage();
        self.commit(Change::Unstage)?;
        Err(failure)
    }

    fn check_entry(&self, meta: &EntryMeta, payload: &[u8]) -> Result<(), Failure> {
        let limit = self.ingest.limits.max_entry;
        if payload.len() as u64 > limit {
            return Err(Refusal::TooLarge { what: TooLarge::Entry, limit }.into());
        }
        let invalid = |text: &str| {
            let refusal = Refusal::InvalidEntry { seq: meta.seq };
            Err(Failure::Refused(Refused { refusal, text: text.to_owned() }))
        };
        if let Err(text) = validate_payload(meta, payload) {
            return invalid(&text);
        }
        if meta.kind == EntryKind::Snapshot {
            let Ok(note) = SnapshotNote::decode(payload) else {
                return invalid("the snapshot's note does not decode");
            };
            // A note must not promise a snapshot that is not there.
            let stored = self.ingest.store.snapshots(self.after.stream())?;
            let is_here = stored.iter().any(|snapshot| {
                snapshot.id == note.id
                    && snapshot.len == note.len
                    && snapshot.sha256 == Some(note.sha256)
            });
            if !is_here {
                return invalid("the snapshot that it names is not stored");
            }
            if note.as_of >= meta.seq {
                return invalid("the snapshot is of a later state than the log holds");
            }
        }
        Ok(())
    }
}

/// Whether a payload is what its meta says, as far as that can be told without a database; if not,
/// what is wrong with it.
fn validate_payload(meta: &EntryMeta, payload: &[u8]) -> Result<(), String> {
    match meta.kind {
        EntryKind::Changeset => {
            changeset::validate(payload).map(drop).map_err(|error| error.to_string())
        }
        EntryKind::Schema => {
            SchemaChange::parse(payload).map(drop).map_err(|error| error.to_string())
        }
        _ => Ok(()),
    }
}

fn check_len(len: u32, data: &[u8]) -> Result<(), Refusal> {
    if data.len() != len as usize {
        return Err(Refusal::Corrupt);
    }
    Ok(())
}

#[allow(clippy::large_enum_variant)] // lives on the stack for the length of one call
enum Answer {
    Silence,
    Close,
    Challenge([u8; 32]),
    HelloAck(HelloAck),
    Ack(Receiver),
    Snapshot(SnapshotProgress),
}

struct Refused {
    refusal: Refusal,
    text: String,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, text: String::new() }
    }
}

enum Failure {
    /// The stream moved meanwhile: decide anew.
    Conflict,
    Refused(Refused),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal.into())
    }
}

impl From<Denied> for Refused {
    fn from(denied: Denied) -> Self {
        Self { refusal: Refusal::Unauthorized, text: denied.to_string() }
    }
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Conflict => Refusal::Busy { retry_after_ms: BUSY_MS }.into(),
            Failure::Refused(refused) => refused,
        }
    }
}

impl From<Denied> for Failure {
    fn from(denied: Denied) -> Self {
        Self::Refused(denied.into())
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the log cannot be read");
        Refusal::StorageFailed.into()
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict => Self::Conflict,
            error => {
                tracing::error!(%error, "a frame could not be stored");
                Self::Refused(Refusal::StorageFailed.into())
            }
        }
    }
}

fn unsupported() -> Refusal {
    Refusal::Unsupported { version_min: VERSION, version_max: VERSION }
}

pub(crate) fn nack(refusal: Refusal, text: &str) -> Message<'_> {
    Message::Nack(Nack { refusal, text })
}

/// A frame that says goodbye, or why nothing else is said.
pub(crate) fn farewell(farewell: Farewell) -> Vec<u8> {
    encode(0, &Message::Bye(Bye { farewell }))
}

pub(crate) fn encode(tag: u32, message: &Message<'_>) -> Vec<u8> {
    let mut buffer = vec![0; 1024];
    let len = match message.encode(tag, &mut buffer) {
        Ok(len) => len,
        Err(_) => {
            buffer.resize(MAX_CONTROL_FRAME, 0);
            message.encode(tag, &mut buffer).expect("answers are control frames")
        }
    };
    buffer.truncate(len);
    buffer
}

fn system_time_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
