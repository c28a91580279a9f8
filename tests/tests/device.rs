//! Devices without SQLite, with flash that the power leaves in the middle of a write, on a serial
//! line that loses bytes, against the real ingest and a real log; at the end the replica must hold
//! what was committed.
//!
//! `SYNDDB_DEVICE_SEEDS=N` runs N seeds, `SYNDDB_DEVICE_SEED=S` begins with S.
#![allow(clippy::unwrap_used)] // a test may panic where it stands

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    future::Future,
    ops::ControlFlow,
    path::Path,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use embedded_io::{ErrorKind, ErrorType, Read, Write};
use rusqlite::Connection as Sqlite;
use synddb_core::{
    Epoch, Instant, Rng, StreamId,
    changeset::Value,
    device::{
        Alarm, AsyncDriver, Column, Device, DeviceConfig, DeviceError, Driver, Flash, FlashStorage,
        Halt, RamStorage, RowError, Rows, Storage, Table, Unacknowledged,
    },
    transport::{Link, SerialTransport, TransportErrorKind},
    wire::{Unpacker, serial},
};
use synddb_sequencer::{
    access::{Access, Subject},
    ingest::{Connection, DEFAULT_LIMITS, Ingest, Reply},
    replica::Restore,
    store::SqliteStore,
};

const READINGS: Table = Table::new(
    "readings",
    &[Column::integer("id").key(), Column::integer("at_ms"), Column::real("celsius")],
);
const LABELS: Table = Table::new(
    "labels \"of\" things",
    &[
        Column::text("room").key(),
        Column::integer("shelf").key(),
        Column::text("label"),
        Column::blob("raw"),
    ],
);
const TABLES: [Table; 2] = [READINGS, LABELS];
const NAME: &str = "greenhouse";
const FRAME: usize = 700;
const REPLY: usize = 512;
/// As much as five changed labels take.
const ENTRY: usize = 2600;

/// The sequencer's end of the line.
struct Sequencer {
    ingest: Ingest,
    connection: Connection,
    frames: Unpacker<Vec<u8>>,
}

impl Sequencer {
    fn open(dir: &Path) -> Self {
        let store = Arc::new(SqliteStore::open(dir).unwrap());
        let ingest = Ingest::new(store, DEFAULT_LIMITS);
        let connection = Connection::new(ingest.clone());
        Self { ingest, connection, frames: Unpacker::new(vec![0; 4096]) }
    }

    fn take(&mut self, mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut replies = Vec::new();
        while !bytes.is_empty() {
            let (taken, frame) = self.frames.feed(bytes);
            bytes = &bytes[taken..];
            let Some(frame) = frame else { continue };
            match self.connection.handle(frame) {
                Reply::Frame(reply) => replies.push(reply),
                Reply::Silence => {}
                Reply::Close(reply) => {
                    replies.extend(reply);
                    self.connection = Connection::new(self.ingest.clone());
                }
            }
        }
        replies
    }

    /// What the newest state of the stream restores to.
    fn restore(&self, dir: &Path) -> (Epoch, Sqlite) {
        let out = dir.join("restored.db");
        let restored = Restore::new(self.ingest.store().as_ref(), StreamId::from_name(NAME))
            .replace(true)
            .run(&out, |_| ControlFlow::Continue(()))
            .unwrap();
        (restored.epoch, Sqlite::open(out).unwrap())
    }
}

/// A line with the sequencer at its other end, which answers at once.
struct Line {
    sequencer: Rc<RefCell<Sequencer>>,
    /// Bytes on their way to the device.
    back: VecDeque<u8>,
    now: Rc<Cell<u64>>,
    rng: Rng,
    /// In how many of 1000 cases a byte or an answer is lost.
    faults: u64,
    timeout: Duration,
}

#[derive(Debug)]
struct TimedOut;

impl std::fmt::Display for TimedOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("nothing came")
    }
}

impl std::error::Error for TimedOut {}

impl embedded_io::Error for TimedOut {
    fn kind(&self) -> ErrorKind {
        ErrorKind::TimedOut
    }
}

impl Line {
    fn new(
        sequencer: &Rc<RefCell<Sequencer>>,
        now: &Rc<Cell<u64>>,
        seed: u64,
        faults: u64,
    ) -> Self {
        Self {
            sequencer: Rc::clone(sequencer),
            back: VecDeque::new(),
            now: Rc::clone(now),
            rng: Rng::new(seed),
            faults,
            timeout: Duration::ZERO,
        }
    }
}

