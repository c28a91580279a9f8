//! Bytes that nobody should send, to everything that reads bytes: no panic, which here would end the
//! program with a message, and nothing that was valid and then changed is taken.

use synddb_core::changeset::{ChangesetWriter, Value, validate};
use synddb_core::device::{Column, Device, DeviceConfig, RamStorage, Table};
use synddb_core::wire::message::{Ack, Bye, Farewell};
use synddb_core::wire::{Accumulator, Message, Unpacker};
use synddb_core::{Instant, Rng};

use crate::selftest::Failure;

const ROUNDS: usize = 20_000;
const LEN: usize = 256;
const TABLE: Table = Table::new("t", &[Column::integer("id").key()]);

pub(crate) fn run() -> Result<(), Failure> {
    let mut rng = Rng::new(1);
    let storage = RamStorage::<4, 256>::new();
    let config = DeviceConfig { max_frame: 600, ..DeviceConfig::new("hostile", [1; 32]) };
    let device = Device::<_, 2, 600>::open(config, &[TABLE], storage);
    let mut device = device.map_err(|_| "a device does not open")?;
    let mut unpacker = Unpacker::new([0; LEN]);
    let mut frame = [0; 600];
    for round in 0..ROUNDS {
        let mut bytes = [0; LEN];
        let len = seed(&mut rng, &mut bytes)?;
        let changes = 1 + rng.up_to(4);
        for _ in 0..changes {
            bytes[rng.up_to(len as u64 - 1) as usize] = rng.next_u64() as u8;
        }
        let cut = &bytes[..rng.up_to(len as u64) as usize];
        for bytes in [&bytes[..len], cut] {
            if let Ok((_, Message::Entries(entries))) = Message::decode(bytes, LEN) {
                entries.entries().for_each(drop);
            }
            let _ = validate(bytes);
            let at = Instant::from_micros(round as u64 * 1_000_000);
            let _ = device.handle_frame(at, bytes);
            while device
                .poll_step(at, &mut frame)
                .map_err(|_| "a device fails at hostile bytes")?
                .is_some()
            {
                device.handle_connected(at, 1);
            }
            feed(&mut unpacker, bytes);
            let mut accumulator = Accumulator::new([0; LEN]);
            accumulator.space()[..bytes.len()].copy_from_slice(bytes);
            accumulator.filled(bytes.len());
            while let Ok(Some(_)) = accumulator.frame() {}
        }
    }
    Ok(())
}

/// Something valid, or noise.
fn seed(rng: &mut Rng, bytes: &mut [u8; LEN]) -> Result<usize, Failure> {
    let encoded = match rng.up_to(3) {
        0 => Message::Bye(Bye { farewell: Farewell::Done }).encode(rng.next_u64() as u32, bytes),
        1 => Message::Ack(Ack {
            head: Default::default(),
            staged: None,
            credit: rng.next_u64(),
            time_ms: 1,
            signature: b"signed",
        })
        .encode(1, bytes),
        2 => {
            let mut writer = ChangesetWriter::new(bytes);
            let row = [Value::Integer(1), Value::Text(b"text"), Value::Real(0.5)];
            writer.table("t", &[1, 0, 0]).map_err(|_| "a table's header")?;
            writer.insert(&row).map_err(|_| "a row")?;
            writer.delete(&row).map_err(|_| "a row")?;
            Ok(writer.finish().len())
        }
        _ => {
            bytes.fill_with(|| rng.next_u64() as u8);
            Ok(LEN)
        }
    };
    encoded.map_err(|_| "a valid frame does not fit")
}

fn feed(unpacker: &mut Unpacker<[u8; LEN]>, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let (taken, _) = unpacker.feed(bytes);
        bytes = &bytes[taken..];
    }
}
