//! The decisions against a far side with all of its flaws, by the clock of the test.

use synddb_core::Rng;

use super::*;

/// A message at the far side: the entries after the first number, up to the second; or the state up
/// to the second.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Message {
    Changesets(u64, u64),
    Snapshot(u64),
    Foreign,
}

#[derive(Debug, Default)]
struct Far {
    log: Vec<Message>,
    durable: usize,
    /// `current_sequence` is that of the next message, as opposed to the last.
    tells_next: bool,
    /// Given up by the client, and still on their way.
    late: Vec<(Instant, Message)>,
}

impl Far {
    fn current(&self) -> u64 {
        self.log.len() as u64 + u64::from(self.tells_next)
    }

    fn take(&mut self, message: Message) -> u64 {
        self.log.push(message);
        if self.log.len() - self.durable >= 50 {
            self.durable = self.log.len();
        }
        self.log.len() as u64
    }

    /// What whoever replays the log comes to; `None` where something is missing or there twice.
    fn replayed(&self) -> Option<u64> {
        let base = self.log.iter().rposition(|message| matches!(message, Message::Snapshot(_)))?;
        let mut state = 0;
        for message in &self.log[base..] {
            match *message {
                Message::Snapshot(as_of) => state = as_of,
                Message::Changesets(from, to) if from == state => state = to,
                Message::Changesets(..) => return None,
                Message::Foreign => {}
            }
        }
        Some(state)
    }
}

struct Client {
    policy: Policy,
    machine: Machine,
    /// Kept by the outbox.
    kept: String,
    /// What the current generation's snapshot holds, and the next one's.
    base: u64,
    next: Option<(i64, u64)>,
    generation: i64,
    generations: i64,
    written: u64,
    stored: u64,
}

impl Client {
    fn new(policy: Policy) -> Self {
        Self {
            policy,
            machine: Machine::new(policy, Known::default(), 1),
            kept: serde_json::to_string(&Known::default()).unwrap(),
            base: 0,
            next: None,
            generation: 0,
            generations: 0,
            written: 0,
            stored: 0,
        }
    }

    fn keep(&mut self) {
        self.kept = serde_json::to_string(self.machine.known()).unwrap();
    }

    fn crash(&mut self) {
        let known = serde_json::from_str(&self.kept).unwrap();
        self.machine = Machine::new(self.policy, known, 2);
        // A snapshot that was not stored goes with the process, as the outbox has it.
        if self.next.take().is_some() {
            self.machine.forget_base();
        }
    }

    fn heed(&mut self, verdict: Verdict) {
        match verdict.stored {
            Some(Load::Snapshot { generation }) => {
                if let Some((_, as_of)) = self.next.take_if(|(next, _)| *next == generation) {
                    self.generation = generation;
                    self.base = as_of;
                    self.stored = as_of;
                }
            }
            Some(Load::Changesets { next_seq, .. }) => self.stored = self.base + next_seq - 1,
            _ => {}
        }
        self.keep();
    }

    fn work(&mut self) -> Option<(Load, Message)> {
        let known = self.machine.known();
        if known.generation != Some(self.generation) || self.generation == 0 {
            let (generation, as_of) = *self.next.get_or_insert_with(|| {
                self.generations += 1;
                (self.generations, self.written)
            });
            return Some((Load::Snapshot { generation }, Message::Snapshot(as_of)));
        }
        let from = self.base + known.next_seq - 1;
        let count = (self.written - from).min(10);
        let load = Load::Changesets { next_seq: known.next_seq + count, part: 0, count };
        (count > 0).then_some((load, Message::Changesets(from, from + count)))
    }
}

struct Faults {
    /// Of a hundred.
    lost: u64,
    late: bool,
    restarts: bool,
    crashes: bool,
    foreign: bool,
    /// Others wrote before anything went wrong.
    noticed: bool,
}