impl ErrorType for Line {
    type Error = TimedOut;
}

impl Read for Line {
    fn read(&mut self, into: &mut [u8]) -> Result<usize, TimedOut> {
        if self.back.is_empty() {
            self.now.set(self.now.get() + self.timeout.as_micros() as u64);
            return Err(TimedOut);
        }
        let count = into.len().min(self.back.len()).min(1 + self.rng.up_to(40) as usize);
        for (to, byte) in into.iter_mut().zip(self.back.drain(..count)) {
            *to = byte;
        }
        Ok(count)
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, TimedOut> {
        let lost = self.rng.up_to(999) < self.faults;
        let kept = if lost { self.rng.up_to(bytes.len() as u64) as usize } else { bytes.len() };
        for reply in self.sequencer.borrow_mut().take(&bytes[..kept]) {
            if self.rng.up_to(999) < self.faults {
                continue;
            }
            for (len, block) in serial::pack(&reply) {
                self.back.push_back(len);
                self.back.extend(block);
            }
            self.back.push_back(serial::END);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<(), TimedOut> {
        Ok(())
    }
}

impl Link for Line {
    fn set_read_timeout(&mut self, timeout: Duration) -> Result<(), TimedOut> {
        self.timeout = timeout;
        Ok(())
    }
}

/// Flash that refuses what flash cannot do, and whose power goes after so many bytes.
#[derive(Clone)]
struct SimFlash {
    sectors: Rc<RefCell<Vec<Vec<u8>>>>,
    /// Bytes until the power goes.
    power: Rc<Cell<Option<usize>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PowerLost;

impl SimFlash {
    fn new(sectors: usize) -> Self {
        let sectors = vec![vec![0xFF; Self::SECTOR]; sectors];
        Self { sectors: Rc::new(RefCell::new(sectors)), power: Rc::default() }
    }

    /// How many of `bytes` are done before the power goes.
    fn spend(&self, bytes: usize) -> Result<usize, PowerLost> {
        let Some(left) = self.power.get() else { return Ok(bytes) };
        if left == 0 {
            return Err(PowerLost);
        }
        self.power.set(Some(left.saturating_sub(bytes)));
        // Every other time the power goes right after the last bytes, before anybody hears of them.
        Ok(if left % 2 == 0 { bytes.min(left) } else { bytes })
    }

    fn is_dark(&self) -> bool {
        self.power.get() == Some(0)
    }
}

impl Flash for SimFlash {
    type Error = PowerLost;
    const SECTOR: usize = 2048;
    const WRITE: usize = 8;

    fn read(&mut self, sector: usize, at: usize, into: &mut [u8]) -> Result<(), PowerLost> {
        self.spend(0)?;
        into.copy_from_slice(&self.sectors.borrow()[sector][at..at + into.len()]);
        Ok(())
    }

    fn write(&mut self, sector: usize, at: usize, bytes: &[u8]) -> Result<(), PowerLost> {
        assert!(
            at.is_multiple_of(Self::WRITE) && bytes.len().is_multiple_of(Self::WRITE),
            "units of writing"
        );
        let done = self.spend(bytes.len())?;
        let mut sectors = self.sectors.borrow_mut();
        let room = &mut sectors[sector][at..at + bytes.len()];
        assert!(room.iter().all(|byte| *byte == 0xFF), "written twice without an erase");
        room[..done].copy_from_slice(&bytes[..done]);
        if self.is_dark() { Err(PowerLost) } else { Ok(()) }
    }

    fn erase(&mut self, sector: usize) -> Result<(), PowerLost> {
        let done = self.spend(Self::SECTOR)?;
        self.sectors.borrow_mut()[sector][..done].fill(0xFF);
        if self.is_dark() { Err(PowerLost) } else { Ok(()) }
    }
}

type Rig<S> = Device<'static, S, 2, ENTRY>;
type Serial = Driver<SerialTransport<Line, REPLY>, FRAME, REPLY>;

fn config(seed: u8) -> DeviceConfig<'static> {
    DeviceConfig {
        max_frame: FRAME,
        max_reply: REPLY,
        linger: Duration::from_millis(1),
        ..DeviceConfig::new(NAME, [seed; 32])
    }
}

fn open<S: Storage>(storage: S) -> Rig<S> {
    Device::open(config(1), &TABLES, storage).unwrap()
}

fn driver(line: Line) -> Serial {
    Driver::new(SerialTransport::new(line, 2))
}

fn at(now: &Rc<Cell<u64>>) -> Instant {
    // Time goes on by itself a little.
    now.set(now.get() + 10);
    Instant::from_micros(now.get())
}

/// Turns until everything is at the sequencer.
fn settle<S: Storage>(device: &mut Rig<S>, driver: &mut Serial, now: &Rc<Cell<u64>>) {
    for _ in 0..10_000 {
        if device.status().synced {
            return;
        }
        device.handle_flush(at(now));
        let next = driver.turn(device, || at(now), Duration::from_secs(1)).unwrap();
        assert_eq!(device.status().halted, None);
        if let Some(next) = next {
            now.set(now.get().max(next.as_micros()));
        }
    }
    panic!("not everything arrives: {:?}", device.status());
}

/// What the tables hold, and the transaction that would change it.
#[derive(Clone, Default)]
struct Model {
    readings: BTreeMap<i64, (i64, f64)>,
    labels: BTreeMap<(String, i64), (Option<String>, Vec<u8>)>,
}

impl Model {
    /// A random transaction: writes it into `rows` and gives what holds after it.
    fn change(&self, rng: &mut Rng, rows: &mut Rows<'_>) -> Result<Self, RowError> {
        let mut after = self.clone();
        for _ in 0..=rng.up_to(4) {
            match rng.up_to(3) {
                0 | 1 => after.change_reading(self, rng, rows)?,
                _ => after.change_label(self, rng, rows)?,
            }
        }
        Ok(after)
    }

    fn change_reading(
        &mut self,
        before: &Self,
        rng: &mut Rng,
        rows: &mut Rows<'_>,
    ) -> Result<(), RowError> {
        let id = rng.up_to(40) as i64;
        if self.readings.get(&id).map(|row| row.0) != before.readings.get(&id).map(|row| row.0) {
            return Ok(()); // this transaction has it already
        }
        let new = (rng.next_u64() as i64, rng.up_to(1 << 40) as f64 / 1e7);
        let row = |(at, celsius): (i64, f64)| [id.into(), at.into(), celsius.into()];
        match self.readings.get(&id).copied() {
            None => rows.insert(&READINGS, &row(new))?,
            Some(old) if rng.up_to(2) == 0 => {
                rows.delete(&READINGS, &row(old))?;
                self.readings.remove(&id);
                return Ok(());
            }
            Some(old) => rows.update(&READINGS, &row(old), &row(new))?,
        }
        self.readings.insert(id, new);
        Ok(())
    }

    fn change_label(
        &mut self,
        before: &Self,
        rng: &mut Rng,
        rows: &mut Rows<'_>,
    ) -> Result<(), RowError> {
        let key = (format!("room {}", rng.up_to(3)), rng.up_to(3) as i64);
        if self.labels.get(&key) != before.labels.get(&key) {
            return Ok(());
        }
        let text = (rng.up_to(3) > 0).then(|| format!("label ° {}", rng.next_u64()));
        let raw = vec![rng.up_to(255) as u8; 1 + rng.up_to(200) as usize];
        let row = |text: &Option<String>, raw: &[u8], write: &mut dyn FnMut(&[Value<'_>])| {
            let text = text.as_deref().map(Value::from).unwrap_or(Value::Null);
            write(&[key.0.as_str().into(), key.1.into(), text, raw.into()]);
        };
        let mut result = Ok(());
        match self.labels.get(&key) {
            None => row(&text, &raw, &mut |new| result = rows.insert(&LABELS, new)),
            Some((old_text, old_raw)) if (old_text, old_raw) != (&text, &raw) => {
                row(old_text, old_raw, &mut |old| {
                    row(&text, &raw, &mut |new| result = rows.update(&LABELS, old, new));
                });
            }
            Some(_) => return Ok(()),
        }
        result?;
        self.labels.insert(key, (text, raw));
        Ok(())
    }

    fn assert_is(&self, replica: &Sqlite, seed: u64) {
        let mut statement = replica.prepare("SELECT id, at_ms, celsius FROM readings").unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))));
        let readings: BTreeMap<i64, (i64, f64)> = rows.unwrap().map(Result::unwrap).collect();
        assert_eq!(readings, self.readings, "seed {seed}");
        let mut statement = replica.prepare("SELECT * FROM \"labels \"\"of\"\" things\"").unwrap();
        let rows = statement
            .query_map([], |row| Ok(((row.get(0)?, row.get(1)?), (row.get(2)?, row.get(3)?))));
        let labels: BTreeMap<_, _> = rows.unwrap().map(Result::unwrap).collect();
        assert_eq!(labels, self.labels, "seed {seed}");
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    commits: u64,
    resets: u64,
    cuts: u64,
    kept_by_a_cut: u64,
    full: u64,
    restarts: u64,
}

/// One device, one sequencer, and everything that happens to them.
fn run(seed: u64, totals: &mut Totals) {
    let dir = tempfile::tempdir().unwrap();
    let sequencer = Rc::new(RefCell::new(Sequencer::open(&dir.path().join("data"))));
    let mut rng = Rng::new(seed);
    let now = Rc::new(Cell::new(1));
    let flash = SimFlash::new(2 + 3);
    let faults = rng.up_to(60);
    let line = |rng: &mut Rng| Line::new(&sequencer, &now, rng.next_u64(), faults);
    let mut device = open(FlashStorage::<_, 3>::open(flash.clone()).unwrap());
    let mut driver_ = driver(line(&mut rng));
    let mut model = Model::default();
    for _ in 0..150 {
        match rng.up_to(19) {
            0 => {
                // A reset, and what the line still held is gone or not.
                let back = std::mem::take(&mut driver_.transport().line().back);
                device = open(FlashStorage::open(flash.clone()).unwrap());
                driver_ = driver(line(&mut rng));
                if rng.up_to(1) == 0 {
                    driver_.transport().line().back = back;
                }
                totals.resets += 1;
            }
            1 => {
                let mut sequencer = sequencer.borrow_mut();
                sequencer.connection = Connection::new(sequencer.ingest.clone());
                totals.restarts += 1;
            }
            2..=8 => {
                let cut = rng.up_to(9) == 0;
                flash.power.set(cut.then(|| rng.up_to(2500) as usize));
                let mut after = model.clone();
                let before = device.committed();
                let result = device.commit(at(&now), 1, |rows| {
                    after = model.change(&mut rng, rows)?;
                    Ok(())
                });
                match result {
                    Ok(()) => model = after,
                    Err(DeviceError::Full) => totals.full += 1,
                    Err(DeviceError::Storage(PowerLost)) => {
                        flash.power.set(None);
                        assert_eq!(
                            device.commit(at(&now), 1, |_| Ok(())),
                            Err(DeviceError::Failed),
                            "seed {seed}"
                        );
                        device = open(FlashStorage::open(flash.clone()).unwrap());
                        driver_ = driver(line(&mut rng));
                        totals.cuts += 1;
                        if device.committed() > before {
                            model = after;
                            totals.kept_by_a_cut += 1;
                        }
                    }
                    Err(error) => panic!("seed {seed}: {error}"),
                }
                flash.power.set(None);
            }
            _ => {
                let cut = rng.up_to(30) == 0;
                flash.power.set(cut.then(|| rng.up_to(2500) as usize));
                match driver_.turn(&mut device, || at(&now), Duration::from_millis(50)) {
                    Ok(next) => {
                        if let Some(next) = next.filter(|_| rng.up_to(1) == 0) {
                            now.set(now.get().max(next.as_micros()));
                        }
                    }
                    Err(DeviceError::Storage(PowerLost)) => {
                        flash.power.set(None);
                        device = open(FlashStorage::open(flash.clone()).unwrap());
                        driver_ = driver(line(&mut rng));
                        totals.cuts += 1;
                    }
                    Err(error) => panic!("seed {seed}: {error}"),
                }
                flash.power.set(None);
            }
        }
        assert_eq!(device.status().halted, None, "seed {seed}");
    }
    totals.commits += device.committed();
    settle(&mut device, &mut driver(Line::new(&sequencer, &now, 1, 0)), &now);
    let (epoch, replica) = sequencer.borrow().restore(dir.path());
    assert_eq!(epoch, Epoch(1), "seed {seed}");
    model.assert_is(&replica, seed);
}

#[test]
fn the_replica_holds_exactly_what_a_device_committed_whatever_happened() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = number("SYNDDB_DEVICE_SEEDS").unwrap_or(60);
    let first = number("SYNDDB_DEVICE_SEED").unwrap_or(1);
    let mut totals = Totals::default();
    for seed in first..first + seeds {
        println!("seed {seed}");
        run(seed, &mut totals);
    }
    println!("{seeds} seeds from {first}: {totals:?}");
    if seeds >= 50 {
        let Totals { commits, resets, cuts, kept_by_a_cut, full, restarts } = totals;
        for count in [commits, resets, cuts, kept_by_a_cut, full, restarts] {
            assert!(
                count > 0,
                "something never happened: {commits} {resets} {cuts} {kept_by_a_cut} {full} {restarts}"
            );
        }
    }
}

