use synddb_core::device::Flash;
use virtio_drivers::{
    Error,
    device::blk::{SECTOR_SIZE, VirtIOBlk},
    transport::{DeviceType, pci::PciTransport},
};

use crate::virtio::{Identity, find};

/// A virtual disk as flash memory: its first blocks, all 0xFF when new.
pub(crate) struct Disk(VirtIOBlk<Identity, PciTransport>);

impl Disk {
    pub(crate) fn open() -> Option<Self> {
        VirtIOBlk::new(find(DeviceType::Block)?).ok().map(Self)
    }
}

impl Flash for Disk {
    type Error = Error;
    const SECTOR: usize = 4096;
    const WRITE: usize = 16;

    fn read(&mut self, sector: usize, mut at: usize, into: &mut [u8]) -> Result<(), Error> {
        let mut rest = into;
        while !rest.is_empty() {
            let mut block = [0; SECTOR_SIZE];
            self.0.read_blocks(block_of::<Self>(sector, at), &mut block)?;
            let from = at % SECTOR_SIZE;
            let count = rest.len().min(SECTOR_SIZE - from);
            let (now, later) = rest.split_at_mut(count);
            now.copy_from_slice(&block[from..from + count]);
            rest = later;
            at += count;
        }
        Ok(())
    }

    fn write(&mut self, sector: usize, mut at: usize, bytes: &[u8]) -> Result<(), Error> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let mut block = [0; SECTOR_SIZE];
            let number = block_of::<Self>(sector, at);
            self.0.read_blocks(number, &mut block)?;
            let from = at % SECTOR_SIZE;
            let count = rest.len().min(SECTOR_SIZE - from);
            let (now, later) = rest.split_at(count);
            block[from..from + count].copy_from_slice(now);
            self.0.write_blocks(number, &block)?;
            rest = later;
            at += count;
        }
        self.0.flush()
    }

    fn erase(&mut self, sector: usize) -> Result<(), Error> {
        for at in (0..Self::SECTOR).step_by(SECTOR_SIZE) {
            self.0.write_blocks(block_of::<Self>(sector, at), &[0xFF; SECTOR_SIZE])?;
        }
        self.0.flush()
    }
}

fn block_of<F: Flash>(sector: usize, at: usize) -> usize {
    (sector * F::SECTOR + at) / SECTOR_SIZE
}
