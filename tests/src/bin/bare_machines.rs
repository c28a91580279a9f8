//! `bare-machines CORTEX_M GUEST VSOCK_DEVICE`: runs two programs for machines without an operating
//! system under QEMU against a real sequencer, takes their power away in between, and
//! compares the replica with what they committed. Started by `cargo xtask bare`, which builds them.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rusqlite::Connection;
use synddb_core::{Epoch, StreamId};
use synddb_sequencer::{Config, ListenAddress, Server, replica::Restore, store::SqliteStore};

/// How long a machine may take, on a machine without hardware virtualisation that is busy.
const PATIENCE: Duration = Duration::from_secs(120);

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let args: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    let [cortex_m, guest, device] = &args[..] else {
        eprintln!("usage: bare-machines CORTEX_M GUEST VSOCK_DEVICE");
        return ExitCode::from(2);
    };
    let checks: [(&str, &dyn Fn() -> Result<()>); 2] = [
        ("cortex-m", &|| check_cortex_m(cortex_m)),
        ("bare-guest", &|| check_guest(guest, device)),
    ];
    for (name, check) in checks {
        let start = Instant::now();
        if let Err(error) = check() {
            eprintln!("{name}: {error}");
            return ExitCode::FAILURE;
        }
        let took = start.elapsed().as_secs_f64();
        println!("{name}: the replica holds exactly its rows ({took:.1} s)");
    }
    ExitCode::SUCCESS
}

/// Resets itself twice in the middle of a frame; here its power goes once more.
fn check_cortex_m(program: &Path) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let sequencer = Sequencer::start(dir.path(), "line")?;
    // Erased flash: 6 sectors of 1 KiB.
    fs::write(dir.path().join("flash.bin"), [0xFF; 6 * 1024])?;
    let boot = || {
        let mut qemu = Command::new("qemu-system-arm");
        qemu.args(["-M", "lm3s6965evb", "-nographic", "-monitor", "none"]);
        qemu.args(["-semihosting-config", "enable=on,target=native,chardev=out"]);
        qemu.args(["-chardev", "stdio,id=out,signal=off"]);
        let line = format!("socket,id=line,path={},server=off", sequencer.socket.display());
        qemu.args(["-chardev", &line, "-serial", "chardev:line"]);
        qemu.arg("-kernel").arg(program).current_dir(dir.path());
        Machine::boot(qemu)
    };
    let mut machine = boot()?;
    machine.wait_for("starts after 0 readings")?;
    machine.wait_for("starts after 60 readings")?;
    machine.wait_for("90 readings")?;
    machine.cut_power()?;
    let mut machine = boot()?;
    machine.wait_for("starts after 120 readings")?;
    machine.wait_for("the sequencer has 200 readings")?;
    machine.succeed(0)?;

    let (epoch, replica) = sequencer.restore("sensor")?;
    expect("epoch", epoch, Epoch(1))?;
    let mut statement = replica.prepare("SELECT id, at_ms, celsius FROM readings ORDER BY id")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let rows: Vec<(i64, i64, f64)> = rows.collect::<rusqlite::Result<_>>()?;
    let formula = |id: i64| (id, id * 1000, 20.0 + id as f64 / 8.0);
    expect("readings", rows, (1..=200).map(formula).collect())
}