struct World {
    dir: tempfile::TempDir,
    sequencer: Rc<RefCell<Sequencer>>,
    now: Rc<Cell<u64>>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sequencer = Rc::new(RefCell::new(Sequencer::open(&dir.path().join("data"))));
        Self { dir, sequencer, now: Rc::new(Cell::new(1)) }
    }

    fn driver(&self) -> Serial {
        driver(Line::new(&self.sequencer, &self.now, 1, 0))
    }

    fn ids(&self) -> (Epoch, Vec<i64>) {
        let (epoch, replica) = self.sequencer.borrow().restore(self.dir.path());
        let mut statement = replica.prepare("SELECT id FROM readings ORDER BY id").unwrap();
        let ids = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        (epoch, ids)
    }

    /// Turns until the device halts.
    fn halt<S: Storage>(&self, device: &mut Rig<S>, driver: &mut Serial) -> Halt {
        for _ in 0..1000 {
            if let Some(halt) = device.status().halted {
                return halt;
            }
            device.handle_flush(at(&self.now));
            let next = driver.turn(device, || at(&self.now), Duration::from_secs(1)).unwrap();
            self.now.set(self.now.get().max(next.map_or(0, Instant::as_micros)));
        }
        panic!("it does not halt: {:?}", device.status());
    }
}

