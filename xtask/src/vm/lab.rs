//! What a scenario works with: a temporary directory, VMs with their disks, the device that connects
//! them, a sequencer on the host, and the comparison at the end.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::console::{Console, PATIENCE, Transcript};
use super::{cache, device, initramfs, kernel};
use crate::failure::Failure;
use crate::process;

/// The port of every sequencer.
pub(super) const PORT: u32 = 8433;
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

    fn name(self) -> &'static str {
        match self {
            Self::App => "app",
            Self::Sequencer => "sequencer",
        }
    }
}

/// Where a program has its files.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// On a VM's disk.
    In(Vm),
    /// On the host.
    Host,
}

/// Whether a VM is connected to others.
#[derive(PartialEq, Eq)]
enum Vsock {
    None,
    Device,
}

/// Removed with all that is in it, unless it is to be kept.
pub(super) struct Lab {
    dir: PathBuf,
    keep: bool,
    transcript: Transcript,
    device: Option<Console>,
    /// The sockets on which the device was found waiting for a VM, by their inodes.
    used: HashMap<Vm, String>,
}

impl Lab {
    pub(super) fn new(scenario: &str, keep: bool) -> Result<Self, Failure> {
        let dir = env::temp_dir().join(format!("synddb-vm-{}-{scenario}", std::process::id()));
        cache::create_dir(&dir)?;
        let transcript = Transcript::new();
        Ok(Self { dir, keep, transcript, device: None, used: HashMap::new() })
    }

    /// Boots a VM that the device connects to the other one and to the host, with the disk that it
    /// had when it was booted before. `args` are what `init.sh` takes.
    pub(super) fn boot(&mut self, vm: Vm, args: &[&str]) -> Result<Console, Failure> {
        self.await_device(vm)?;
        self.run(vm, &Vsock::Device, args)
    }

    /// Boots a VM without a vsock device.
    pub(super) fn boot_alone(&mut self, vm: Vm, args: &[&str]) -> Result<Console, Failure> {
        self.run(vm, &Vsock::None, args)
    }

    /// A sequencer on the host, for what the application's VM sends there.
    pub(super) fn host_sequencer(&self) -> Result<Console, Failure> {
        let mut command = Command::new(program("synddb"));
        let address = format!("vsock+unix:{}:{PORT}", self.host_socket(Vm::App));
        command.args(["sequencer", "--insecure", "--listen", &address, "--data"]);
        command.arg(self.host_files()?.join("log"));
        Console::start("host", &command, &self.transcript)
    }

    /// An application on the host, for the sequencer in its VM.
    pub(super) fn host_app(&self) -> Result<Console, Failure> {
        let mut command = Command::new(program("vm-app"));
        command.arg("app").arg(self.host_files()?.join("app.db"));
        command.arg(format!("vsock+unix:{}:{PORT}", self.host_socket(Vm::Sequencer)));
        Console::start("host", &command, &self.transcript)
    }

    /// Restores from the sequencer's log in one place, and compares with the application's database
    /// in another. VMs have to be off. Tells what was equal.
    pub(super) fn compare(&self, app: Place, sequencer: Place) -> Result<String, Failure> {
        let mut command = Command::new(program("vm-app"));
        command.arg("compare").arg(self.files(app)?.join("app.db"));
        command.arg(self.files(sequencer)?.join("log"));
        let mut comparison = Console::start("comparison", &command, &self.transcript)?;
        let equal = comparison.wait_for("equal: ")?;
        comparison.end()?;
        Ok(equal)
    }

    /// What everybody said, for when something failed.
    pub(super) fn transcript(&self) -> &Transcript {
        &self.transcript
    }

    fn run(&self, vm: Vm, vsock: &Vsock, args: &[&str]) -> Result<Console, Failure> {
        let disk = self.disk(vm);
        if !disk.exists() {
            format(&disk)?;
        }
        let initramfs = self.dir.join("initramfs");
        if !initramfs.exists() {
            self.pack(&initramfs)?;
        }
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
        if *vsock == Vsock::Device {
            qemu.arg("-chardev").arg(format!("socket,id=vsock,path={}", self.vm_socket(vm)));
            qemu.args(["-device", "vhost-user-vsock-pci,chardev=vsock"]);
        }
        qemu.arg("-kernel").arg(kernel::image()).arg("-initrd").arg(initramfs);
        // Init gets what follows the dashes, behind whatever the kernel does not know.
        qemu.arg("-append").arg(format!("{KERNEL_ARGS} -- do {}", args.join(" ")));
        Console::start(vm.name(), &qemu, &self.transcript)
    }

