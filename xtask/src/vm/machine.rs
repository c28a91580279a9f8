//! A virtual machine and its disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::kernel;
use crate::failure::Failure;
use crate::process;

/// The memory of a VM.
const MEMORY: &str = "192M";
/// The size of a VM's disk: most of it is a hole in a file.
const DISK_BYTES: u64 = 256 << 20;

/// For Linux: it is to boot soon, to say little, and to end rather than hang. Where the emulator has to
/// share its processor, the frequency that Linux measures of its time stamps is not theirs: time would
/// run several times too fast.
const KERNEL_ARGS: &str = "console=ttyS0 quiet panic=-1 mitigations=off \
    random.trust_cpu=on cryptomgr.notests 8250.nr_uarts=1 tsc=unstable no_timer_check";

/// A VM, by its CID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Vm {
    /// Where the application runs.
    App = 10,
    /// Where the sequencer runs.
    Sequencer = 11,
}

impl Vm {
    pub(super) fn cid(self) -> u32 {
        self as u32
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::App => "app",
            Self::Sequencer => "sequencer",
        }
    }
}

/// Boots a VM with a disk and, by the socket of the device that gives it one, with vsock. `args` are
/// for `init.sh`.
pub(super) fn qemu(disk: &Path, initramfs: &Path, vsock: Option<&str>, args: &[&str]) -> Command {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-m", MEMORY]);
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    qemu.args(["-serial", "stdio", "-M", "q35,memory-backend=memory", "-object"]);
    // The device reads and writes the VM's memory.
    qemu.arg(format!("memory-backend-memfd,id=memory,size={MEMORY},share=on"));
    qemu.arg("-drive");
    // What the VM wrote outlives it and not the host, so nothing has to reach the host's disk.
    qemu.arg(format!("file={},if=none,id=disk,format=raw,cache=unsafe", disk.display()));
    qemu.args(["-device", "virtio-blk-pci,drive=disk"]);
    if let Some(socket) = vsock {
        qemu.arg("-chardev").arg(format!("socket,id=vsock,path={socket}"));
        qemu.args(["-device", "vhost-user-vsock-pci,chardev=vsock"]);
    }
    qemu.arg("-kernel").arg(kernel::image()).arg("-initrd").arg(initramfs);
    // Init gets what follows the dashes, behind whatever the kernel does not know.
    qemu.arg("-append").arg(format!("{KERNEL_ARGS} -- do {}", args.join(" ")));
    qemu
}

/// Makes an empty disk.
pub(super) fn make_disk(disk: &Path) -> Result<(), Failure> {
    let create = || fs::File::create(disk)?.set_len(DISK_BYTES);
    create().map_err(|error| Failure::Start(format!("create {}", disk.display()), error))?;
    let mut make = Command::new(tool("mke2fs"));
    // With a journal, whatever a configuration file says: VMs are killed.
    make.args(["-q", "-t", "ext4", "-O", "has_journal"]).arg(disk);
    process::run(make)
}

/// Takes the files out of a disk that was unmounted.
pub(super) fn unpack_disk(disk: &Path, to: &Path) -> Result<(), Failure> {
    let mut debugfs = Command::new(tool("debugfs"));
    debugfs.arg("-R").arg(format!("rdump / {}", to.display())).arg(disk);
    // It tells its version by the standard error, and failures too, and succeeds all the same; what is
    // missing is missed by who looks for it.
    let told = debugfs.output().map_err(|error| Failure::Start("debugfs".into(), error))?;
    match told.status.success() {
        true => Ok(()),
        false => Err(Failure::Check(format!("debugfs does not read {}", disk.display()))),
    }
}

/// An administrator's program, which need not be in everybody's PATH.
pub(super) fn tool(name: &str) -> PathBuf {
    let places = ["/usr/sbin", "/sbin"].map(|dir| Path::new(dir).join(name));
    let found =
        process::find_program(name).or_else(|| places.into_iter().find(|path| path.is_file()));
    found.unwrap_or_else(|| name.into())
}