type Ram = RamStorage<16, 4096>;

fn insert<S: Storage>(device: &mut Rig<S>, now: &Rc<Cell<u64>>, id: i64) {
    let row = [id.into(), 5.into(), 20.5.into()];
    device.commit(at(now), 1, |rows| rows.insert(&READINGS, &row)).unwrap();
}

#[test]
fn a_device_that_lost_its_storage_halts_and_begins_anew_when_told() {
    let world = World::new();
    let mut driver = world.driver();
    let mut device = open(Ram::new());
    insert(&mut device, &world.now, 1);
    settle(&mut device, &mut driver, &world.now);
    assert_eq!(world.ids(), (Epoch(1), vec![1]));

    let mut device = open(Ram::new());
    insert(&mut device, &world.now, 2);
    assert_eq!(world.halt(&mut device, &mut driver), Halt::Diverged);
    assert_eq!(world.ids(), (Epoch(1), vec![1]), "nothing is replaced before somebody decides");
    insert(&mut device, &world.now, 3);
    device.begin_anew(at(&world.now), Unacknowledged::Keep).unwrap();
    settle(&mut device, &mut driver, &world.now);
    assert_eq!(world.ids(), (Epoch(2), vec![2, 3]));

    // And once more, in mid-stream, with what waits thrown away; a reset changes nothing.
    insert(&mut device, &world.now, 4);
    device.begin_anew(at(&world.now), Unacknowledged::Drop).unwrap();
    insert(&mut device, &world.now, 5);
    let mut device = open(device.into_storage());
    settle(&mut device, &mut driver, &world.now);
    assert_eq!(world.ids(), (Epoch(3), vec![5]));
}