    /// Waits until the device waits for the VM: it is one that no VM had before.
    fn await_device(&mut self, vm: Vm) -> Result<(), Failure> {
        if self.device.is_none() {
            let mut command = Command::new(device::program());
            for vm in [Vm::App, Vm::Sequencer] {
                let (socket, host) = (self.vm_socket(vm), self.host_socket(vm));
                let cid = vm.cid();
                command.args(["--vm", &format!("guest-cid={cid},socket={socket},uds-path={host}")]);
            }
            self.device = Some(Console::start("device", &command, &self.transcript)?);
        }
        let socket = self.vm_socket(vm);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let inode = listening(&socket);
            if let Some(inode) = inode.filter(|inode| self.used.get(&vm) != Some(inode)) {
                self.used.insert(vm, inode);
                return Ok(());
            }
            // Nothing tells when a socket is listened on.
            thread::sleep(Duration::from_millis(10));
        }
        Err(Failure::Check(format!("the device does not listen on {socket}")))
    }

    fn pack(&self, initramfs: &Path) -> Result<(), Failure> {
        let programs = ["synddb", "vm-app"].map(|name| {
            let stripped = self.dir.join(name);
            let mut strip = Command::new("strip");
            strip.arg("-o").arg(&stripped).arg(program(name));
            process::run(strip).map(|()| stripped)
        });
        let [synddb, app] = programs;
        cache::write(initramfs, initramfs::build(&[&synddb?, &app?])?)
    }

    /// The files that are in a place.
    fn files(&self, place: Place) -> Result<PathBuf, Failure> {
        match place {
            Place::Host => self.host_files(),
            Place::In(vm) => self.unpack(vm),
        }
    }

    fn host_files(&self) -> Result<PathBuf, Failure> {
        let dir = self.dir.join("host.files");
        cache::create_dir(&dir)?;
        Ok(dir)
    }

    /// Takes the files out of a disk that was unmounted.
    fn unpack(&self, vm: Vm) -> Result<PathBuf, Failure> {
        let out = self.dir.join(format!("{}.files", vm.name()));
        cache::create_dir(&out)?;
        let mut debugfs = Command::new(tool("debugfs"));
        debugfs.arg("-R").arg(format!("rdump / {}", out.display())).arg(self.disk(vm));
        // It tells its version by the standard error, and failures too, and succeeds all the same;
        // what is missing is missed by who looks for it.
        let told = debugfs.output().map_err(|error| Failure::Start("debugfs".into(), error))?;
        match told.status.success() {
            true => Ok(out),
            false => Err(Failure::Check(format!("debugfs of the {}'s disk failed", vm.name()))),
        }
    }

    fn disk(&self, vm: Vm) -> PathBuf {
        self.dir.join(format!("{}.disk", vm.name()))
    }

    /// By which the device and the VM talk.
    fn vm_socket(&self, vm: Vm) -> String {
        self.dir.join(format!("{}.vm", vm.name())).display().to_string()
    }

    /// By which the device and the host talk, with a port behind it.
    fn host_socket(&self, vm: Vm) -> String {
        self.dir.join(format!("{}.host", vm.name())).display().to_string()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.device = None;
        if self.keep {
            let _ = fs::write(self.dir.join("transcript"), self.transcript.to_string());
            println!("kept, with a transcript: {}", self.dir.display());
        } else {
            // What cannot be removed is in nobody's way.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn format(disk: &Path) -> Result<(), Failure> {
    let create = || fs::File::create(disk)?.set_len(DISK_BYTES);
    create().map_err(|error| Failure::Start(format!("create {}", disk.display()), error))?;
    let mut make = Command::new(tool("mke2fs"));
    // With a journal, whatever a configuration file says: VMs are killed.
    make.args(["-q", "-t", "ext4", "-O", "has_journal"]).arg(disk);
    process::run(make)
}

/// The inode of a Unix socket that somebody listens on.
fn listening(socket: &str) -> Option<String> {
    let table = fs::read_to_string("/proc/net/unix").ok()?;
    // Num RefCount Protocol Flags Type State Inode Path; the flag is __SO_ACCEPTCON.
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut rows = rows.filter(|row| row.get(7) == Some(&socket) && row[3] == "00010000");
    rows.next_back().map(|row| row[6].to_owned())
}

/// A program of the workspace.
fn program(name: &str) -> PathBuf {
    cache::target().join("debug").join(name)
}

/// An administrator's program, which need not be in everybody's PATH.
pub(super) fn tool(name: &str) -> PathBuf {
    let places = ["/usr/sbin", "/sbin"].map(|dir| Path::new(dir).join(name));
    let found =
        process::find_program(name).or_else(|| places.into_iter().find(|path| path.is_file()));
    found.unwrap_or_else(|| name.into())
}