fn run(seed: u64, flush: bool, faults: &Faults, on_doubt: OnDoubt) -> (Client, Far) {
    let mut rng = Rng::new(seed);
    let policy = Policy {
        on_doubt,
        flush,
        max_body: 1 << 21,
        keep_alive: Duration::from_secs(30),
        backoff: BackoffConfig::default(),
    };
    let mut client = Client::new(policy);
    let mut far = Far { tells_next: seed % 2 == 1, ..Far::default() };
    let mut now = Instant::from_micros(1);
    for round in 0..600 {
        let early = faults.noticed && round < 60;
        let calm = round >= 400 || early;
        let chance = |rng: &mut Rng, of_hundred: u64| !calm && rng.up_to(99) < of_hundred;
        now = now + Duration::from_millis(rng.up_to(2000));
        if (round < 400 && rng.up_to(2) == 0) || (round > 400 && round % 50 == 0) {
            client.written += 1 + rng.up_to(3);
        }
        if faults.restarts && chance(&mut rng, 3) {
            let durable = far.durable;
            far.log.truncate(durable);
        }
        if faults.foreign && (chance(&mut rng, 10) || early && rng.up_to(1) == 0) {
            far.take(Message::Foreign);
        }
        if let Some(at) = far.late.iter().position(|(at, _)| *at <= now) {
            let (_, message) = far.late.remove(at);
            far.take(message);
        }
        if faults.crashes && chance(&mut rng, 5) {
            client.crash();
        }
        let work = client.work();
        let lost = chance(&mut rng, faults.lost);
        match client.machine.step(now, work.is_some()) {
            Step::Wait(_) => {}
            Step::Look if lost => drop(client.machine.lost(now, true, true, None)),
            Step::Look => {
                let verdict = client.machine.looked(now, far.current(), "signer");
                client.heed(verdict);
            }
            Step::Flush => {
                far.durable = far.log.len();
                if lost {
                    client.machine.lost(now, false, true, None);
                } else {
                    client.machine.flushed();
                }
            }
            Step::Send => {
                let (load, message) = work.expect("asked for because there is some");
                client.machine.sending(load, 1000);
                client.keep();
                if !lost {
                    let sequence = far.take(message);
                    let verdict = client.machine.answered(sequence, chance(&mut rng, 5));
                    client.heed(verdict);
                    continue;
                }
                match rng.up_to(4) {
                    0 => client.machine.refused(now, Refusal::Other, None),
                    1 => drop(client.machine.lost(now, false, false, None)),
                    2 => {
                        far.take(message);
                        client.machine.lost(now, true, true, None);
                    }
                    3 if faults.late => {
                        let delay = Duration::from_millis(rng.up_to(40_000));
                        far.late.push((now + delay, message));
                        client.machine.lost(now, false, true, None);
                    }
                    _ => drop(client.machine.lost(now, true, true, None)),
                }
            }
        }
    }
    (client, far)
}

#[test]
fn a_log_that_is_ours_alone_leads_to_the_source_whatever_happens() {
    let mut total = CborStats::default();
    for seed in 0..3000 {
        let restarts = seed % 4 < 2;
        let faults = Faults {
            lost: [0, 10, 40][(seed % 3) as usize],
            // One that is forgotten and one that comes late hide each other: numbers are all there is.
            late: seed % 5 == 0 && !restarts,
            restarts,
            crashes: seed % 7 < 3,
            foreign: false,
            noticed: false,
        };
        let (client, far) = run(seed, seed % 2 == 0, &faults, OnDoubt::Resync);
        assert_eq!(client.stored, client.written, "seed {seed}: {:?}", client.machine);
        assert_eq!(far.replayed(), Some(client.written), "seed {seed}: {:?}", far.log);
        let stats = client.machine.stats();
        total.arrived += stats.arrived;
        total.not_arrived += stats.not_arrived;
        total.doubts += stats.doubts;
        total.lost_there += stats.lost_there;
        total.suspected_twice += stats.suspected_twice;
        if faults.lost == 0 && !faults.restarts && !faults.crashes {
            let snapshots = far.log.iter().filter(|m| matches!(m, Message::Snapshot(_))).count();
            assert_eq!(snapshots, 1, "seed {seed}");
        }
    }
    let all = [total.arrived, total.not_arrived, total.doubts, total.lost_there];
    assert!(all.iter().all(|count| *count > 100), "{total:?}");
    assert!(total.suspected_twice > 10, "{total:?}");
}

