//! What happens to an application and its sequencer in VMs. Each ends with the comparison of what the
//! sequencer has with the application's database.

use super::console::Console;
use super::lab::{Lab, PORT, Place, TLS_PORT};
use super::machine::Vm;
use crate::failure::Failure;

/// Commits that an application makes before something happens, and after.
const SOME: u64 = 60;

/// Something that happens.
pub(super) struct Scenario {
    /// Its name on the command line.
    pub(super) name: &'static str,
    /// What it shows.
    pub(super) about: &'static str,
    /// Runs it; the text says what was equal.
    pub(super) run: fn(&mut Lab) -> Result<String, Failure>,
}

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "loopback",
        about: "application and sequencer in one VM; what is told where vsock is missing",
        run: loopback,
    },
    Scenario { name: "to-host", about: "application in a VM, sequencer on the host", run: to_host },
    Scenario {
        name: "from-host",
        about: "application on the host, sequencer in a VM",
        run: from_host,
    },
    Scenario {
        name: "sibling",
        about: "application in one VM, sequencer in another; addresses where nobody is",
        run: sibling,
    },
    Scenario {
        name: "sequencer-killed",
        about: "the sequencer's VM is killed and boots again while the application goes on",
        run: sequencer_killed,
    },
    Scenario {
        name: "app-killed",
        about: "the application's VM is killed and boots again, twice: with and without a snapshot",
        run: app_killed,
    },
];

fn loopback(lab: &mut Lab) -> Result<String, Failure> {
    let [plain, tls] = addresses("1");
    let mut vm = lab.boot_alone(Vm::App, &["loopback", &plain, &tls])?;
    refused(&mut vm, "this kernel has no vsock: load the module vsock")?;
    refused(&mut vm, "CID 1 the module vsock_loopback")?;
    refused(&mut vm, "nobody listens on that port of that machine")?;
    works_over_both(&mut vm)?;
    done(vm)?;
    lab.compare(Place::In(Vm::App), Place::In(Vm::App))
}

fn to_host(lab: &mut Lab) -> Result<String, Failure> {
    let [plain, tls] = addresses("2");
    let mut sequencer = lab.host_sequencer()?;
    sequencer.wait_for("listening on")?;
    let mut app = lab.boot(Vm::App, &["app", &plain, &tls])?;
    works_over_both(&mut app)?;
    done(app)?;
    sequencer.kill();
    lab.compare(Place::In(Vm::App), Place::Host)
}

fn from_host(lab: &mut Lab) -> Result<String, Failure> {
    let mut sequencer = boot_sequencer(lab)?;
    sequencer.wait_for(LISTENING)?;
    let mut app = lab.host_app(false)?;
    let before = at_work(&mut app, 0)?;
    finish(&mut app, FIRST_SNAPSHOT)?;
    app.end()?;
    let mut app = lab.host_app(true)?;
    at_work(&mut app, before)?;
    finish(&mut app, NO_SNAPSHOT)?;
    app.end()?;
    stop(sequencer)?;
    lab.compare(Place::Host, Place::In(Vm::Sequencer))
}

fn sibling(lab: &mut Lab) -> Result<String, Failure> {
    let [plain, tls] = sequencer_addresses();
    let no_port = format!("vsock://{}:{}", Vm::Sequencer.cid(), PORT - 1);
    let no_vm = format!("vsock://77:{PORT}");
    let mut sequencer = boot_sequencer(lab)?;
    let mut app = lab.boot(Vm::App, &["app", &plain, &tls, "dial", &no_port, &no_vm])?;
    sequencer.wait_for(LISTENING)?;
    works_over_both(&mut app)?;
    refused(&mut app, "nobody listens on that port of that machine")?;
    refused(&mut app, "no machine with that CID answers")?;
    done(app)?;
    stop(sequencer)?;
    lab.compare(Place::In(Vm::App), Place::In(Vm::Sequencer))
}

fn sequencer_killed(lab: &mut Lab) -> Result<String, Failure> {
    let [_, tls] = sequencer_addresses();
    let sequencer = boot_sequencer(lab)?;
    let mut app = lab.boot(Vm::App, &["app", &tls])?;
    let before = at_work(&mut app, 0)?;
    sequencer.kill();
    app.wait_for_commits(before + SOME)?;
    let mut sequencer = boot_sequencer(lab)?;
    sequencer.wait_for(LISTENING)?;
    // It lost nothing that it had acknowledged: what was queued in the meantime is enough.
    finish(&mut app, FIRST_SNAPSHOT)?;
    done(app)?;
    stop(sequencer)?;
    lab.compare(Place::In(Vm::App), Place::In(Vm::Sequencer))
}