#[test]
fn a_device_that_is_challenged_says_so_and_goes_on_once_it_is_not() {
    let world = World::new();
    let access = |challenge: bool| {
        let rules = format!("[[principal]]\nname = 'd'\ncreate = ['*']\nchallenge = {challenge}");
        let access = Access::new(rules.parse().unwrap());
        access.with_token_check(|_: &[u8]| Ok(Subject { principal: "d".into(), valid_until: None }))
    };
    let challenging = world.sequencer.borrow().ingest.clone().with_access(access(true));
    world.sequencer.borrow_mut().connection = Connection::new(challenging);
    let config = DeviceConfig { token: b"fixed", ..config(1) };
    let mut device = Rig::open(config, &TABLES, Ram::new()).unwrap();
    insert(&mut device, &world.now, 1);
    let mut driver = world.driver();
    for _ in 0..100 {
        let wait = Duration::from_millis(1);
        driver.turn(&mut device, || at(&world.now), wait).unwrap();
        world.now.set(world.now.get() + 1000);
    }
    let status = device.status();
    assert!(status.challenged && !status.synced, "{status:?}");
    assert_eq!(status.link, Some(TransportErrorKind::Unauthorized));

    let lenient = world.sequencer.borrow().ingest.clone().with_access(access(false));
    world.sequencer.borrow_mut().connection = Connection::new(lenient);
    settle(&mut device, &mut driver, &world.now);
    assert!(!device.status().challenged);
    assert_eq!(world.ids(), (Epoch(1), vec![1]));
}

