//! A sensor on a Cortex-M3 without an operating system: it commits readings, keeps them in flash
//! until they are acknowledged, and sends them over a serial line. Half way it is reset in the middle
//! of a frame, twice; what it committed arrives all the same, once and in order.
//!
//! ```text
//!  main     the program: open, commit, send
//!  uart     the serial line (PL011), polled
//!  flash    flash memory: a file on the debugger's side (semihosting)
//!  clock    milliseconds since the start (SysTick)
//! ```
//!
//! It runs on QEMU's `lm3s6965evb`; `cargo xtask bare` does that, with a sequencer at the other end of
//! the line, and compares the replica with what the sensor committed.
#![no_std]
#![no_main]

mod clock;
mod flash;
mod uart;

use core::time::Duration;

use cortex_m_rt::entry;
use cortex_m_semihosting::{debug, hprintln};
use synddb_core::{
    device::{Column, Device, DeviceConfig, Driver, FlashStorage, Table},
    transport::SerialTransport,
};

use crate::{clock::Clock, flash::FileFlash, uart::Uart};

const READINGS: Table = Table::new(
    "readings",
    &[Column::integer("id").key(), Column::integer("at_ms"), Column::real("celsius")],
);

/// Readings in all.
const COUNT: u64 = 200;
/// The readings at which it is reset, and after how many bytes of a frame.
const RESETS: [(u64, usize); 2] = [(60, 1), (120, 77)];

/// Bytes of a frame and of a reply.
const FRAME: usize = 640;
const REPLY: usize = 512;
/// Frames on their way at once; bytes of a transaction; sectors of flash for entries.
type Sensor = Device<'static, FlashStorage<FileFlash, 4>, 2, 640>;

#[entry]
fn main() -> ! {
    let peripherals = cortex_m::Peripherals::take().expect("main runs once");
    let clock = Clock::start(peripherals.SYST);
    let status = match run(&clock) {
        Ok(()) => debug::EXIT_SUCCESS,
        Err(what) => {
            hprintln!("failed: {}", what);
            debug::EXIT_FAILURE
        }
    };
    loop {
        debug::exit(status);
    }
}

fn run(clock: &Clock) -> Result<(), &'static str> {
    let flash = FileFlash::open().map_err(|_| "there is no file flash.bin")?;
    let storage = FlashStorage::open(flash).map_err(|_| "the flash cannot be read")?;
    let config = DeviceConfig {
        max_frame: FRAME,
        max_reply: REPLY,
        // Two frames wait for company at most: resets should find some on their way.
        linger: Duration::from_millis(20),
        response_timeout: Duration::from_millis(500),
        // A chip has a number of its own to put here.
        ..DeviceConfig::new("sensor", [42; 32])
    };
    let mut sensor = Sensor::open(config, &[READINGS], storage).map_err(say)?;
    let line = SerialTransport::<_, REPLY>::new(Uart::start(clock), 2);
    let mut driver = Driver::<_, FRAME, REPLY>::new(line);
    hprintln!("starts after {} readings", sensor.committed());

    while !(sensor.committed() == COUNT && sensor.status().synced) {
        if sensor.committed() < COUNT && sensor.status().queued < 20 {
            let id = sensor.committed() + 1;
            // This sensor is a formula, so that everybody knows what it read.
            let (at_ms, celsius) = (id as i64 * 1000, 20.0 + id as f64 / 8.0);
            let row = [(id as i64).into(), at_ms.into(), celsius.into()];
            sensor.commit(clock.now(), 0, |rows| rows.insert(&READINGS, &row)).map_err(say)?;
            if id.is_multiple_of(30) {
                hprintln!("{} readings", id);
            }
            if let Some((_, bytes)) = RESETS.iter().find(|(at, _)| *at == id) {
                driver.transport().line().reset_after(*bytes);
                sensor.handle_flush(clock.now());
            }
        }
        driver.turn(&mut sensor, || clock.now(), Duration::from_millis(5)).map_err(say)?;
        if sensor.status().halted.is_some() {
            return Err("the sequencer holds something else");
        }
        clock.wait_for_a_tick();
    }
    sensor.save().map_err(say)?;
    hprintln!("the sequencer has {} readings", sensor.committed());
    Ok(())
}

/// Tells the error to people.
fn say(error: synddb_core::device::DeviceError<flash::Failed>) -> &'static str {
    hprintln!("{}", error);
    "see above"
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    hprintln!("{}", info);
    loop {
        debug::exit(debug::EXIT_FAILURE);
    }
}
