//! The virtual machine's devices, found on its PCI bus.

use alloc::alloc::{alloc_zeroed, dealloc};
use core::{alloc::Layout, ptr::NonNull};

use virtio_drivers::{
    BufferDirection, Hal, PAGE_SIZE, PhysAddr,
    transport::{
        DeviceType,
        pci::{
            PciTransport,
            bus::{Command, ConfigurationAccess, DeviceFunction, PciRoot},
            virtio_device_type,
        },
    },
};

use crate::machine::{read_u32, write_u32};

/// Memory as devices see it: every address is what it is.
pub(crate) struct Identity;

// SAFETY: all memory is mapped to its own address, and devices reach all of it; what is allocated
// is aligned to a page, zeroed, and nobody else's.
unsafe impl Hal for Identity {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // SAFETY: drivers ask for one page at least.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout(pages)) }).expect("out of memory");
        (memory.addr().get() as PhysAddr, memory)
    }

    unsafe fn dma_dealloc(_: PhysAddr, memory: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: by contract it came from `dma_alloc` with as many pages.
        unsafe { dealloc(memory.as_ptr(), layout(pages)) };
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::new(address as *mut u8).expect("no device lies at address 0")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.addr().get() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

fn layout(pages: usize) -> Layout {
    Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).expect("drivers ask for a few pages")
}

/// The bus's configuration space by the ports of old.
pub(crate) struct Ports;

impl Ports {
    fn select(device: DeviceFunction, register: u8) {
        let [bus, slot, function] = [device.bus, device.device, device.function].map(u32::from);
        let register = u32::from(register & 0xFC);
        write_u32(0xCF8, 0x8000_0000 | bus << 16 | slot << 11 | function << 8 | register);
    }
}

impl ConfigurationAccess for Ports {
    fn read_word(&self, device: DeviceFunction, register: u8) -> u32 {
        Self::select(device, register);
        read_u32(0xCFC)
    }

    fn write_word(&mut self, device: DeviceFunction, register: u8, value: u32) {
        Self::select(device, register);
        write_u32(0xCFC, value);
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self
    }
}

/// The first device of this kind.
pub(crate) fn find(kind: DeviceType) -> Option<PciTransport> {
    let mut bus = PciRoot::new(Ports);
    let mut devices = bus.enumerate_bus(0);
    let (device, _) = devices.find(|(_, info)| virtio_device_type(info) == Some(kind))?;
    bus.set_command(device, Command::IO_SPACE | Command::MEMORY_SPACE | Command::BUS_MASTER);
    PciTransport::new::<Identity, _>(&mut bus, device).ok()
}
