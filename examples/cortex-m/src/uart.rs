use core::{fmt, time::Duration};

use embedded_io::{ErrorKind, ErrorType, Read, Write};
use synddb_core::{Instant, transport::Link};

use crate::clock::Clock;

/// UART 0 of the board, a PL011.
const BASE: usize = 0x4000_C000;
const DATA: usize = BASE;
const FLAGS: usize = BASE + 0x18;
const LINE_CONTROL: usize = BASE + 0x2C;
const CONTROL: usize = BASE + 0x30;
/// Bits of FLAGS: nothing to read, no room to write.
const EMPTY: u32 = 1 << 4;
const FULL: u32 = 1 << 5;

/// The serial line, polled.
pub(crate) struct Uart<'c> {
    clock: &'c Clock,
    timeout: Duration,
    /// Bytes until the reset that this example is about.
    reset: Option<usize>,
}

impl<'c> Uart<'c> {
    pub(crate) fn start(clock: &'c Clock) -> Self {
        // 8 bits, with the queues on; enabled in both directions.
        write(LINE_CONTROL, 0b111 << 4);
        write(CONTROL, 1 | 1 << 8 | 1 << 9);
        Self { clock, timeout: Duration::ZERO, reset: None }
    }

    /// Resets the chip in the middle of the next frame.
    pub(crate) fn reset_after(&mut self, bytes: usize) {
        self.reset = Some(bytes);
    }

    fn put(&mut self, byte: u8) {
        if let Some(left) = &mut self.reset {
            if *left == 0 {
                cortex_m::peripheral::SCB::sys_reset();
            }
            *left -= 1;
        }
        while read(FLAGS) & FULL != 0 {}
        write(DATA, byte.into());
    }

    fn take(&self) -> Option<u8> {
        (read(FLAGS) & EMPTY == 0).then(|| read(DATA) as u8)
    }
}

/// Nothing came in time.
#[derive(Debug)]
pub(crate) struct TimedOut;

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing came in time")
    }
}

impl core::error::Error for TimedOut {}

impl embedded_io::Error for TimedOut {
    fn kind(&self) -> ErrorKind {
        ErrorKind::TimedOut
    }
}

impl ErrorType for Uart<'_> {
    type Error = TimedOut;
}

impl Read for Uart<'_> {
    fn read(&mut self, into: &mut [u8]) -> Result<usize, TimedOut> {
        let until: Instant = self.clock.now() + self.timeout;
        loop {
            let mut count = 0;
            while let Some(room) = into.get_mut(count)
                && let Some(byte) = self.take()
            {
                *room = byte;
                count += 1;
            }
            if count > 0 {
                return Ok(count);
            }
            if self.clock.now() >= until {
                return Err(TimedOut);
            }
            self.clock.wait_for_a_tick();
        }
    }
}

impl Write for Uart<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, TimedOut> {
        bytes.iter().for_each(|byte| self.put(*byte));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<(), TimedOut> {
        Ok(())
    }
}

impl Link for Uart<'_> {
    fn set_read_timeout(&mut self, timeout: Duration) -> Result<(), TimedOut> {
        self.timeout = timeout;
        Ok(())
    }
}

fn read(register: usize) -> u32 {
    // SAFETY: the addresses above are the PL011's registers on this board, which nobody else uses,
    // and reading them is defined at any time.
    unsafe { (register as *const u32).read_volatile() }
}

fn write(register: usize, value: u32) {
    // SAFETY: as in `read`; what is written above are the values that the PL011's manual gives.
    unsafe { (register as *mut u32).write_volatile(value) }
}