fn app_killed(lab: &mut Lab) -> Result<String, Failure> {
    let [plain, tls] = sequencer_addresses();
    let mut sequencer = boot_sequencer(lab)?;
    let app = lab.boot(Vm::App, &["app", &plain])?;
    sequencer.wait_for(LISTENING)?;
    let before = killed_at_work(app, 0)?;
    // From here on it needs no snapshot to go on after that.
    let app = lab.boot(Vm::App, &["durable-app", &tls])?;
    let before = killed_at_work(app, before)?;
    let mut app = lab.boot(Vm::App, &["durable-app", &tls])?;
    at_work(&mut app, before)?;
    finish(&mut app, NO_SNAPSHOT)?;
    done(app)?;
    stop(sequencer)?;
    lab.compare(Place::In(Vm::App), Place::In(Vm::Sequencer))
}

/// What a sequencer says at the second of its addresses.
const LISTENING: &str = "listening on vsock+tls:";

fn boot_sequencer(lab: &mut Lab) -> Result<Console, Failure> {
    let [plain, tls] = addresses("any");
    lab.boot(Vm::Sequencer, &["sequencer", &plain, &tls])
}

fn sequencer_addresses() -> [String; 2] {
    addresses(&Vm::Sequencer.cid().to_string())
}

/// In the clear, and with TLS.
fn addresses(cid: &str) -> [String; 2] {
    [format!("vsock://{cid}:{PORT}"), format!("vsock+tls://{cid}:{TLS_PORT}")]
}

/// Has an application work over one address, and then over another.
fn works_over_both(app: &mut Console) -> Result<(), Failure> {
    let before = at_work(app, 0)?;
    finish(app, FIRST_SNAPSHOT)?;
    at_work(app, before)?;
    finish(app, NO_SNAPSHOT)
}

/// Has an application go on from so many commits, which nothing may have taken from it; returns how
/// many it has told of then.
fn at_work(app: &mut Console, from: u64) -> Result<u64, Failure> {
    let kept = app.wait_for("starts with ")?;
    let number = kept.split(' ').next().and_then(|number| number.parse::<u64>().ok());
    if number.is_none_or(|number| number < from) {
        return Err(app.failure(&format!("it had told of {from} commits, and has {kept}")));
    }
    app.wait_for("the first commits are stored")?;
    app.wait_for_commits(from + SOME)
}

/// The same, and its power is cut.
fn killed_at_work(mut app: Console, from: u64) -> Result<u64, Failure> {
    let commits = at_work(&mut app, from)?;
    app.kill();
    Ok(commits)
}

/// What an application tells that began its stream since it was started.
const FIRST_SNAPSHOT: &str = "snapshots because of [(FirstAttach, 1)]";
/// And one that goes on.
const NO_SNAPSHOT: &str = "snapshots because of []";

/// Has the application push the rest and end.
fn finish(app: &mut Console, expected: &str) -> Result<(), Failure> {
    app.say("stop")?;
    let stored = app.wait_for("stored ")?;
    match stored.ends_with(expected) {
        true => Ok(()),
        false => Err(app.failure(&format!("expected {expected}, but it stored {stored}"))),
    }
}

/// Has the sequencer stop in order.
fn stop(mut sequencer: Console) -> Result<(), Failure> {
    sequencer.say("stop")?;
    done(sequencer)
}

/// Waits for the end of a VM's work, a good one.
fn done(mut vm: Console) -> Result<(), Failure> {
    let result = vm.wait_for("the VM is done: ")?;
    if result != "0" {
        return Err(vm.failure(&format!("failed with {result}")));
    }
    vm.end()
}

/// Waits for the outcome of a commit that nobody could take.
fn refused(vm: &mut Console, told: &str) -> Result<(), Failure> {
    let refusal = vm.wait_for("not stored: ")?;
    if refusal.contains(told) { Ok(()) } else { Err(vm.failure(&format!("did not say `{told}`"))) }
}
