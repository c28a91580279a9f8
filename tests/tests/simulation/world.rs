//! The world: virtual time, a faulty link, crashes, copies, and the checks.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    ops::AddAssign,
    time::Duration,
};

use synddb_core::{
    Instant, Rng,
    receiver::Session,
    transport::TransportErrorKind,
    wire::{
        Message,
        message::{Head, ResyncReason},
    },
};

use crate::{
    app::{App, Ask, Disk},
    sequencer::Sequencer,
};

/// A promise broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sabotage {
    NoDedupe,
    AckBeforeStore,
    EarlyTrim,
    IgnoredEpoch,
    SwappedOrder,
}

impl Sabotage {
    pub(crate) const ALL: [Self; 5] = [
        Self::NoDedupe,
        Self::AckBeforeStore,
        Self::EarlyTrim,
        Self::IgnoredEpoch,
        Self::SwappedOrder,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::NoDedupe => "no-dedupe",
            Self::AckBeforeStore => "ack-before-store",
            Self::EarlyTrim => "early-trim",
            Self::IgnoredEpoch => "ignored-epoch",
            Self::SwappedOrder => "swapped-order",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|sabotage| sabotage.name() == name)
    }

    pub(crate) fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

/// What happened, over all runs.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    commits: u64,
    dropped: u64,
    repeated: u64,
    damaged: u64,
    broken: u64,
    refused: u64,
    app_crashes: u64,
    sequencer_crashes: u64,
    backups: u64,
    copies: u64,
    resyncs: u64,
    resent: u64,
    compressed: u64,
    not_understood: u64,
}

impl Totals {
    pub(crate) fn faults(&self) -> [(&'static str, u64); 12] {
        [
            ("a dropped frame", self.dropped),
            ("a repeated frame", self.repeated),
            ("a damaged frame", self.damaged),
            ("a broken connection", self.broken),
            ("a refused connection", self.refused),
            ("a crash of the application", self.app_crashes),
            ("a crash of the sequencer", self.sequencer_crashes),
            ("a sequencer restored from a backup", self.backups),
            ("a copied application", self.copies),
            ("a resend", self.resent),
            ("a compressed frame", self.compressed),
            ("a compressed frame at an older sequencer", self.not_understood),
        ]
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, run: Self) {
        self.commits += run.commits;
        self.dropped += run.dropped;
        self.repeated += run.repeated;
        self.damaged += run.damaged;
        self.broken += run.broken;
        self.refused += run.refused;
        self.app_crashes += run.app_crashes;
        self.sequencer_crashes += run.sequencer_crashes;
        self.backups += run.backups;
        self.copies += run.copies;
        self.resyncs += run.resyncs;
        self.resent += run.resent;
        self.compressed += run.compressed;
        self.not_understood += run.not_understood;
    }
}

/// A frame on its way, or the end of a connection; ordered by time, then by sending.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Delivery {
    at: Instant,
    order: u64,
    app: usize,
    connection: u64,
    to_sequencer: bool,
    frame: Vec<u8>,
}

struct Node {
    app: App,
    connection: Option<u64>,
    /// `order` of the youngest answer that told it where the stream stands.
    heard: u64,
}

impl Node {
    fn new(app: App) -> Self {
        Self { app, connection: None, heard: 0 }
    }
}

/// What puts the sequencer back to where it was when the backup was made.
type Restore = Box<dyn FnOnce(&mut Sequencer)>;

pub(crate) struct World {
    now: Instant,
    rng: Rng,
    nodes: Vec<Node>,
    sequencer: Sequencer,
    /// The sequencer's side of each connection: who said Hello there.
    sessions: BTreeMap<u64, Option<Session>>,
    /// Where the stream stood and who held it when that was last looked at, and the `order` of
    /// the last change of it.
    seen: (Head, Session),
    changed: u64,
    deliveries: BinaryHeap<Reverse<Delivery>>,
    order: u64,
    calm: bool,
    totals: Totals,
    sabotage: Option<Sabotage>,
    trace: bool,
}

const STEPS: u64 = 400;

