use cortex_m_semihosting::syscall;
use synddb_core::device::Flash;

/// The file in the directory in which QEMU runs; as long as all sectors, and all 0xFF when new.
const PATH: &[u8] = b"flash.bin\0";
/// Semihosting's number for the mode `r+b`.
const READ_WRITE: usize = 3;

/// Flash memory that survives resets and more: a file at the debugger.
pub(crate) struct FileFlash {
    handle: usize,
}

/// The debugger could not do it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Failed;

impl FileFlash {
    pub(crate) fn open() -> Result<Self, Failed> {
        // SAFETY: the path ends with a zero and its length is given without it.
        let handle = unsafe { syscall!(OPEN, PATH.as_ptr(), READ_WRITE, PATH.len() - 1) };
        if handle == usize::MAX { Err(Failed) } else { Ok(Self { handle }) }
    }

    fn seek(&mut self, sector: usize, at: usize) -> Result<(), Failed> {
        // SAFETY: the call takes two numbers.
        let result = unsafe { syscall!(SEEK, self.handle, sector * Self::SECTOR + at) };
        if result == 0 { Ok(()) } else { Err(Failed) }
    }
}

impl Flash for FileFlash {
    type Error = Failed;
    const SECTOR: usize = 1024;
    const WRITE: usize = 4;

    fn read(&mut self, sector: usize, at: usize, into: &mut [u8]) -> Result<(), Failed> {
        self.seek(sector, at)?;
        // SAFETY: the debugger writes at most so many bytes there.
        let left = unsafe { syscall!(READ, self.handle, into.as_mut_ptr(), into.len()) };
        if left == 0 { Ok(()) } else { Err(Failed) }
    }

    fn write(&mut self, sector: usize, at: usize, bytes: &[u8]) -> Result<(), Failed> {
        self.seek(sector, at)?;
        // SAFETY: the debugger reads so many bytes there.
        let left = unsafe { syscall!(WRITE, self.handle, bytes.as_ptr(), bytes.len()) };
        if left == 0 { Ok(()) } else { Err(Failed) }
    }

    fn erase(&mut self, sector: usize) -> Result<(), Failed> {
        (0..Self::SECTOR).step_by(64).try_for_each(|at| self.write(sector, at, &[0xFF; 64]))
    }
}
