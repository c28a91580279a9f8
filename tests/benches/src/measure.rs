//! Clocks and counters.

use std::{fs, time::Duration};

use crate::Result;

/// The middle one, or the one at `share` of the way from the least to the greatest.
pub(crate) fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    percentile(&mut values, 0.5)
}

/// Processor time of the calling thread, by
/// [`clock_gettime`](https://man7.org/linux/man-pages/man2/clock_gettime.2.html), which is exact to the
/// moment; what `/proc` tells is as old as the last tick.
pub(crate) fn thread_cpu() -> Duration {
    #[repr(C)]
    struct Time {
        seconds: i64,
        nanoseconds: i64,
    }
    unsafe extern "C" {
        fn clock_gettime(clock: std::ffi::c_int, time: *mut Time) -> std::ffi::c_int;
    }
    const THREAD_CPU: std::ffi::c_int = 3;
    let mut time = Time { seconds: 0, nanoseconds: 0 };
    // SAFETY: a system call on a value of this frame, laid out as on 64-bit Linux.
    assert_eq!(unsafe { clock_gettime(THREAD_CPU, &mut time) }, 0, "the clock exists on Linux");
    Duration::new(time.seconds as u64, time.nanoseconds as u32)
}

/// Memory of this process that is in use, in MiB.
pub(crate) fn resident_mib() -> Result<f64> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}
