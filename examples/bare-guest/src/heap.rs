//! An allocator: hands out a block front to back, and takes back what was handed out last. The
//! drivers' requests come and go in that order.

use core::{
    alloc::{GlobalAlloc, Layout},
    cell::UnsafeCell,
    ptr,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

const SIZE: usize = 4 << 20;

#[repr(align(4096))]
struct Heap {
    block: UnsafeCell<[u8; SIZE]>,
    used: AtomicUsize,
}

// SAFETY: there is one thread and no interrupts; parts of the block are handed out once at a time.
unsafe impl Sync for Heap {}

// SAFETY: parts do not overlap, lie within the block and are aligned as asked (beyond the block's
// own alignment nothing is given out); out of memory is null.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let start = self.used.load(Relaxed).next_multiple_of(layout.align());
        match start.checked_add(layout.size()) {
            Some(end) if end <= SIZE && layout.align() <= align_of::<Self>() => {
                self.used.store(end, Relaxed);
                // SAFETY: start + size is at most SIZE.
                unsafe { self.block.get().cast::<u8>().add(start) }
            }
            _ => ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, part: *mut u8, layout: Layout) {
        let start = part.addr() - self.block.get().addr();
        if start + layout.size() == self.used.load(Relaxed) {
            self.used.store(start, Relaxed);
        }
    }
}

#[global_allocator]
static HEAP: Heap = Heap { block: UnsafeCell::new([0; SIZE]), used: AtomicUsize::new(0) };