#[test]
fn among_others_doubts_are_counted_and_resyncs_mend_them() {
    let (mut doubts, mut resent, mut twice) = (0, 0, 0);
    for seed in 0..300 {
        let faults = Faults {
            lost: 30,
            late: false,
            restarts: false,
            crashes: seed % 2 == 0,
            foreign: true,
            noticed: seed % 3 > 0,
        };
        let (client, far) = run(seed, true, &faults, OnDoubt::Resync);
        assert_eq!(client.stored, client.written, "seed {seed}: {:?}", client.machine);
        // Where nobody knew of them, the first lost answer that somebody else's message hides is taken
        // for our own's arrival.
        if faults.noticed {
            assert_eq!(far.replayed(), Some(client.written), "seed {seed}: {:?}", far.log);
        }
        let stats = client.machine.stats();
        doubts += stats.doubts;
        let (client, far_resent) = run(seed, true, &faults, OnDoubt::Resend);
        assert_eq!(client.stored, client.written, "seed {seed}");
        resent += client.machine.stats().resent_in_doubt;
        twice += u64::from(far_resent.replayed().is_none());
    }
    assert!(doubts > 30 && resent > 30, "{doubts} {resent}");
    assert!(twice > 3, "what is sent again in doubt comes twice: {twice}");
}

fn machine(flush: bool) -> Machine {
    let policy = Policy {
        on_doubt: OnDoubt::Resync,
        flush,
        max_body: 2 << 20,
        keep_alive: Duration::ZERO,
        backoff: BackoffConfig::default(),
    };
    let mut machine = Machine::new(policy, Known::default(), 7);
    let _ = machine.looked(Instant::from_micros(1), 0, "signer");
    machine
}

fn post(machine: &mut Machine, len: usize) {
    machine.sending(Load::Changesets { next_seq: 2, part: 0, count: 1 }, len);
}

#[test]
fn a_limit_is_learned_in_a_few_refusals() {
    for limit in [20_000, 100_000, 700_000, 2_000_000] {
        let mut machine = machine(false);
        let (mut refusals, mut sequence) = (0, 0);
        for _ in 0..200 {
            let len = machine.body_limit(false);
            post(&mut machine, len);
            if len > limit {
                refusals += 1;
                machine.refused(Instant::from_micros(1), Refusal::TooLarge, None);
            } else {
                sequence += 1;
                let verdict = machine.answered(sequence, false);
                assert!(verdict.stored.is_some());
            }
        }
        let learned = machine.body_limit(false);
        assert!(refusals <= 20, "{limit}: {refusals} refusals");
        assert!(learned <= limit && learned >= limit * 8 / 10, "{limit}: {learned}");
    }
}

#[test]
fn resets_of_large_bodies_make_them_smaller_and_those_of_snapshots_are_told() {
    let now = Instant::from_micros(1);
    let mut machine = machine(true);
    for _ in 0..2 {
        machine.hurry();
        post(&mut machine, 2 << 20);
        assert!(!machine.lost(now, true, true, None));
        let _ = machine.looked(now, 0, "signer");
    }
    assert_eq!(machine.body_limit(false), 1 << 20);
    let mut blamed = 0;
    for _ in 0..5 {
        machine.sending(Load::Snapshot { generation: 1 }, 1 << 20);
        blamed += u32::from(machine.lost(now, true, true, None));
        let _ = machine.looked(now, 0, "signer");
    }
    assert!((1..5).contains(&blamed), "{blamed}");
}

#[test]
fn another_signer_is_another_sequencer() {
    let now = Instant::from_micros(1);
    let mut machine = machine(false);
    machine.sending(Load::Snapshot { generation: 1 }, 100);
    assert!(machine.answered(1, false).stored.is_some());
    assert_eq!(machine.looked(now, 1, "signer"), Verdict::default());
    let verdict = machine.looked(now, 1, "somebody else");
    assert_eq!(verdict.resync, Some(ResyncReason::SequencerLostData));
    assert_eq!(machine.known().generation, None);
}

#[test]
fn a_warning_is_not_stored_before_it_is_flushed() {
    let now = Instant::from_micros(1);
    let mut machine = machine(false);
    post(&mut machine, 100);
    assert_eq!(machine.answered(1, true), Verdict::default());
    assert_eq!(machine.step(now, true), Step::Flush);
    machine.lost(now, false, true, None);
    machine.hurry();
    assert_eq!(machine.step(now, true), Step::Look);
    assert_eq!(machine.looked(now, 1, "signer"), Verdict::default());
    assert_eq!(machine.step(now, true), Step::Flush);
    machine.flushed();
    assert!(machine.looked(now, 1, "signer").stored.is_some());
    // And again, with a far side that forgets it: it goes again.
    post(&mut machine, 100);
    assert_eq!(machine.answered(2, true), Verdict::default());
    machine.lost(now, true, true, None);
    assert_eq!(machine.looked(now, 1, "signer"), Verdict::default());
    assert_eq!(machine.step(now, true), Step::Send);
}
