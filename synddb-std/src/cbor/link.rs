//! The thread that carries the outbox to an existing sequencer.

use std::{
    sync::Arc,
    time::{Duration, Instant as Clock},
};

use synddb_core::{
    Instant, SeqNo, StreamId,
    http::{HttpGet, HttpRequest, HttpResponse},
    sender::SenderStats,
    transport::{TransportError, TransportErrorKind},
    wire::{
        EntryKind, EntryMeta,
        message::{Head, ResyncReason},
    },
};

use super::{
    body::{self, Answer, Batch, CONTENT_TYPE, Status},
    machine::{Known, Load, Machine, Policy, Refusal, Step, Verdict},
    split,
};
use crate::{
    Config, Signed,
    link::{Base, LinkState, Receipt, queued, random, wall_clock_ms},
    outbox::{Outbox, OutboxError, State, StoredSnapshot},
    shared::{Orders, Shared},
    token::{TokenProvider, TokenRequest},
};

/// How long to wait before a failed outbox is tried again.
const OUTBOX_RETRY: Duration = Duration::from_secs(1);
/// Longest answer that is read.
const MAX_ANSWER: usize = 64 << 10;
/// Changesets in one request.
const MAX_COUNT: u64 = 1000;
/// Longest name of a request: a stream, two numbers and what is between them.
const MAX_ID: usize = 96;
/// Characters of an answer that an error shows.
const EXCERPT: usize = 160;

/// See the module's documentation.
pub(crate) struct CborLink<E> {
    exchange: E,
    machine: Machine,
    outbox: Arc<Outbox>,
    shared: Arc<Shared>,
    stream: StreamId,
    token: Option<TokenProvider>,
    token_refused: bool,
    linger: Duration,
    max_batch: usize,
    /// Snapshots of generations that have not begun.
    bases: Vec<Base>,
    /// Why the next snapshot is needed.
    reason: ResyncReason,
    signed: Option<Arc<Signed>>,
    time_ms: u64,
    started: Clock,
    flushes_seen: u64,
    /// Somebody waits for what is queued.
    urgent: bool,
    sent_at: Option<Clock>,
    answer: Vec<u8>,
}

/// What there is to send.
enum Work {
    Entries,
    Base,
}

impl<E: HttpGet> CborLink<E> {
    /// A link that goes on where the outbox stands.
    ///
    /// # Errors
    /// The outbox cannot be read, or the operating system gives no randomness.
    pub(crate) fn new(
        exchange: E,
        config: &Config,
        outbox: Arc<Outbox>,
        shared: Arc<Shared>,
    ) -> Result<Self, OutboxError> {
        let known = known(&outbox)?;
        let policy = Policy {
            on_doubt: config.cbor.on_doubt,
            flush: config.cbor.flush,
            max_body: config.cbor.max_body_bytes,
            keep_alive: config.keep_alive,
            backoff: Default::default(),
        };
        let machine = Machine::new(policy, known, u64::from_le_bytes(random()?));
        shared.cbor_stats(*machine.stats());
        Ok(Self {
            exchange,
            machine,
            stream: outbox.state()?.stream,
            outbox,
            shared,
            token: config.token_provider.clone(),
            token_refused: false,
            linger: config.push_interval,
            max_batch: config.max_batch_size,
            bases: Vec::new(),
            reason: ResyncReason::FirstAttach,
            signed: None,
            time_ms: 0,
            started: Clock::now(),
            flushes_seen: 0,
            urgent: false,
            sent_at: None,
            answer: Vec::new(),
        })
    }

    /// Runs until told to stop.
    pub(crate) fn run(mut self) {
        let _span = tracing::info_span!("synddb_link", stream = %self.stream).entered();
        loop {
            self.take_orders();
            if self.shared.link_should_end() {
                break;
            }
            let wait = match self.turn() {
                Ok(wait) => wait,
                Err(error) => {
                    tracing::error!(%error, "the outbox failed");
                    self.failed(error.to_string());
                    // As after a crash: what it holds is what counts.
                    Some(Some(OUTBOX_RETRY))
                }
            };
            self.shared.cbor_stats(*self.machine.stats());
            if let Some(wait) = wait {
                self.shared.sleep_link(self.flushes_seen, wait);
            }
        }
        self.shared.link_finished();
    }

