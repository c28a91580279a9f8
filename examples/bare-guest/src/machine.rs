//! What the machine has beside memory: ports, a serial console, a clock, a way out.

use core::{
    arch::{asm, x86_64::_rdtsc},
    fmt::{self, Write},
};

use synddb_core::Instant;

/// The serial console's data and status.
const CONSOLE: u16 = 0x3F8;
const CONSOLE_STATUS: u16 = CONSOLE + 5;
const CONSOLE_READY: u8 = 0x20;
/// QEMU's `isa-debug-exit`: its exit status is twice the value, plus one.
const EXIT: u16 = 0xF4;

pub(crate) fn write_u8(port: u16, value: u8) {
    // SAFETY: this program owns the machine; the ports it names are the devices of QEMU's q35, and
    // writing to them reaches no memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

pub(crate) fn write_u32(port: u16, value: u32) {
    // SAFETY: as `write_u8`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) }
}

fn read_u8(port: u16) -> u8 {
    let value: u8;
    // SAFETY: as `write_u8`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) }
    value
}

pub(crate) fn read_u32(port: u16) -> u32 {
    let value: u32;
    // SAFETY: as `write_u8`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) }
    value
}

/// Ends the virtual machine: QEMU's exit status is 33 or 35.
pub(crate) fn exit(success: bool) -> ! {
    write_u32(EXIT, if success { 0x10 } else { 0x11 });
    loop {
        core::hint::spin_loop();
    }
}

/// The serial console.
pub(crate) struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while read_u8(CONSOLE_STATUS) & CONSOLE_READY == 0 {}
            write_u8(CONSOLE, byte);
        }
        Ok(())
    }
}

/// The time since power-on by the processor's counter, which counts nanoseconds in an emulated
/// machine, and a few times faster in others: timeouts come early there, nothing else.
pub(crate) fn now() -> Instant {
    // SAFETY: every x86-64 processor has the counter.
    Instant::from_micros(unsafe { _rdtsc() } / 1000)
}
