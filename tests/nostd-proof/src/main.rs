//! Proves that `synddb-core` needs no operating system library: this program contains the core, no
//! std, no libc and no C runtime, and runs. It exits with 0 if its self test passes, with 1 and a
//! message if not.
//!
//! What proves what:
//! * It **compiles**: it brings its own panic handler, so that any crate in the graph that links
//!   std is a compile error (E0152, duplicate lang item). The feature `std-leak` does so on purpose.
//! * It **links** with `-nostdlib` (see `build.rs`): nothing calls into libc. The few symbols that
//!   the compiler itself emits calls to are in [`runtime`].
//! * It **runs**: the [`selftest`], a seeded simulation of a [`device`] and a sequencer, and
//!   [`hostile`] bytes work on what is left.
//!
//! x86_64 Linux only, because of the two system calls and the entry point in [`runtime`]. Run it by
//! `cargo xtask test nostd`, or here by `cargo run --release [--features alloc]`.
#![no_std]
#![no_main]

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("this proof is written for x86_64 Linux");

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(feature = "std-leak")]
extern crate std;

mod device;
#[cfg(feature = "alloc")]
mod heap;
mod hostile;
mod runtime;
mod selftest;

/// Called by the entry point in [`runtime`].
extern "C" fn main() -> ! {
    match selftest::run().and_then(|()| device::run()).and_then(|()| hostile::run()) {
        Ok(()) => runtime::exit(0),
        Err(what) => runtime::fail(format_args!("self test: {what}")),
    }
}
