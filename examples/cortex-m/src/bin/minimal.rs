//! The smallest sender that is of use, for its size: one table, transactions of 600 bytes, one frame
//! on its way, a serial line, entries in memory. `cargo xtask bare` prints what of the flash and the
//! memory it takes; it is linked for that, and not run.
#![no_std]
#![no_main]

use core::{fmt, time::Duration};

use cortex_m_rt::entry;
use embedded_io::{ErrorKind, ErrorType, Read, Write};
use synddb_core::{
    Instant,
    device::{Column, Device, DeviceConfig, Driver, FlashStorage, RamStorage, Table},
    receiver::Receiver,
    sender::Sender,
    transport::{Link, SerialTransport},
};

const READINGS: Table =
    Table::new("readings", &[Column::integer("id").key(), Column::real("celsius")]);

const FRAME: usize = 600;
const REPLY: usize = 512;
type Minimal = Device<'static, RamStorage<16, 1024>, 1, FRAME>;

/// Sizes of types in bytes as this target lays them out, in the order of the table in
/// `synddb-core/SIZES.md`; read by `cargo xtask bare`.
#[used]
#[unsafe(link_section = ".synddb_sizes")]
static SIZES: [u32; 8] = [
    size_of::<Sender<1>>() as u32,
    size_of::<Sender<2>>() as u32,
    size_of::<Sender<4>>() as u32,
    size_of::<Sender<16>>() as u32,
    size_of::<Receiver>() as u32,
    size_of::<Minimal>() as u32,
    size_of::<FlashStorage<(), 4>>() as u32,
    size_of::<SerialTransport<(), 512>>() as u32,
];

/// A UART somewhere: two registers.
struct Uart;

const DATA: usize = 0x4000_C000;
const FLAGS: usize = DATA + 0x18;

#[entry]
fn main() -> ! {
    let mut micros = 0;
    let mut driver = Driver::<_, FRAME, REPLY>::new(SerialTransport::<_, REPLY>::new(Uart, 1));
    let config = DeviceConfig {
        max_frame: FRAME,
        max_reply: REPLY,
        ..DeviceConfig::new("minimal", [1; 32])
    };
    let Ok(mut device) = Minimal::open(config, &[READINGS], RamStorage::new()) else { halt() };
    loop {
        micros += 1;
        let id = device.committed() as i64 + 1;
        let row = [id.into(), f64::from(read(DATA)).into()];
        // Without room for it the reading is dropped.
        let _ = device.commit(Instant::from_micros(micros), 0, |rows| rows.insert(&READINGS, &row));
        let clock = || Instant::from_micros(micros);
        if driver.turn(&mut device, clock, Duration::from_millis(10)).is_err() {
            halt();
        }
    }
}

fn halt() -> ! {
    loop {
        cortex_m::asm::wfi();
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    halt()
}

#[derive(Debug)]
struct TimedOut;

impl fmt::Display for TimedOut {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

impl core::error::Error for TimedOut {}

impl embedded_io::Error for TimedOut {
    fn kind(&self) -> ErrorKind {
        ErrorKind::TimedOut
    }
}

impl ErrorType for Uart {
    type Error = TimedOut;
}

impl Read for Uart {
    fn read(&mut self, into: &mut [u8]) -> Result<usize, TimedOut> {
        match into.first_mut() {
            Some(room) if read(FLAGS) & 1 << 4 == 0 => {
                *room = read(DATA) as u8;
                Ok(1)
            }
            _ => Err(TimedOut),
        }
    }
}

impl Write for Uart {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, TimedOut> {
        for byte in bytes {
            // SAFETY: the data register of the UART that this program would own.
            unsafe { (DATA as *mut u32).write_volatile((*byte).into()) };
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<(), TimedOut> {
        Ok(())
    }
}

impl Link for Uart {
    fn set_read_timeout(&mut self, _: Duration) -> Result<(), TimedOut> {
        Ok(())
    }
}

fn read(register: usize) -> u32 {
    // SAFETY: registers of the UART that this program would own.
    unsafe { (register as *const u32).read_volatile() }
}
