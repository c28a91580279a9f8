//! A device and a sequencer, both without an allocator, on a link that loses and damages frames, with
//! resets of the device: what is stored at the end must be what was committed, once and in order.

use core::time::Duration;

use synddb_core::changeset::{self, Value};
use synddb_core::device::{Column, Device, DeviceConfig, RamStorage, Step, Table};
use synddb_core::receiver::{Admission, FragmentAdmission, Receiver, Session};
use synddb_core::transport::TransportErrorKind;
use synddb_core::wire::message::{
    Ack, HelloAck, Limits, MAX_CONTROL_FRAME, Nack, Refusal, SnapshotProgress,
};
use synddb_core::wire::{EntryKind, EntryMeta, Message};
use synddb_core::{Chain, Instant, Rng, SnapshotId, StreamId};

use crate::selftest::Failure;

const FRAME: usize = 700;
const COUNT: usize = 60;
const SEEDS: u64 = 300;
const NAME: &str = "bare";
const TABLE: Table = Table::new("t", &[Column::integer("id").key(), Column::text("text")]);
const TEXT: &str = "a text that is long enough for several frames to be needed for a few of them";

type Small = Device<'static, RamStorage<8, 1024>, 2, FRAME>;

pub(crate) fn run() -> Result<(), Failure> {
    (1..=SEEDS).try_for_each(simulate)
}

fn simulate(seed: u64) -> Result<(), Failure> {
    let mut rng = Rng::new(seed);
    let mut sequencer = Sequencer::new();
    let mut device = open(RamStorage::new())?;
    let mut now = 1;
    let mut frame = [0; FRAME];
    // Faults end after a while; then everything has to arrive.
    for step in 0..20_000 {
        let faults = if step < 2000 { 8 } else { 0 };
        now += 1 + rng.up_to(20_000);
        let at = Instant::from_micros(now);
        if step < 2000 && rng.up_to(60) == 0 {
            device = open(device.into_storage())?;
            sequencer.session = None;
        }
        if device.committed() < COUNT as u64 && rng.up_to(2) == 0 {
            let row = [Value::Integer(device.committed() as i64 + 1), TEXT.into()];
            // Full is no failure: the row is tried again.
            let _ = device.commit(at, 0, |rows| rows.insert(&TABLE, &row));
        }
        while let Some(step) = device.poll_step(at, &mut frame).map_err(|_| "a device fails")? {
            match step {
                Step::Connect => {
                    sequencer.session = None;
                    device.handle_connected(at, 2);
                }
                Step::Close => {}
                Step::Send(len) => {
                    let mut damaged = frame;
                    if rng.up_to(99) < faults {
                        damaged[rng.up_to(len as u64 - 1) as usize] ^= 1;
                    }
                    let mut reply = [0; MAX_CONTROL_FRAME];
                    let answer = sequencer.answer(&damaged[..len], &mut reply)?;
                    if rng.up_to(99) < faults {
                        continue;
                    }
                    match answer {
                        Some(len) => {
                            let _ = device.handle_frame(at, &reply[..len]);
                        }
                        None => {
                            let kind = TransportErrorKind::Disconnected;
                            device.handle_disconnected(at, kind, None);
                        }
                    }
                }
            }
        }
        if device.status().halted.is_some() {
            return Err("a device halts although nothing was lost");
        }
        if device.committed() == COUNT as u64 && device.status().synced {
            let stored = &sequencer.rows[..sequencer.count];
            let exact = stored.len() == COUNT && stored.iter().copied().eq(1..=COUNT as i64);
            return if exact { Ok(()) } else { Err("the log is not what was committed") };
        }
    }
    Err("not everything that was committed arrives")
}

fn open(storage: RamStorage<8, 1024>) -> Result<Small, Failure> {
    let config = DeviceConfig {
        max_frame: FRAME,
        linger: Duration::from_millis(5),
        response_timeout: Duration::from_millis(200),
        ..DeviceConfig::new(NAME, [3; 32])
    };
    Small::open(config, &[TABLE], storage).map_err(|_| "a device does not open")
}

/// The smallest sequencer: a receiver, the rows' numbers, and how much of the base is here.
struct Sequencer {
    receiver: Receiver,
    session: Option<Session>,
    rows: [i64; COUNT],
    count: usize,
    /// The chain after each entry.
    chains: [Chain; COUNT + 1],
    base: SnapshotProgress,
}

impl Sequencer {
    fn new() -> Self {
        Self {
            receiver: Receiver::new(StreamId::from_name(NAME)),
            session: None,
            rows: [0; COUNT],
            count: 0,
            chains: [Chain::default(); COUNT + 1],
            base: SnapshotProgress::default(),
        }
    }

    /// The length of the reply; none where the connection ends.
    fn answer(&mut self, frame: &[u8], reply: &mut [u8]) -> Result<Option<usize>, Failure> {
        let Ok((tag, message)) = Message::decode(frame, FRAME) else { return Ok(None) };
        let answer = match self.decide(&message)? {
            Ok(answer) => answer,
            Err(refusal) => Message::Nack(Nack { refusal, text: "" }),
        };
        answer.encode(tag, reply).map(Some).map_err(|_| "an answer does not fit")
    }