impl World {
    pub(crate) fn new(seed: u64, sabotage: Option<Sabotage>) -> Self {
        let mut rng = Rng::new(seed);
        let mut app = App::new(1, Disk::default(), rng.next_u64(), sabotage);
        app.take_base(ResyncReason::FirstAttach);
        Self {
            now: Instant::from_micros(1),
            rng,
            nodes: vec![Node::new(app)],
            sequencer: Sequencer::new(sabotage),
            sessions: BTreeMap::new(),
            seen: Default::default(),
            changed: 0,
            deliveries: BinaryHeap::new(),
            order: 0,
            calm: false,
            totals: Totals::default(),
            sabotage,
            trace: std::env::var_os("SYNDDB_SIM_TRACE").is_some(),
        }
    }

    pub(crate) fn run(mut self) -> Result<Totals, String> {
        // A panic inside is a broken promise too; sabotages rely on that.
        let mut backup: Option<Restore> = None;
        for _ in 0..STEPS {
            self.random_event(&mut backup)?;
            self.note_change();
            self.drain()?;
            self.advance()?;
        }
        self.calm = true;
        self.sequencer.busy = false;
        for _ in 0..20_000 {
            self.drain()?;
            // Of two copies one learns, by its next Ping at the latest, that it lost the stream.
            let active = self.nodes.iter().filter(|node| !node.app.stopped).count();
            let done = self.nodes.iter().all(|node| self.is_done(node));
            if done && active == 1 && self.deliveries.is_empty() {
                break;
            }
            // Only a sequencer that was put back in time can stop both copies. They report it and
            // queue; somebody restarts the one that is to go on.
            if active == 0 && self.totals.backups > 0 {
                self.nodes[0].app.restart(self.now, true);
            }
            for node in &mut self.nodes {
                node.app.flush(self.now);
            }
            self.advance()?;
        }
        self.check_end()?;
        self.totals.resent += self.nodes.iter().map(|node| node.app.resent()).sum::<u64>();
        self.totals.compressed = self.sequencer.compressed;
        self.totals.not_understood = self.sequencer.not_understood;
        Ok(self.totals)
    }

    /// Everything arrived, as the application knows for certain: what it heard last is younger
    /// than the last change at the sequencer. A connection that broke and a stream that moved on
    /// look like success until the next Hello or Ping.
    fn is_done(&self, node: &Node) -> bool {
        node.app.stopped || (node.app.has_sent_everything() && node.heard > self.changed)
    }

    fn note_change(&mut self) {
        let stands = self.sequencer.stands();
        if stands != self.seen {
            self.seen = stands;
            self.changed = self.order;
        }
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.rng.up_to(one_in - 1) == 0
    }

    fn random_event(&mut self, backup: &mut Option<Restore>) -> Result<(), String> {
        let at = self.rng.up_to(self.nodes.len() as u64 - 1) as usize;
        let now = self.now;
        match self.rng.up_to(99) {
            0..=49 => {
                for _ in 0..=self.rng.up_to(4) {
                    self.nodes[at].app.commit(now);
                    self.totals.commits += 1;
                }
            }
            50..=52 => {
                let unclean = self.chance(3);
                self.totals.app_crashes += 1;
                self.totals.resent += self.nodes[at].app.resent();
                self.nodes[at].connection = None;
                self.nodes[at].app.restart(now, unclean);
            }
            53..=55 => {
                self.totals.sequencer_crashes += 1;
                self.sequencer.crash();
                self.sessions.clear();
                for at in 0..self.nodes.len() {
                    self.break_connection(at);
                }
            }
            56..=58 => {
                self.totals.broken += 1;
                self.break_connection(at);
            }
            59 => self.nodes[at].app.take_base(ResyncReason::SchemaChanged),
            60..=61 => self.sequencer.busy = !self.sequencer.busy,
            62 if backup.is_none() => *backup = Some(Box::new(self.sequencer.backup())),
            // A restored backup takes back what was acknowledged: checked by convergence only.
            63 if self.sabotage.is_none() => {
                if let Some(restore) = backup.take() {
                    restore(&mut self.sequencer);
                    self.totals.backups += 1;
                    self.sessions.clear();
                    for at in 0..self.nodes.len() {
                        self.break_connection(at);
                    }
                }
            }
            64 if self.nodes.len() == 1 => {
                self.totals.copies += 1;
                let disk = self.nodes[0].app.disk.clone();
                let commits = disk.commits;
                let mut app = App::new(2, disk, self.rng.next_u64(), self.sabotage);
                app.forked = Some((1, commits));
                self.nodes.push(Node::new(app));
            }
            65 => self.sequencer.late_sync(),
            66..=68 => self.nodes[at].app.flush(now),
            // Another version takes over; with HTTP a session goes on there.
            69 => self.sequencer.knows_lz4 = !self.sequencer.knows_lz4,
            _ => {}
        }
        Ok(())
    }