#[test]
fn a_copy_of_a_device_takes_the_stream_and_the_other_one_halts() {
    let world = World::new();
    let (mut one, mut other) = (world.driver(), world.driver());
    let mut device = open(Ram::new());
    insert(&mut device, &world.now, 1);
    settle(&mut device, &mut one, &world.now);
    device.save().unwrap();
    let mut copy = Device::open(config(2), &TABLES, device.into_storage()).unwrap();
    let storage = copy_of(&mut copy);
    insert(&mut copy, &world.now, 2);
    settle(&mut copy, &mut other, &world.now);
    let mut device = Device::open(config(3), &TABLES, storage).unwrap();
    insert(&mut device, &world.now, 3);
    assert_eq!(world.halt(&mut device, &mut one), Halt::Diverged);
    assert_eq!(world.ids(), (Epoch(1), vec![1, 2]));
}

/// The storage as it is, while its device goes on.
fn copy_of(device: &mut Rig<Ram>) -> Ram {
    device.save().unwrap();
    device.storage().clone()
}

#[test]
fn other_tables_are_refused_until_an_epoch_begins_with_them() {
    const MORE: [Table; 3] = [READINGS, LABELS, Table::new("more", &[Column::text("t").key()])];
    let world = World::new();
    let mut driver = world.driver();
    let mut device = open(Ram::new());
    insert(&mut device, &world.now, 1);
    settle(&mut device, &mut driver, &world.now);
    device.save().unwrap();
    let storage = device.into_storage();
    let refused = Rig::open(config(1), &MORE, storage.clone());
    assert_eq!(refused.err(), Some(DeviceError::TablesChanged));
    let mut device = Rig::open_anew(config(1), &MORE, storage.clone()).unwrap();
    device.commit(at(&world.now), 1, |rows| rows.insert(&MORE[2], &["x".into()])).unwrap();
    settle(&mut device, &mut driver, &world.now);
    let (epoch, replica) = world.sequencer.borrow().restore(world.dir.path());
    assert_eq!(epoch, Epoch(2));
    let count = |table: &str| -> i64 {
        replica.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    };
    assert_eq!((count("readings"), count("more")), (0, 1));

    let other = DeviceConfig { name: "another", ..config(1) };
    let refused = Rig::open(other, &TABLES, storage);
    assert_eq!(refused.err(), Some(DeviceError::OtherStream(StreamId::from_name(NAME))));
}

