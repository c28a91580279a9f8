//! What an operating system library would give: the entry point, leaving, a message on standard
//! error, and the functions that the compiler emits calls to.

use core::arch::{asm, global_asm};
use core::fmt::{self, Write};
use core::panic::PanicInfo;

// The kernel jumps here with the stack pointer at argc, aligned to 16 bytes. A called function
// expects the alignment as it is before the call pushes the return address; rbp = 0 ends backtraces.
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "and rsp, -16",
    "call {main}",
    "ud2",
    main = sym crate::main,
);

const SYS_WRITE: usize = 1;
const SYS_EXIT_GROUP: usize = 231;
const STDERR: usize = 2;

/// Ends the program with this exit status.
pub(crate) fn exit(status: i32) -> ! {
    // SAFETY: exit_group takes one integer and does not return.
    unsafe { asm!("syscall", in("rax") SYS_EXIT_GROUP, in("rdi") status, options(noreturn)) }
}

/// Ends the program with a message and the exit status 1.
pub(crate) fn fail(message: fmt::Arguments<'_>) -> ! {
    // A message that cannot be written does not change the verdict.
    let _ = writeln!(StandardError, "nostd-proof: {message}");
    exit(1)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    fail(format_args!("{info}"))
}

struct StandardError;

impl Write for StandardError {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // SAFETY: write only reads the given bytes, which are valid for the call. The kernel keeps
        // every register but rax, rcx and r11.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") SYS_WRITE => _,
                in("rdi") STDERR,
                in("rsi") text.as_ptr(),
                in("rdx") text.len(),
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        Ok(())
    }
}

/// Functions that compiled code calls by name without any source asking for it. They are string
/// instructions rather than loops, since the compiler may turn a loop that copies into a call of the
/// very `memcpy` that it stands in.
///
/// The contracts are those of the C standard: pointers valid for `n` bytes, `memcpy` without overlap.
/// The ABI guarantees that the direction flag is clear on entry and wants it so on return.
mod called_by_the_compiler {
    use core::arch::asm;

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
        // SAFETY: by contract `n` bytes may be read at `from` and written at `to`.
        unsafe {
            asm!(
                "rep movsb",
                inout("rcx") n => _,
                inout("rdi") to => _,
                inout("rsi") from => _,
                options(nostack, preserves_flags),
            );
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
        if to.addr().wrapping_sub(from.addr()) >= n {
            // SAFETY: `to` does not begin within the source, so copying upwards reads every byte
            // before it is overwritten, which is all that this memcpy needs.
            return unsafe { memcpy(to, from, n) };
        }
        // SAFETY: as memcpy; downwards, since `to` begins within the source. n is not 0 here.
        unsafe {
            asm!(
                "std",
                "rep movsb",
                "cld",
                inout("rcx") n => _,
                inout("rdi") to.add(n - 1) => _,
                inout("rsi") from.add(n - 1) => _,
                options(nostack),
            );
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, byte: i32, n: usize) -> *mut u8 {
        // SAFETY: by contract `n` bytes may be written at `to`.
        unsafe {
            asm!(
                "rep stosb",
                inout("rcx") n => _,
                inout("rdi") to => _,
                in("al") byte as u8,
                options(nostack, preserves_flags),
            );
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
        let (after_a, after_b): (*const u8, *const u8);
        // SAFETY: by contract `n` bytes may be read at both. With n = 0 nothing is.
        unsafe {
            asm!(
                "repe cmpsb",
                inout("rcx") n => _,
                inout("rsi") a => after_a,
                inout("rdi") b => after_b,
                options(nostack, readonly),
            );
        }
        if n == 0 {
            return 0;
        }
        // SAFETY: n > 0, so at least one byte of each was compared; the last one decides.
        unsafe { i32::from(*after_a.sub(1)) - i32::from(*after_b.sub(1)) }
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
        // SAFETY: the same contract.
        unsafe { memcmp(a, b, n) }
    }

    /// Named by the unwind tables of the precompiled core; never called, since panics abort.
    #[unsafe(no_mangle)]
    extern "C" fn rust_eh_personality() {}
}
