use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use cortex_m::peripheral::{SYST, syst::SystClkSource};
use cortex_m_rt::exception;
use synddb_core::Instant;

/// Ticks of the core's clock in a millisecond, as the board starts.
const TICKS: u32 = 12_500;

static MILLIS: AtomicU32 = AtomicU32::new(0);

/// Milliseconds since the start.
pub(crate) struct Clock(());

impl Clock {
    pub(crate) fn start(mut timer: SYST) -> Self {
        timer.set_clock_source(SystClkSource::Core);
        timer.set_reload(TICKS - 1);
        timer.clear_current();
        timer.enable_interrupt();
        timer.enable_counter();
        Self(())
    }

    pub(crate) fn now(&self) -> Instant {
        Instant::from_micros(u64::from(MILLIS.load(Relaxed)) * 1000)
    }

    /// Sleeps until the next tick, at most.
    pub(crate) fn wait_for_a_tick(&self) {
        cortex_m::asm::wfi();
    }
}

#[exception]
fn SysTick() {
    // One writer, and no atomic addition on the smallest cores.
    MILLIS.store(MILLIS.load(Relaxed).wrapping_add(1), Relaxed);
}
