//! An allocator without an operating system: hands out a fixed block front to back and takes nothing
//! back. Enough for a program that allocates a little and ends.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Size of the block in bytes.
const SIZE: usize = 1 << 20;

#[repr(align(64))]
struct Bump {
    block: UnsafeCell<[u8; SIZE]>,
    used: AtomicUsize,
}

// SAFETY: the block is only reached through pointers to parts of it, and `used` hands out each part
// once.
unsafe impl Sync for Bump {}

// SAFETY: parts do not overlap, lie within the block and are aligned as asked (beyond the block's
// own alignment nothing is given out); out of memory is null.
unsafe impl GlobalAlloc for Bump {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() > align_of::<Self>() {
            return ptr::null_mut();
        }
        let mut start = 0;
        let claimed = self.used.fetch_update(Relaxed, Relaxed, |used| {
            start = used.next_multiple_of(layout.align());
            start.checked_add(layout.size()).filter(|end| *end <= SIZE)
        });
        match claimed {
            // SAFETY: start + size is at most SIZE.
            Ok(_) => unsafe { self.block.get().cast::<u8>().add(start) },
            Err(_) => ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static HEAP: Bump = Bump { block: UnsafeCell::new([0; SIZE]), used: AtomicUsize::new(0) };
