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
    wire::{Message, message::Head},
};

use crate::{
    app::{App, Ask, Counts, Crash},
    rows::{Rows, apply},
    sabotage::Sabotage,
    sequencer::Sequencer,
};

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
    power_cuts: u64,
    freezes: u64,
    fills: u64,
    clock_jumps: u64,
    dead_answers: u64,
    app: Counts,
    failed_syncs: u64,
    checks: u64,
    /// Syncs of the first application and of the sequencer.
    syncs: [u64; 2],
}

impl Totals {
    pub(crate) fn syncs(&self) -> [u64; 2] {
        self.syncs
    }

    pub(crate) fn checks(&self) -> u64 {
        self.checks
    }

    pub(crate) fn faults(&self) -> [(&'static str, u64); 25] {
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
            ("a power cut at the application", self.power_cuts),
            ("a disk that freezes at a sync", self.freezes),
            ("a disk that is full for a while", self.fills),
            ("a clock that jumps", self.clock_jumps),
            ("a sequencer that dies between store and answer", self.dead_answers),
            ("a write that the application's disk failed", self.app.failed_writes),
            ("a request that the sequencer's disk failed", self.failed_syncs),
            ("a rollback to a savepoint", self.app.rollbacks),
            ("more commits than memory holds", self.app.overflows),
            ("more entries than the outbox holds", self.app.collapses),
            ("a restart that needs a snapshot", self.app.unclean),
            ("a restart that goes on", self.app.clean),
            ("a commit found by what was kept before it", self.app.settled),
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
        self.power_cuts += run.power_cuts;
        self.freezes += run.freezes;
        self.fills += run.fills;
        self.clock_jumps += run.clock_jumps;
        self.dead_answers += run.dead_answers;
        self.failed_syncs += run.failed_syncs;
        self.checks += run.checks;
        self.app.rollbacks += run.app.rollbacks;
        self.app.overflows += run.app.overflows;
        self.app.collapses += run.app.collapses;
        self.app.failed_writes += run.app.failed_writes;
        self.app.unclean += run.app.unclean;
        self.app.clean += run.app.clean;
        self.app.settled += run.app.settled;
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
    /// How far its clock is before the world's: machines are paused.
    clock: Duration,
}

impl Node {
    fn new(app: App) -> Self {
        Self { app, connection: None, heard: 0, clock: Duration::ZERO }
    }

    /// By its own clock.
    fn now(&self, world: Instant) -> Instant {
        world + self.clock
    }

    /// When it wants to be woken, by the world's clock.
    fn timeout(&self) -> Option<Instant> {
        let due = self.app.timeout()?.since(Instant::default() + self.clock);
        Some(Instant::default() + due)
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
    /// What the sequencer held durably when its log was last checked.
    checked: Head,
    deliveries: BinaryHeap<Reverse<Delivery>>,
    order: u64,
    calm: bool,
    totals: Totals,
    sabotage: Option<Sabotage>,
    trace: bool,
    small: bool,
    /// Which kinds of trouble this run knows, a bit each: with all of them at once some things never
    /// get far enough to go wrong.
    swarm: u64,
}

const STEPS: u64 = 400;
const SMALL_STEPS: u64 = 80;

/// Whose disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    App,
    Sequencer,
}

impl World {
    pub(crate) fn new(seed: u64, sabotage: Option<Sabotage>) -> Self {
        let mut rng = Rng::new(seed);
        let app = App::new(rng.next_u64(), sabotage);
        Self {
            now: Instant::from_micros(1),
            nodes: vec![Node::new(app)],
            sequencer: Sequencer::new(sabotage),
            sessions: BTreeMap::new(),
            seen: Default::default(),
            changed: 0,
            checked: Head::default(),
            deliveries: BinaryHeap::new(),
            order: 0,
            calm: false,
            totals: Totals::default(),
            sabotage,
            trace: std::env::var_os("SYNDDB_SIM_TRACE").is_some(),
            small: false,
            swarm: match seed % 3 {
                0 => rng.next_u64() & rng.next_u64(),
                1 => rng.next_u64(),
                _ => rng.next_u64() | rng.next_u64(),
            },
            rng,
        }
    }

    /// A small run in which nothing but time and one disk is against the promises: that disk freezes
    /// at its sync of this number, whose bytes reach the platter or do not.
    pub(crate) fn small(seed: u64, freeze: Option<(Side, u64, bool)>) -> Self {
        let mut world = Self::new(seed, None);
        world.small = true;
        match freeze {
            Some((Side::App, at, reaches)) => world.nodes[0].app.health.freeze(at, reaches),
            Some((Side::Sequencer, at, reaches)) => world.sequencer.health.freeze(at, reaches),
            None => {}
        }
        world
    }

    pub(crate) fn run(mut self) -> Result<Totals, String> {
        // A panic inside is a broken promise too; sabotages rely on that.
        let mut backup: Option<Restore> = None;
        for _ in 0..if self.small { SMALL_STEPS } else { STEPS } {
            self.random_event(&mut backup);
            self.replace_dead_disks(8);
            self.note_change();
            self.drain()?;
            self.advance()?;
            for node in &self.nodes {
                node.app.check_limits()?;
            }
        }
        self.calm = true;
        self.sequencer.busy = false;
        self.sequencer.health.full = false;
        self.sequencer.health.slow = false;
        for node in &mut self.nodes {
            node.app.health.full = false;
            node.app.health.slow = false;
        }
        for _ in 0..20_000 {
            // One may freeze only now.
            self.replace_dead_disks(8);
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
                self.nodes[0].connection = None;
                let now = self.nodes[0].now(self.now);
                self.nodes[0].app.restart(now, Crash::Kill);
            }
            for node in &mut self.nodes {
                node.app.flush(node.now(self.now));
            }
            self.advance()?;
        }
        self.check_end()?;
        self.totals.resent += self.nodes.iter().map(|node| node.app.resent()).sum::<u64>();
        self.totals.compressed = self.sequencer.compressed;
        self.totals.not_understood = self.sequencer.not_understood;
        self.totals.failed_syncs = self.sequencer.failed_syncs;
        self.totals.syncs = [self.nodes[0].app.health.syncs(), self.sequencer.health.syncs()];
        for node in &self.nodes {
            let counts = node.app.counts;
            self.totals += Totals { app: counts, ..Totals::default() };
        }
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

    /// Whether this run knows a kind of trouble.
    fn knows(&self, kind: u64) -> bool {
        self.swarm & (1 << kind) != 0
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.rng.up_to(one_in - 1) == 0
    }

    fn random_event(&mut self, backup: &mut Option<Restore>) {
        let at = self.rng.up_to(self.nodes.len() as u64 - 1) as usize;
        let now = self.nodes[at].now(self.now);
        let event = self.rng.up_to(99);
        if event >= 50 && (self.small || !self.knows(event / 2)) {
            return;
        }
        match event {
            0..=44 => {
                for _ in 0..=self.rng.up_to(4) {
                    self.nodes[at].app.commit(false);
                    self.totals.commits += 1;
                }
            }
            45..=47 => self.nodes[at].app.flush(now),
            48 if self.chance(3) => self.nodes[at].app.change_schema(),
            50 if self.chance(3) => {
                // On the way into a commit.
                self.nodes[at].app.commit(true);
                self.kill_app(at, Crash::Kill);
            }
            52 if self.chance(3) => self.kill_app(at, Crash::Kill),
            54 if self.chance(3) => self.kill_app(at, Crash::PowerCut),
            56 => self.crash_sequencer(),
            58..=59 => {
                self.totals.broken += 1;
                self.break_connection(at);
            }
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
                let app = self.nodes[0].app.copy(self.now, 2, self.rng.next_u64());
                self.nodes.push(Node::new(app));
            }
            66 => self.sequencer.late_sync(),
            // Another version takes over; with HTTP a session goes on there.
            68 => self.sequencer.knows_lz4 = !self.sequencer.knows_lz4,
            70 if self.chance(3) => {
                self.totals.freezes += 1;
                self.sequencer.health.freeze_soon(&mut self.rng);
            }
            72 if self.chance(3) => {
                self.totals.freezes += 1;
                self.nodes[at].app.health.freeze_soon(&mut self.rng);
            }
            74 => {
                self.totals.fills += u64::from(!self.sequencer.health.full);
                self.sequencer.health.full = !self.sequencer.health.full;
            }
            76 => {
                let health = &mut self.nodes[at].app.health;
                self.totals.fills += u64::from(!health.full);
                health.full = !health.full;
            }
            78 => self.sequencer.health.slow = !self.sequencer.health.slow,
            80 => self.nodes[at].app.health.slow = !self.nodes[at].app.health.slow,
            82 => {
                // A machine was paused: up to a minute, or a day.
                self.totals.clock_jumps += 1;
                let most = if self.chance(2) { 60 } else { 86_400 };
                let jump = self.rng.up_to(most * 1_000_000);
                self.nodes[at].clock += Duration::from_micros(jump);
            }
            _ => {}
        }
    }

    fn kill_app(&mut self, at: usize, crash: Crash) {
        self.totals.app_crashes += 1;
        self.totals.power_cuts += u64::from(crash == Crash::PowerCut);
        self.totals.resent += self.nodes[at].app.resent();
        self.nodes[at].connection = None;
        let now = self.nodes[at].now(self.now);
        self.nodes[at].app.restart(now, crash);
    }

    fn crash_sequencer(&mut self) {
        self.totals.sequencer_crashes += 1;
        self.sequencer.crash();
        self.sessions.clear();
        for at in 0..self.nodes.len() {
            self.break_connection(at);
        }
    }

    /// Nobody else brings a frozen disk back.
    fn replace_dead_disks(&mut self, one_in: u64) {
        for at in 0..self.nodes.len() {
            if self.nodes[at].app.health.frozen() && self.chance(one_in) {
                self.kill_app(at, Crash::PowerCut);
            }
        }
        if self.sequencer.health.frozen() && self.chance(one_in) {
            self.crash_sequencer();
        }
    }

    fn break_connection(&mut self, at: usize) {
        if self.nodes[at].connection.take().is_some() {
            let now = self.nodes[at].now(self.now);
            self.nodes[at].app.disconnected(now, TransportErrorKind::Disconnected);
        }
    }

    /// Lets the applications do what they want to do now.
    fn drain(&mut self) -> Result<(), String> {
        for at in 0..self.nodes.len() {
            let now = self.nodes[at].now(self.now);
            if self.calm || !self.chance(3) {
                self.nodes[at].app.write(now);
            }
            if self.nodes[at].app.is_behind() && (self.calm || self.chance(3)) {
                self.totals.resyncs += u64::from(self.nodes[at].app.take_base(now));
            }
            while let Some(ask) = self.nodes[at].app.poll(now) {
                match ask {
                    Ask::Connect
                        if !self.calm && !self.small && self.knows(4) && self.chance(6) =>
                    {
                        self.totals.refused += 1;
                        self.nodes[at].app.disconnected(now, TransportErrorKind::Unreachable);
                    }
                    Ask::Connect => {
                        self.order += 1;
                        self.nodes[at].connection = Some(self.order);
                        self.sessions.insert(self.order, None);
                        self.nodes[at].app.connected(now);
                    }
                    Ask::Close => self.nodes[at].connection = None,
                    Ask::Send(frame) => self.send(at, frame, true, 0),
                    Ask::Acked(head, receipt) => self.check_receipt(at, &head, receipt)?,
                }
                // At any step.
                if !self.calm && !self.small && self.knows(5) && self.chance(300) {
                    self.kill_app(at, Crash::Kill);
                }
            }
        }
        Ok(())
    }

    /// What is acknowledged is durable, and what `push()` would be answered for can be restored.
    fn check_receipt(
        &mut self,
        at: usize,
        head: &Head,
        receipt: Option<u64>,
    ) -> Result<(), String> {
        // What is acknowledged and then taken back by a restored backup is not held against the
        // acknowledgement.
        if self.totals.backups > 0 {
            return Ok(());
        }
        self.totals.checks += 1;
        let durable = self.sequencer.durable_head();
        let held = head.epoch < durable.epoch
            || (head.epoch == durable.epoch && head.next_seq <= durable.next_seq);
        if !held {
            return Err(format!(
                "acknowledged up to {} of epoch {}, durable is {} of epoch {}",
                head.next_seq, head.epoch, durable.next_seq, durable.epoch
            ));
        }
        if let Some(commit) = receipt {
            let last = self.sequencer.last_commit(head.epoch);
            if last < Some(commit) {
                return Err(format!(
                    "application {} was told that commit {commit} is stored, {last:?} is",
                    self.nodes[at].app.lineage
                ));
            }
        }
        Ok(())
    }

    fn send(&mut self, at: usize, frame: Vec<u8>, to_sequencer: bool, takes: u64) {
        let Some(connection) = self.nodes[at].connection else { return };
        let mut copies = 1;
        let mut frame = frame;
        if !self.calm && !self.small {
            if self.knows(0) && self.chance(25) {
                self.totals.dropped += 1;
                copies = 0;
            } else if self.knows(1) && self.chance(25) {
                self.totals.repeated += 1;
                copies = 2;
            }
            if self.knows(2) && self.chance(40) {
                self.totals.damaged += 1;
                let bit = self.rng.up_to(frame.len() as u64 * 8 - 1);
                frame[(bit / 8) as usize] ^= 1 << (bit % 8);
            }
        }
        for copy in 0..copies {
            self.order += 1;
            let order = self.order;
            // Mostly in order, sometimes late: a link made of several.
            let late = self.knows(3) && self.chance(15);
            let delay = if !self.calm && !self.small && (copy > 0 || late) {
                self.rng.up_to(300_000)
            } else {
                500
            };
            let at_time = self.now + Duration::from_micros(delay + takes);
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
        let timer = self.nodes.iter().filter_map(Node::timeout).min();
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
                let now = self.nodes[at].now(self.now);
                self.nodes[at].app.receive(now, &frame);
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
        if !self.calm && !self.small && self.knows(6) && self.chance(200) {
            self.totals.dead_answers += 1;
            self.crash_sequencer();
            return Ok(());
        }
        match reply {
            Some(reply) if self.nodes[at].connection == Some(connection) => {
                let takes = self.sequencer.health.takes(&mut self.rng);
                self.send(at, reply, false, takes);
            }
            Some(_) => {}
            None if self.nodes[at].connection == Some(connection) => self.break_connection(at),
            None => {}
        }
        Ok(())
    }

    fn check_log(&mut self) -> Result<(), String> {
        let head = self.sequencer.durable_head();
        if std::mem::replace(&mut self.checked, head) == head {
            return Ok(());
        }
        self.totals.checks += 1;
        self.check_epoch(head.epoch)
    }

    fn check_epoch(&self, epoch: synddb_core::Epoch) -> Result<(), String> {
        let Some(restored) = self.sequencer.restore(epoch)? else { return Ok(()) };
        let (base, lineage) = restored.base;
        if let Some(first) = restored.changes.first()
            && first.commit != base + 1
        {
            return Err(format!(
                "epoch {epoch}: the snapshot is of commit {base}, the log begins with {}",
                first.commit
            ));
        }
        // All of one application, or of the original up to the copy and of the copy after it.
        let (mut of, mut rows) = (lineage, restored.rows);
        self.check_rows(lineage, base, &rows)?;
        for change in &restored.changes {
            let (commit, lineage) = (change.commit, change.lineage);
            if lineage != of {
                let copied = self.nodes.iter().any(|node| {
                    node.app.lineage == lineage && node.app.forked == Some((of, commit - 1))
                });
                if !copied {
                    return Err(format!(
                        "epoch {epoch}: commit {commit} is of application {lineage}, the one before \
                         it of {of}; the copy was made at {:?}",
                        self.nodes.last().map(|node| node.app.forked)
                    ));
                }
                of = lineage;
            }
            apply(&mut rows, &change.writes);
            self.check_rows(lineage, commit, &rows)?;
        }
        Ok(())
    }

    /// The rows are those that the application had after this commit, or its copy, which has what was
    /// before it from there.
    fn check_rows(&self, lineage: u64, commit: u64, rows: &Rows) -> Result<(), String> {
        let had = self.nodes.iter().any(|Node { app, .. }| {
            let its_own =
                app.lineage == lineage || app.forked.is_some_and(|fork| fork >= (lineage, commit));
            its_own && app.history.get(commit as usize) == Some(rows)
        });
        if had {
            Ok(())
        } else {
            Err(format!(
                "application {lineage} never had these rows after commit {commit}: {rows:x?}"
            ))
        }
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
            let last = restored.changes.last().map_or(restored.base.0, |change| change.commit);
            if last != node.app.commits {
                return Err(format!(
                    "restored up to commit {}, committed were {}",
                    last, node.app.commits
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