/// Its power goes half way; what it committed lies on its disk.
fn check_guest(program: &Path, device: &Path) -> Result<()> {
    let dir = tempfile::tempdir()?;
    // The device passes connections to the host's port on to this socket.
    let sequencer = Sequencer::start(dir.path(), "vsock_7100")?;
    fs::write(dir.path().join("disk.img"), vec![0xFF; 10 * 4096])?;
    let boot = || -> Result<(Machine, Machine)> {
        let socket = dir.path().join("device");
        let _ = fs::remove_file(&socket);
        let mut device = Command::new(device);
        device.current_dir(dir.path());
        device.args(["--vm", "guest-cid=10,socket=device,uds-path=vsock"]);
        let device = Machine::boot(device)?;
        wait_until("the vsock device to listen", || socket.exists())?;
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-accel", "tcg", "-cpu", "max", "-m", "64M", "-M", "q35,memory-backend=mem"]);
        qemu.args(["-object", "memory-backend-memfd,id=mem,size=64M,share=on"]);
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        qemu.args(["-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
        // What QEMU was told to write survives its end, which is all that is tried here.
        qemu.args(["-drive", "file=disk.img,if=none,id=disk,format=raw,cache=unsafe"]);
        qemu.args(["-device", "virtio-blk-pci,drive=disk"]);
        qemu.args(["-chardev", "socket,id=vsock,path=device"]);
        qemu.args(["-device", "vhost-user-vsock-pci,chardev=vsock"]);
        qemu.arg("-kernel").arg(program).current_dir(dir.path());
        Ok((device, Machine::boot(qemu)?))
    };
    let (device, mut machine) = boot()?;
    machine.wait_for("starts after 0 orders")?;
    machine.wait_for("half of the orders are committed")?;
    machine.cut_power()?;
    drop(device);
    let (_device, mut machine) = boot()?;
    machine.wait_for("the sequencer has 1000 orders")?;
    machine.succeed(33)?;

    let (epoch, replica) = sequencer.restore("shop")?;
    expect("epoch", epoch, Epoch(1))?;
    let mut statement = replica.prepare("SELECT id, item, quantity FROM orders ORDER BY id")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let rows: Vec<(i64, String, i64)> = rows.collect::<rusqlite::Result<_>>()?;
    let formula = |id: i64| (id, "apple".to_owned(), id % 7 + 1);
    expect("orders", rows, (1..=1000).map(formula).collect())?;
    let stock: i64 = replica.query_row("SELECT quantity FROM stock", [], |row| row.get(0))?;
    expect("stock", stock, 100_000 - (1..=1000).map(|id| id % 7 + 1).sum::<i64>())
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what} at the replica: {found:?}, expected {expected:?}").into())
}

/// A program that runs, and what it prints.
struct Machine {
    child: Child,
    lines: mpsc::Receiver<String>,
    said: Vec<String>,
}

impl Machine {
    fn boot(mut command: Command) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
        let out = child.stdout.take().ok_or("no standard output")?;
        let (tell, lines) = mpsc::channel();
        // Ends with the program.
        thread::spawn(move || {
            for line in BufReader::new(out).split(b'\n').map_while(std::result::Result::ok) {
                let _ = tell.send(String::from_utf8_lossy(&line).trim().to_owned());
            }
        });
        Ok(Self { child, lines, said: Vec::new() })
    }

    fn wait_for(&mut self, line: &str) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(said) if said == line => return Ok(()),
                Ok(said) => self.said.push(said),
                Err(_) => {
                    return Err(format!("it never said `{line}`, but {:?}", self.said).into());
                }
            }
        }
    }

    /// As if somebody pulled the plug.
    fn cut_power(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn succeed(&mut self, expected: i32) -> Result<()> {
        let status = self.child.wait()?;
        if status.code() == Some(expected) {
            return Ok(());
        }
        Err(format!("it ended with {status}").into())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It has ended already where this fails.
        let _ = self.cut_power();
    }
}

fn wait_until(what: &str, done: impl Fn() -> bool) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    while !done() {
        if Instant::now() > until {
            return Err(format!("waited too long for {what}").into());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A sequencer at a Unix socket.
struct Sequencer {
    _server: Server,
    dir: PathBuf,
    socket: PathBuf,
}

impl Sequencer {
    fn start(dir: &Path, name: &str) -> Result<Self> {
        let socket = dir.join(name);
        let address: ListenAddress = format!("unix:{}", socket.display()).parse()?;
        let server = Server::start(Config::new(address, dir.join("data")))?;
        Ok(Self { _server: server, dir: dir.to_owned(), socket })
    }

    fn restore(&self, name: &str) -> Result<(Epoch, Connection)> {
        let log = SqliteStore::open_read_only(&self.dir.join("data"))?;
        let out = self.dir.join("restored.db");
        let restored = Restore::new(&log, StreamId::from_name(name))
            .run(&out, |_| ControlFlow::Continue(()))?;
        Ok((restored.epoch, Connection::open(out)?))
    }
}