#[test]
fn what_does_not_fit_is_an_error_and_changes_nothing() {
    let world = World::new();
    let mut device = Rig::open(config(1), &TABLES, RamStorage::<2, 4096>::new()).unwrap();
    let full = |device: &mut Rig<_>| {
        device.commit(at(&world.now), 1, |rows| {
            rows.insert(&READINGS, &[9.into(), 5.into(), 0.5.into()])
        })
    };
    let label = |raw: &[u8]| -> Vec<u8> { raw.to_vec() };
    let long = label(&[7; ENTRY]);
    let too_long = device.commit(at(&world.now), 1, |rows| {
        rows.insert(&LABELS, &["a".into(), 1.into(), Value::Null, long.as_slice().into()])
    });
    assert_eq!(too_long, Err(DeviceError::Row(RowError::TooLarge)));
    let bad: [(&[Value<'_>], RowError); 4] = [
        (&[Value::Null, 5.into(), 0.5.into()], RowError::Value { column: 0 }),
        (&[1.into(), 0.5.into(), 0.5.into()], RowError::Value { column: 1 }),
        (&[1.into(), 5.into(), f64::NAN.into()], RowError::Value { column: 2 }),
        (&[1.into(), 5.into()], RowError::ColumnCount),
    ];
    for (row, error) in bad {
        let refused = device.commit(at(&world.now), 1, |rows| rows.insert(&READINGS, row));
        assert_eq!(refused, Err(DeviceError::Row(error)));
    }
    let (old, new) = ([1.into(), 5.into(), 0.5.into()], [2.into(), 5.into(), 0.5.into()]);
    for (refused, error) in [
        (
            device.commit(at(&world.now), 1, |rows| rows.update(&READINGS, &old, &new)),
            RowError::KeyChanged,
        ),
        (
            device.commit(at(&world.now), 1, |rows| rows.update(&READINGS, &old, &old)),
            RowError::Unchanged,
        ),
        (
            device.commit(at(&world.now), 1, |rows| {
                rows.insert(&READINGS, &old)?;
                rows.delete(&READINGS, &old)
            }),
            RowError::RowTwice,
        ),
    ] {
        assert_eq!(refused, Err(DeviceError::Row(error)));
    }
    // A row that was refused leaves nothing behind, also where its table's header fitted.
    device
        .commit(at(&world.now), 1, |rows| {
            rows.insert(&READINGS, &[1.into(), 5.into(), 20.5.into()])?;
            let row = ["a".into(), 1.into(), Value::Null, long.as_slice().into()];
            assert_eq!(rows.insert(&LABELS, &row), Err(RowError::TooLarge));
            rows.insert(&READINGS, &[2.into(), 5.into(), 20.5.into()])
        })
        .unwrap();
    full(&mut device).unwrap();
    assert_eq!(full(&mut device), Err(DeviceError::Full));
    assert_eq!(device.committed(), 2);
    settle(&mut device, &mut world.driver(), &world.now);
    assert_eq!(world.ids(), (Epoch(1), vec![1, 2, 9]));
    insert_more(&mut device, &world.now);
}

/// Once others are acknowledged there is room again.
fn insert_more(device: &mut Rig<RamStorage<2, 4096>>, now: &Rc<Cell<u64>>) {
    for id in [10, 11] {
        insert(device, now, id);
    }
    assert_eq!(device.status().queued, 2);
}

/// An asynchronous line: reading waits until something comes.
struct AsyncLine(Line);

impl ErrorType for AsyncLine {
    type Error = TimedOut;
}

impl embedded_io_async::Read for AsyncLine {
    async fn read(&mut self, into: &mut [u8]) -> Result<usize, TimedOut> {
        if self.0.back.is_empty() {
            std::future::pending::<()>().await;
        }
        self.0.read(into)
    }
}

impl embedded_io_async::Write for AsyncLine {
    async fn write(&mut self, bytes: &[u8]) -> Result<usize, TimedOut> {
        yield_once().await;
        self.0.write(bytes)
    }

    async fn flush(&mut self) -> Result<(), TimedOut> {
        Ok(())
    }
}

/// Lets other tasks run.
async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|_| {
        if std::mem::replace(&mut yielded, true) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Each wait lets the time pass: until then, or a millisecond where nothing is known.
struct Clock(Rc<Cell<u64>>);

impl Alarm for Clock {
    fn now(&self) -> Instant {
        at(&self.0)
    }

    async fn wait(&mut self, until: Option<Instant>) {
        yield_once().await;
        let then = until.map_or(self.0.get() + 1000, Instant::as_micros);
        self.0.set(self.0.get().max(then.min(self.0.get() + 1000)));
    }
}

#[test]
fn tasks_commit_while_the_async_driver_waits() {
    let world = World::new();
    let device = RefCell::new(open(Ram::new()));
    let line = AsyncLine(Line::new(&world.sequencer, &world.now, 1, 0));
    let mut driver = AsyncDriver::<_, FRAME, REPLY>::new(SerialTransport::<_, REPLY>::new(line, 2));
    let mut clock = Clock(Rc::clone(&world.now));
    let mut drive = pin!(driver.run(&device, &mut clock));
    let mut produce = pin!(async {
        for id in 1..=100 {
            while device.borrow().status().queued > 10 {
                yield_once().await;
            }
            insert(&mut device.borrow_mut(), &world.now, id);
            yield_once().await;
        }
        while !device.borrow().status().synced {
            yield_once().await;
        }
    });
    let mut context = Context::from_waker(Waker::noop());
    let done = (0..100_000).any(|_| {
        assert!(drive.as_mut().poll(&mut context).is_pending());
        produce.as_mut().poll(&mut context).is_ready()
    });
    assert!(done, "not everything arrives: {:?}", device.borrow().status());
    assert_eq!(world.ids(), (Epoch(1), (1..=100).collect()));
}
