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
use super::machine::{self, Vm};
use super::{cache, device, initramfs};
use crate::failure::Failure;
use crate::process;

/// The port of every sequencer.
pub(super) const PORT: u32 = 8433;
/// And the one with TLS.
pub(super) const TLS_PORT: u32 = 8434;

/// Where a program has its files.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// On a VM's disk.
    In(Vm),
    /// On the host.
    Host,
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
        self.run(vm, Some(&self.vm_socket(vm)), args)
    }

    /// Boots a VM without a vsock device.
    pub(super) fn boot_alone(&mut self, vm: Vm, args: &[&str]) -> Result<Console, Failure> {
        self.run(vm, None, args)
    }

    /// A sequencer on the host, for what the application's VM sends there.
    pub(super) fn host_sequencer(&self) -> Result<Console, Failure> {
        let (mut command, keys) = (Command::new(program("synddb")), self.keys()?);
        command.args(["sequencer", "--insecure", "--data"]).arg(self.host_files()?.join("log"));
        for address in self.addresses(Vm::App) {
            command.args(["--listen", &address]);
        }
        command.arg("--tls-cert").arg(keys.join("server.crt"));
        command.arg("--tls-key").arg(keys.join("server.key"));
        command.arg("--tls-client-pin").arg(cache::read(&keys.join("client.pin"))?);
        Console::start("host", &command, &self.transcript)
    }

    /// An application on the host, for the sequencer in its VM.
    pub(super) fn host_app(&self, tls: bool) -> Result<Console, Failure> {
        let (mut command, keys) = (Command::new(program("vm-app")), self.keys()?);
        let [plain, with_tls] = self.addresses(Vm::Sequencer);
        command.arg("app").arg(self.host_files()?.join("app.db"));
        if tls {
            command.arg(with_tls);
            command.env("SYNDDB_TLS_PINS", cache::read(&keys.join("server.pin"))?);
            command.env("SYNDDB_TLS_CERT", keys.join("client.crt"));
            command.env("SYNDDB_TLS_KEY", keys.join("client.key"));
        } else {
            command.arg(plain);
        }
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

    fn run(&self, vm: Vm, vsock: Option<&str>, args: &[&str]) -> Result<Console, Failure> {
        let (disk, initramfs) = (self.disk(vm), self.dir.join("initramfs"));
        if !disk.exists() {
            machine::make_disk(&disk)?;
        }
        if !initramfs.exists() {
            self.pack(&initramfs)?;
        }
        let qemu = machine::qemu(&disk, &initramfs, vsock, args);
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

    /// Addresses of a VM on the host: in the clear, and with TLS.
    fn addresses(&self, vm: Vm) -> [String; 2] {
        let socket = self.host_socket(vm);
        [format!("vsock+unix:{socket}:{PORT}"), format!("vsock+unix+tls:{socket}:{TLS_PORT}")]
    }

    /// Keys and certificates of a sequencer and its application, and files with the keys' pins.
    fn keys(&self) -> Result<PathBuf, Failure> {
        let dir = self.dir.join("keys");
        if dir.exists() {
            return Ok(dir);
        }
        let (program, out) = (program("synddb"), dir.to_string_lossy());
        let told = process::output(&program.to_string_lossy(), &["keygen", "--out", &out]);
        for name in ["server", "client"] {
            let pin = told.iter().flat_map(|told| told.lines()).find_map(|line| {
                line.trim()
                    .strip_prefix(name)
                    .map(str::trim)
                    .filter(|pin| pin.starts_with("sha256:"))
            });
            let pin =
                pin.ok_or_else(|| Failure::Check(format!("keygen told no pin of a {name}")))?;
            cache::write(&dir.join(format!("{name}.pin")), pin)?;
        }
        Ok(dir)
    }

    fn pack(&self, initramfs: &Path) -> Result<(), Failure> {
        let programs = ["synddb", "vm-app"].map(|name| {
            let stripped = self.dir.join(name);
            let mut strip = Command::new("strip");
            strip.arg("-o").arg(&stripped).arg(program(name));
            process::run(strip).map(|()| stripped)
        });
        let [synddb, app] = programs;
        cache::write(initramfs, initramfs::build(&[&synddb?, &app?], &self.keys()?)?)
    }

    /// The files that are in a place.
    fn files(&self, place: Place) -> Result<PathBuf, Failure> {
        match place {
            Place::Host => self.host_files(),
            Place::In(vm) => {
                let dir = self.dir.join(format!("{}.files", vm.name()));
                cache::create_dir(&dir)?;
                machine::unpack_disk(&self.disk(vm), &dir)?;
                Ok(dir)
            }
        }
    }

    fn host_files(&self) -> Result<PathBuf, Failure> {
        let dir = self.dir.join("host.files");
        cache::create_dir(&dir)?;
        Ok(dir)
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