    fn decide(
        &mut self,
        message: &Message<'_>,
    ) -> Result<Result<Message<'static>, Refusal>, Failure> {
        if let Message::Hello(hello) = message {
            return Ok(self.receiver.handle_hello(hello).map(|session| {
                self.session = Some(session);
                self.welcome(hello, session)
            }));
        }
        let Some(session) = self.session else { return Ok(Err(Refusal::NoHello)) };
        if let Err(refusal) = self.receiver.claim(&session) {
            return Ok(Err(refusal));
        }
        let refused = match message {
            Message::OpenEpoch(open) => match self.receiver.handle_open(open) {
                Ok(Some(head)) => {
                    self.receiver.opened(head);
                    None
                }
                Ok(None) => None,
                Err(refusal) => Some(refusal),
            },
            Message::Entries(frame) => {
                let chains = self.chains;
                let known = |seq: synddb_core::SeqNo| chains.get(seq.0 as usize - 1).copied();
                match self.receiver.admit(frame, known) {
                    Err(refusal) => Some(refusal),
                    Ok(Admission::AlreadyHave) => None,
                    Ok(Admission::Append { skip, head }) => {
                        let mut chain = frame.chain_before;
                        for (at, entry) in frame.entries().enumerate() {
                            let (meta, entry) = entry.map_err(|_| "an admitted entry")?;
                            chain = chain.next(entry.meta, entry.payload);
                            if at >= skip as usize {
                                self.store(&meta, entry.payload, chain)?;
                            }
                        }
                        self.receiver.appended(head);
                        None
                    }
                }
            }
            Message::Fragment(fragment) => match self.receiver.admit_fragment(fragment) {
                Ok(FragmentAdmission::AlreadyHave) => None,
                _ => return Err("an entry that fits into a frame comes in pieces"),
            },
            Message::SnapshotBegin(begin) => {
                if self.base.id != begin.id {
                    self.base = SnapshotProgress { id: begin.id, offset: 0, complete: false };
                }
                return Ok(Ok(Message::SnapshotAck(self.base)));
            }
            Message::SnapshotChunk(chunk) => {
                if chunk.offset > self.base.offset {
                    return Ok(Err(Refusal::SnapshotGap(self.base)));
                }
                let end = chunk.offset + u64::from(chunk.len);
                self.base.offset = self.base.offset.max(end);
                return Ok(Ok(Message::SnapshotAck(self.base)));
            }
            Message::SnapshotEnd(end) => {
                if end.len != self.base.offset {
                    return Ok(Err(Refusal::SnapshotGap(self.base)));
                }
                self.base.complete = true;
                return Ok(Ok(Message::SnapshotAck(self.base)));
            }
            _ => None,
        };
        Ok(match refused {
            Some(refusal) => Err(refusal),
            None => Ok(Message::Ack(Ack {
                head: self.receiver.head(),
                staged: None,
                credit: 1 << 20,
                time_ms: 1,
                signature: b"",
            })),
        })
    }

    fn welcome(
        &self,
        hello: &synddb_core::wire::message::Hello<'_>,
        session: Session,
    ) -> Message<'static> {
        let head = self.receiver.head();
        let at_next = (hello.next_seq.0 as usize).checked_sub(2);
        let known = at_next.filter(|_| hello.epoch == head.epoch && hello.next_seq < head.next_seq);
        Message::HelloAck(HelloAck {
            version: 1,
            features: 0,
            nonce: hello.nonce,
            ticket: session.ticket,
            head,
            genesis: self.receiver.genesis(),
            chain_at_next: known.map(|at| self.chains[at]),
            staged: None,
            snapshot: None,
            limits: Limits {
                max_frame: 4096,
                max_entry: 4096,
                max_snapshot: 1 << 16,
                credit: 4096,
            },
            time_ms: 1,
        })
    }

    fn store(&mut self, meta: &EntryMeta, payload: &[u8], chain: Chain) -> Result<(), Failure> {
        let room = self.chains.get_mut(meta.seq.0 as usize - 1).ok_or("too many entries")?;
        *room = chain;
        if meta.kind == EntryKind::Snapshot {
            let is_here = self.base.complete && self.base.id != SnapshotId::default();
            return if is_here { Ok(()) } else { Err("the base is noted before it is stored") };
        }
        for change in changeset::changes(payload) {
            let change = change.map_err(|_| "a changeset does not read")?;
            let values = change.new.map(|record| record.values());
            let Some(Value::Integer(id)) = values.and_then(|mut values| values.next()) else {
                return Err("a row without its number");
            };
            *self.rows.get_mut(self.count).ok_or("more rows than were committed")? = id;
            self.count += 1;
        }
        Ok(())
    }
}