    fn now(&self) -> Instant {
        Instant::from_micros(u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn take_orders(&mut self) {
        let stats = SenderStats { refusals: self.machine.stats().refusals, ..Default::default() };
        let Orders { bases, flushes, restart, outbox_replaced, .. } = self.shared.orders(stats);
        if outbox_replaced {
            self.bases.clear();
            self.machine.forget_base();
        }
        if restart {
            self.machine.hurry();
        }
        if let Some(newest) = bases.into_iter().max_by_key(|base| base.generation) {
            self.bases.clear();
            self.bases.push(newest);
            self.shared.uploads(1);
        }
        if flushes != self.flushes_seen {
            self.flushes_seen = flushes;
            self.urgent = true;
            self.machine.hurry();
        }
    }

    /// One step. How long to sleep until the next; for ever where that is `Some(None)`.
    fn turn(&mut self) -> Result<Option<Option<Duration>>, OutboxError> {
        // Counted before the look at the outbox: the writer may begin one behind it.
        let epochs_begun = self.shared.epochs_begun();
        let state = self.outbox.state()?;
        let now = self.now();
        let (work, due) = self.work(&state);
        match self.machine.step(now, work.is_some()) {
            Step::Wait(until) => {
                let until = until.map(|until| until.since(now));
                return Ok(Some([until, due].into_iter().flatten().min()));
            }
            Step::Look => self.look(&state, work.is_some())?,
            Step::Flush => self.flush(&state)?,
            Step::Send => {
                self.sent_at = Some(Clock::now());
                match work {
                    Some(Work::Base) => self.send_base(&state)?,
                    _ => self.send_entries(&state)?,
                }
            }
        }
        let is_behind = !self.has_base(&state) && self.bases.is_empty() && state.wish.is_none();
        if is_behind && self.machine.known().generation != Some(self.outbox.state()?.generation) {
            self.shared.resync_needed(self.reason, epochs_begun);
        }
        Ok(None)
    }

    /// What may be sent now, or when that will be.
    fn work(&mut self, state: &State) -> (Option<Work>, Option<Duration>) {
        if state.wish.is_none() && !self.bases.is_empty() {
            // Of a wish that was given up.
            self.bases.clear();
            self.shared.uploads(0);
        }
        if self.has_base(state) && self.machine.known().next_seq <= state.last_seq.0 {
            let waited = self.sent_at.map_or(self.linger, |at| at.elapsed());
            return match self.linger.checked_sub(waited).filter(|left| !left.is_zero()) {
                Some(left) if !self.urgent => (None, Some(left)),
                _ => (Some(Work::Entries), None),
            };
        }
        if self.bases.is_empty() {
            self.urgent = false;
            return (None, None);
        }
        (Some(Work::Base), None)
    }

    /// The current generation's snapshot is over there.
    fn has_base(&self, state: &State) -> bool {
        self.machine.known().generation == Some(state.generation)
            && state.base_noted
            && !state.collapsed
    }

    fn look(&mut self, state: &State, has_work: bool) -> Result<(), OutboxError> {
        match self.exchange.get("/status", &mut self.answer, MAX_ANSWER) {
            Ok(HttpResponse { status: 200, .. }) => match Status::read(&self.answer) {
                Some(Status { current_sequence, signer_address }) => {
                    let now = self.now();
                    let verdict = self.machine.looked(now, current_sequence, &signer_address);
                    // What is to be sent next may yet be refused.
                    if !has_work {
                        self.up();
                    }
                    self.heed(state, verdict)?;
                }
                None => self.lost(
                    "GET /status was answered with 200, and not as a SyndDB sequencer does: is the \
                     address right, or a proxy in between?"
                        .to_owned() + &self.excerpt(),
                    false,
                    None,
                ),
            },
            Ok(response) => {
                let told = self.told("GET /status", response);
                self.lost(told, false, response.retry_after);
            }
            Err(error) => self.lost_by(&error),
        }
        Ok(())
    }

    fn flush(&mut self, state: &State) -> Result<(), OutboxError> {
        let request =
            HttpRequest { path: "/batch/flush", content_type: CONTENT_TYPE, token: "", body: &[] };
        match self.exchange.post(request, &mut self.answer, MAX_ANSWER) {
            Ok(HttpResponse { status: 200..=299, .. }) => {
                self.machine.flushed();
                // Whether what was flushed is still there.
                self.look(state, true)?;
            }
            Ok(response) => {
                let told = self.told("POST /batch/flush", response);
                self.lost(told, false, response.retry_after);
            }
            Err(error) => self.lost_by(&error),
        }
        Ok(())
    }

    fn send_entries(&mut self, state: &State) -> Result<(), OutboxError> {
        let Some(token) = self.token() else { return Ok(()) };
        let Known { next_seq, part, number, .. } = *self.machine.known();
        let limit = self.machine.body_limit(false);
        let mut batch = Batch::new(MAX_ID, &token);
        let (mut expected, mut bytes) = (next_seq, 0);
        let (mut oversized, mut fault) = (None, None);
        self.outbox.read(SeqNo(next_seq), |seq, meta, payload| {
            if seq.0 != expected {
                fault.get_or_insert(Err(OutboxError::Corrupt("entries are missing")));
                return false;
            }
            let Ok(meta) = EntryMeta::decode(meta) else {
                fault.get_or_insert(Err(OutboxError::Corrupt("meta")));
                return false;
            };
            if meta.kind != EntryKind::Changeset {
                // Nothing over there understands it.
                fault = (batch.count() == 0).then_some(Ok(ResyncReason::SchemaChanged));
                return false;
            }
            let is_first = batch.count() == 0;
            let fits = payload.len() <= batch.room(limit);
            if is_first && (part > 0 || !fits) {
                oversized = Some((payload.to_vec(), meta.time_ms / 1000));
                return false;
            }
            if !fits || batch.count() == MAX_COUNT || (!is_first && bytes > self.max_batch) {
                return false;
            }
            batch.push(payload, number + batch.count() + 1, meta.time_ms / 1000);
            bytes += payload.len();
            expected += 1;
            true
        })?;
        match fault {
            Some(Err(error)) => return Err(error),
            Some(Ok(reason)) => return self.give_up(reason),
            None => {}
        }
        let mut load = Load::Changesets { next_seq: expected, part: 0, count: batch.count() };
        if let Some((payload, time)) = oversized {
            let piece = match split::piece(&payload, part, batch.room(limit)) {
                Ok(piece) => piece,
                Err(why) => {
                    tracing::warn!(?why, limit, "a changeset that cannot be split: a snapshot");
                    return self.give_up(ResyncReason::EntryRefused);
                }
            };
            if part == 0 && !piece.is_last {
                self.machine.split();
            }
            batch.push(&piece.changeset, number + 1, time);
            let (next_seq, part) =
                if piece.is_last { (expected + 1, 0) } else { (expected, piece.end) };
            load = Load::Changesets { next_seq, part, count: 1 };
        }
        if batch.count() == 0 {
            return Err(OutboxError::Corrupt("entries are missing"));
        }
        let id = format!("{}-{}-{}", self.stream, number + 1, number + batch.count());
        let body = batch.finish(&id, &token);
        self.post(state, "/changesets", load, &body)
    }

    fn send_base(&mut self, state: &State) -> Result<(), OutboxError> {
        let Some(token) = self.token() else { return Ok(()) };
        let limit = self.machine.body_limit(true) as u64;
        let number = self.machine.known().number;
        let Some(base) = self.bases.last_mut() else { return Ok(()) };
        let generation = base.generation;
        let id = format!("{}-snapshot-{generation}-{number}", self.stream);
        let room = limit.saturating_sub(body::snapshot_overhead(&id, token.len()) as u64);
        if base.len > room {
            self.refuse_base(room);
            return Ok(());
        }
        let mut data = vec![0; usize::try_from(base.len).unwrap_or(usize::MAX)];
        if let Err(error) = base.image.read(0, &mut data) {
            return Err(OutboxError::Sqlite(format!("the snapshot's file: {error}")));
        }
        let body = body::snapshot(&data, wall_clock_ms() / 1000, number, &id, &token);
        drop(data);
        self.post(state, "/snapshots", Load::Snapshot { generation }, &body)
    }

    fn post(
        &mut self,
        state: &State,
        path: &str,
        load: Load,
        body: &[u8],
    ) -> Result<(), OutboxError> {
        let is_snapshot = matches!(load, Load::Snapshot { .. });
        self.machine.sending(load, body.len());
        self.keep(true)?;
        let request = HttpRequest { path, content_type: CONTENT_TYPE, token: "", body };
        let response = match self.exchange.post(request, &mut self.answer, MAX_ANSWER) {
            Ok(response) => response,
            Err(error) => {
                self.lost_by(&error);
                return Ok(());
            }
        };
        let told = || format!("POST {path}");
        let text = String::from_utf8_lossy(&self.answer).to_ascii_lowercase();
        let is_limit = text.contains("length limit") || text.contains("too large");
        match response.status {
            201 => match Answer::read(&self.answer) {
                Some(answer) => return self.answered(state, &answer),
                None => {
                    let told = self.told(&told(), response);
                    self.lost(told, false, None);
                }
            },
            413 => self.too_large(is_snapshot, body.len(), &told(), response),
            400 if is_limit => self.too_large(is_snapshot, body.len(), &told(), response),
            401 | 403 => {
                self.token_refused = true;
                self.refused(&told(), response);
            }
            300..=407 | 409..=499 => self.refused(&told(), response),
            // It may have been stored all the same.
            _ => {
                let told = self.told(&told(), response);
                self.lost(told, false, response.retry_after);
            }
        }
        self.keep(false)
    }

    fn answered(&mut self, state: &State, answer: &Answer) -> Result<(), OutboxError> {
        self.token_refused = false;
        self.signed = Some(Arc::new(answer.signed()));
        // Seconds; milliseconds would be of a year that is far away.
        self.time_ms = match answer.timestamp {
            seconds if seconds < 100_000_000_000 => seconds * 1000,
            millis => millis,
        };
        if let Some(warning) = &answer.batch_warning {
            tracing::warn!(warning, "the sequencer has not kept it: a flush has to");
            self.failed(format!("the sequencer took it with a warning: {warning}"));
        }
        let verdict = self.machine.answered(answer.sequence, answer.batch_warning.is_some());
        self.heed(state, verdict)
    }

    fn too_large(&mut self, is_snapshot: bool, len: usize, request: &str, response: HttpResponse) {
        if is_snapshot {
            let now = self.now();
            self.machine.refused(now, Refusal::Other, None);
            self.machine.hurry();
            let base = self.bases.last().map_or(0, |base| base.len);
            tracing::error!(len, "the sequencer refused a snapshot for its size");
            self.refuse_base(base.saturating_sub(1));
            return;
        }
        let told = self.told(request, response);
        tracing::info!(len, told, "smaller requests");
        let now = self.now();
        self.machine.refused(now, Refusal::TooLarge, None);
    }

    /// The snapshot will not fit, whatever is tried.
    fn refuse_base(&mut self, limit: u64) {
        let len = self.bases.last().map_or(0, |base| base.len);
        self.bases.clear();
        self.machine.given_up();
        self.up();
        self.shared.snapshot_refused(len, Some(limit), true);
        self.shared.uploads(0);
    }

    /// Changesets lead no further.
    fn give_up(&mut self, reason: ResyncReason) -> Result<(), OutboxError> {
        self.reason = reason;
        self.machine.forget_base();
        self.up();
        self.keep(false)
    }

    fn heed(&mut self, state: &State, verdict: Verdict) -> Result<(), OutboxError> {
        if let Some(reason) = verdict.resync {
            tracing::warn!(?reason, "the sequencer's log leads nowhere: a snapshot is needed");
            self.reason = reason;
            self.up();
        }
        self.keep(false)?;
        match verdict.stored {
            None => Ok(()),
            Some(Load::Changesets { part, .. }) => {
                self.up();
                if part == 0 { self.acknowledge(state) } else { Ok(()) }
            }
            Some(Load::Snapshot { generation }) => {
                self.up();
                self.base_stored(state, generation)
            }
        }
    }

    /// Everything before the entry that goes next is stored.
    fn acknowledge(&mut self, state: &State) -> Result<(), OutboxError> {
        let head = Head {
            epoch: state.position.epoch,
            next_seq: SeqNo(self.machine.known().next_seq),
            chain: state.position.chain,
            base_complete: true,
            ..Head::default()
        };
        let state = self.outbox.trim(head)?;
        self.receipt(head, &state);
        Ok(())
    }

    fn base_stored(&mut self, state: &State, generation: i64) -> Result<(), OutboxError> {
        let at = self.bases.iter().position(|base| base.generation == generation);
        let Some(base) = at.map(|at| self.bases.remove(at)) else {
            // Confirmed after a restart: the outbox knows, or another snapshot is on its way.
            return if state.generation == generation { self.acknowledge(state) } else { Ok(()) };
        };
        let stored = StoredSnapshot {
            generation,
            is_base: true,
            as_of_commit: base.as_of_commit,
            as_of_bytes: base.as_of_bytes,
            len: base.len,
        };
        let state = self.outbox.base_is_stored(&stored)?;
        // Now the writer may begin another.
        self.shared.uploads(self.bases.len());
        let Some(state) = state else { return Ok(()) };
        tracing::info!(generation, commit = base.as_of_commit, "a snapshot is stored");
        self.shared.snapshot_noted(base.as_of_commit);
        let Head { epoch, next_seq, .. } = Head::default();
        let next_seq = next_seq.max(SeqNo::FIRST);
        self.receipt(Head { epoch, next_seq, base_complete: true, ..Head::default() }, &state);
        Ok(())
    }

    fn receipt(&mut self, head: Head, state: &State) {
        let commit = state.acked_commit.max(state.from_commit);
        let (time_ms, signed) = (self.time_ms, self.signed.clone());
        self.shared.outbox_holds(queued(state));
        // Whoever waited finds in them what it took.
        self.shared.cbor_stats(*self.machine.stats());
        self.shared.acknowledged(Receipt { stream: self.stream, head, commit, time_ms, signed });
    }

    fn keep(&self, durable: bool) -> Result<(), OutboxError> {
        let known = serde_json::to_string(self.machine.known());
        self.outbox.keep_peer(&known.map_err(|_| OutboxError::Corrupt("a note"))?, durable)
    }

    /// The token for the next request, empty where there is none; `None` where it cannot be had.
    fn token(&mut self) -> Option<String> {
        let request = TokenRequest { refused: self.token_refused, ..Default::default() };
        match self.token.as_ref().map(|provider| provider.token(&request)).transpose() {
            Ok(token) => Some(token.unwrap_or_default()),
            Err(error) => {
                let now = self.now();
                self.machine.refused(now, Refusal::Other, None);
                self.failed(error);
                None
            }
        }
    }

    fn refused(&mut self, request: &str, response: HttpResponse) {
        let told = self.told(request, response);
        let now = self.now();
        self.machine.refused(now, Refusal::Other, response.retry_after);
        self.failed(told);
    }

    fn lost_by(&mut self, error: &E::Error) {
        let kind = error.kind();
        let was_sent = kind != TransportErrorKind::Unreachable;
        let was_reset = was_sent && kind != TransportErrorKind::TimedOut;
        let now = self.now();
        if self.machine.lost(now, was_reset, was_sent, error.retry_after()) {
            let len = self.bases.last().map_or(0, |base| base.len);
            self.refuse_base(len.saturating_sub(1));
            return;
        }
        self.failed(error.to_string());
    }

    fn lost(&mut self, told: String, was_reset: bool, retry_after: Option<Duration>) {
        let now = self.now();
        self.machine.lost(now, was_reset, true, retry_after);
        self.failed(told);
    }

    fn up(&self) {
        self.shared.link_is(|link, _| *link = LinkState::Up);
    }

    fn failed(&self, error: String) {
        let failures = self.machine.failures().max(1);
        self.shared.link_is(|link, attempts| {
            *attempts += 1;
            *link = LinkState::Failing { failures, error };
        });
    }

    /// What an answer says, for people.
    fn told(&self, request: &str, response: HttpResponse) -> String {
        let hint = match response.status {
            401 | 403 => ": access refused; is an attestation token configured, and the right one?",
            404 | 405 if request.ends_with("/batch/flush") => {
                ": this sequencer has no flush: set Config::cbor.flush to false, and what it has in \
                 memory alone counts as stored"
            }
            404 | 405 | 415 => {
                ": this address does not speak SyndDB's CBOR; is it a synddb sequencer? Then write \
                 its address without `synddb+`"
            }
            300..=399 => ": redirects are not followed, use the address it redirects to",
            _ => "",
        };
        format!("{request} was answered with status {}{hint}{}", response.status, self.excerpt())
    }

    fn excerpt(&self) -> String {
        let text = String::from_utf8_lossy(&self.answer);
        let line: Vec<_> = text.split(|c: char| c.is_whitespace() || c.is_control()).collect();
        let line: String = line.join(" ").chars().take(EXCERPT).collect();
        if line.trim().is_empty() { String::new() } else { format!("; it says: {}", line.trim()) }
    }
}

/// What the outbox keeps of the far side; nothing where it was never asked.
pub(crate) fn known(outbox: &Outbox) -> Result<Known, OutboxError> {
    Ok(match outbox.peer()? {
        // Of a newer version: a snapshot begins anew.
        Some(known) => serde_json::from_str(&known).unwrap_or_default(),
        None => Known::default(),
    })
}