    fn break_connection(&mut self, at: usize) {
        if self.nodes[at].connection.take().is_some() {
            self.nodes[at].app.disconnected(self.now, TransportErrorKind::Disconnected);
        }
    }

    /// Lets the applications do what they want to do now.
    fn drain(&mut self) -> Result<(), String> {
        for at in 0..self.nodes.len() {
            if let Some(reason) = self.nodes[at].app.wants_base
                && (self.calm || self.chance(3))
            {
                self.totals.resyncs += 1;
                self.nodes[at].app.take_base(reason);
            }
            while let Some(ask) = self.nodes[at].app.poll(self.now) {
                match ask {
                    Ask::Connect if !self.calm && self.chance(6) => {
                        self.totals.refused += 1;
                        self.nodes[at].app.disconnected(self.now, TransportErrorKind::Unreachable);
                    }
                    Ask::Connect => {
                        self.order += 1;
                        self.nodes[at].connection = Some(self.order);
                        self.sessions.insert(self.order, None);
                        self.nodes[at].app.connected(self.now);
                    }
                    Ask::Close => self.nodes[at].connection = None,
                    Ask::Send(frame) => self.send(at, frame, true),
                    Ask::Acked(head) => {
                        let durable = self.sequencer.durable_head();
                        let held = head.epoch < durable.epoch
                            || (head.epoch == durable.epoch && head.next_seq <= durable.next_seq);
                        // What is acknowledged and then taken back by a restored backup is not
                        // held against the acknowledgement.
                        if !held && self.totals.backups == 0 {
                            return Err(format!(
                                "acknowledged up to {} of epoch {}, durable is {} of epoch {}",
                                head.next_seq, head.epoch, durable.next_seq, durable.epoch
                            ));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn send(&mut self, at: usize, frame: Vec<u8>, to_sequencer: bool) {
        let Some(connection) = self.nodes[at].connection else { return };
        let mut copies = 1;
        let mut frame = frame;
        if !self.calm {
            if self.chance(25) {
                self.totals.dropped += 1;
                copies = 0;
            } else if self.chance(25) {
                self.totals.repeated += 1;
                copies = 2;
            }
            if self.chance(40) {
                self.totals.damaged += 1;
                let bit = self.rng.up_to(frame.len() as u64 * 8 - 1);
                frame[(bit / 8) as usize] ^= 1 << (bit % 8);
            }
        }
        for copy in 0..copies {
            self.order += 1;
            let order = self.order;
            // Mostly in order, sometimes late: a link made of several.
            let delay = if !self.calm && (copy > 0 || self.chance(15)) {
                self.rng.up_to(300_000)
            } else {
                500
            };
            let at_time = self.now + Duration::from_micros(delay);
            self.deliveries.push(Reverse(Delivery {
                at: at_time,
                order,
                app: at,
                connection,
                to_sequencer,
                frame: frame.clone(),
            }));
        }
    }

    /// On to the next thing that happens by itself.
    fn advance(&mut self) -> Result<(), String> {
        let timer = self.nodes.iter().filter_map(|node| node.app.timeout()).min();
        let delivery = self.deliveries.peek().map(|Reverse(delivery)| delivery.at);
        let step = self.now + Duration::from_micros(1 + self.rng.up_to(20_000));
        let next = [timer, delivery].into_iter().flatten().min();
        self.now = match next {
            Some(next) if self.calm => next.max(self.now + Duration::from_micros(1)),
            Some(next) => next.max(self.now + Duration::from_micros(1)).min(step),
            None => step,
        };
        while self.deliveries.peek().is_some_and(|Reverse(delivery)| delivery.at <= self.now) {
            let Some(Reverse(delivery)) = self.deliveries.pop() else { break };
            self.deliver(delivery)?;
        }
        Ok(())
    }

    fn deliver(&mut self, delivery: Delivery) -> Result<(), String> {
        let Delivery { order, app: at, connection, to_sequencer, frame, .. } = delivery;
        if self.trace {
            let message = match Message::decode(&frame, frame.len()) {
                Ok((tag, message)) => format!("{tag} {message:?}"),
                Err(error) => error.to_string(),
            };
            let arrow = if to_sequencer { "─▶" } else { "◀─" };
            let time = self.now.as_micros();
            println!("{time} app {at}.{connection} {arrow} {message:.400}");
        }
        if !to_sequencer {
            if self.nodes[at].connection == Some(connection) {
                self.nodes[at].app.receive(self.now, &frame);
                if tells_the_head(&frame) {
                    self.nodes[at].heard = self.nodes[at].heard.max(order);
                }
            }
            return Ok(());
        }
        // A late frame of a connection that ended still arrives at the sequencer: HTTP requests do.
        let Some(session) = self.sessions.get(&connection).copied() else {
            return Ok(());
        };
        self.sequencer.resume(session);
        let reply = self.sequencer.handle(&frame);
        self.sessions.insert(connection, self.sequencer.session());
        self.note_change();
        self.check_log()?;
        match reply {
            Some(reply) if self.nodes[at].connection == Some(connection) => {
                self.send(at, reply, false);
            }
            Some(_) => {}
            None if self.nodes[at].connection == Some(connection) => self.break_connection(at),
            None => {}
        }
        Ok(())
    }

    fn check_log(&self) -> Result<(), String> {
        let epoch = self.sequencer.durable_head().epoch;
        self.check_epoch(epoch)
    }

    fn check_epoch(&self, epoch: synddb_core::Epoch) -> Result<(), String> {
        let Some(restored) = self.sequencer.restore(epoch)? else { return Ok(()) };
        let (base, lineage) = restored.base;
        if let Some((first, _)) = restored.changes.first()
            && *first != base + 1
        {
            return Err(format!(
                "epoch {epoch}: the snapshot is of commit {base}, the log begins with {first}"
            ));
        }
        // All of one application, or of the original up to the copy and of the copy after it.
        let mut of = lineage;
        for (commit, lineage) in &restored.changes {
            if *lineage != of {
                let copied = self.nodes.iter().any(|node| {
                    node.app.lineage == *lineage && node.app.forked == Some((of, commit - 1))
                });
                if !copied {
                    return Err(format!(
                        "epoch {epoch}: commit {commit} is of application {lineage}, the one before \
                         it of {of}; the copy was made at {:?}",
                        self.nodes.last().map(|node| node.app.forked)
                    ));
                }
                of = *lineage;
            }
        }
        Ok(())
    }

    fn check_end(&self) -> Result<(), String> {
        for epoch in self.sequencer.epochs() {
            self.check_epoch(epoch)?;
        }
        let active: Vec<_> = self.nodes.iter().filter(|node| !node.app.stopped).collect();
        if active.is_empty() {
            return Err("every sender stopped".into());
        }
        if active.len() > 1 {
            return Err("two copies both think that they hold the stream".into());
        }
        for node in active {
            if !self.is_done(node) {
                return Err(format!(
                    "application {} does not get its entries through",
                    node.app.lineage
                ));
            }
            let epoch = self.sequencer.durable_head().epoch;
            let restored =
                self.sequencer.restore(epoch)?.ok_or("no complete snapshot at the end")?;
            let last = restored.changes.last().map_or(restored.base, |change| *change);
            if last.0 != node.app.disk.commits {
                return Err(format!(
                    "restored up to commit {}, committed were {}",
                    last.0, node.app.disk.commits
                ));
            }
        }
        Ok(())
    }
}

/// An answer, undamaged, that was given to the holder of the stream or to a Hello.
fn tells_the_head(frame: &[u8]) -> bool {
    let decoded = Message::decode(frame, frame.len());
    matches!(decoded, Ok((_, Message::HelloAck(_) | Message::Ack(_) | Message::SnapshotAck(_))))
}
