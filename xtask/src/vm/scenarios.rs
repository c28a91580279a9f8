//! What happens to an application and its sequencer in VMs. Each ends with the comparison of what the
//! sequencer has with the application's database.

use super::console::Console;
use super::lab::{Lab, PORT, Place};
use super::machine::Vm;
use crate::failure::Failure;

/// Commits that an application makes before it is interrupted, and after: each a few frames.
const SOME: u64 = 100;

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
    let url = format!("vsock://1:{PORT}");
    let mut vm = lab.boot_alone(Vm::App, &["loopback", &url])?;
    refused(&mut vm, "this kernel has no vsock: load the module vsock")?;
    refused(&mut vm, "CID 1 the module vsock_loopback")?;
    refused(&mut vm, "nobody listens on that port of that machine")?;
    vm.wait_for("the first commits are stored")?;
    vm.wait_for_commits(SOME)?;
    let stored = finish(&mut vm)?;
    done(vm)?;
    nothing_but_the_first_snapshot(&stored)?;
    lab.compare(Place::In(Vm::App), Place::In(Vm::App))
}

fn to_host(lab: &mut Lab) -> Result<String, Failure> {
    let mut sequencer = lab.host_sequencer()?;
    sequencer.wait_for("listening on")?;
    let mut app = lab.boot(Vm::App, &["app", &format!("vsock://2:{PORT}")])?;
    app.wait_for("the first commits are stored")?;
    app.wait_for_commits(SOME)?;
    let stored = finish(&mut app)?;
    done(app)?;
    sequencer.kill();
    nothing_but_the_first_snapshot(&stored)?;
    lab.compare(Place::In(Vm::App), Place::Host)
}

fn from_host(lab: &mut Lab) -> Result<String, Failure> {
    let mut sequencer = boot_sequencer(lab)?;
    sequencer.wait_for("listening on")?;
    let mut app = lab.host_app()?;
    app.wait_for("the first commits are stored")?;
    app.wait_for_commits(SOME)?;
    let stored = finish(&mut app)?;
    app.end()?;
    stop(sequencer)?;
    nothing_but_the_first_snapshot(&stored)?;
    lab.compare(Place::Host, Place::In(Vm::Sequencer))
}

fn sibling(lab: &mut Lab) -> Result<String, Failure> {
    let (no_port, no_vm) = (url(Vm::Sequencer, PORT + 1), format!("vsock://77:{PORT}"));
    let mut sequencer = boot_sequencer(lab)?;
    let mut app = lab.boot(Vm::App, &["app", &url(Vm::Sequencer, PORT), &no_port, &no_vm])?;
    sequencer.wait_for("listening on")?;
    app.wait_for("the first commits are stored")?;
    app.wait_for_commits(SOME)?;
    let stored = finish(&mut app)?;
    refused(&mut app, "nobody listens on that port of that machine")?;
    refused(&mut app, "no machine with that CID answers")?;
    done(app)?;
    stop(sequencer)?;
    nothing_but_the_first_snapshot(&stored)?;
    lab.compare(Place::In(Vm::App), Place::In(Vm::Sequencer))
}

fn sequencer_killed(lab: &mut Lab) -> Result<String, Failure> {
    let sequencer = boot_sequencer(lab)?;
    let mut app = lab.boot(Vm::App, &["app", &url(Vm::Sequencer, PORT)])?;
    app.wait_for("the first commits are stored")?;
    let before = app.wait_for_commits(SOME)?;
    sequencer.kill();
    app.wait_for_commits(before + SOME)?;
    let mut sequencer = boot_sequencer(lab)?;
    sequencer.wait_for("listening on")?;
    let stored = finish(&mut app)?;
    done(app)?;
    stop(sequencer)?;
    // It lost nothing that it had acknowledged: what was queued in the meantime was enough.
    nothing_but_the_first_snapshot(&stored)?;
    lab.compare(Place::In(Vm::App), Place::In(Vm::Sequencer))
}

fn app_killed(lab: &mut Lab) -> Result<String, Failure> {
    let mut sequencer = boot_sequencer(lab)?;
    let url = url(Vm::Sequencer, PORT);
    let app = lab.boot(Vm::App, &["app", &url])?;
    sequencer.wait_for("listening on")?;
    let before = killed_at_work(app, 0)?;
    // From here on it needs no snapshot to go on after that.
    let app = lab.boot(Vm::App, &["durable-app", &url])?;
    let before = killed_at_work(app, before)?;
    let mut app = lab.boot(Vm::App, &["durable-app", &url])?;
    at_work(&mut app, before)?;
    let stored = finish(&mut app)?;
    done(app)?;
    stop(sequencer)?;
    if !stored.ends_with("snapshots because of []") {
        return Err(Failure::Check(format!("no snapshot was to do, but it stored {stored}")));
    }
    lab.compare(Place::In(Vm::App), Place::In(Vm::Sequencer))
}

/// Kills an application that goes on from so many commits; returns how many it has told of.
fn killed_at_work(mut app: Console, from: u64) -> Result<u64, Failure> {
    let commits = at_work(&mut app, from)?;
    app.kill();
    Ok(commits)
}

/// Has an application go on from so many commits, which nothing may have taken from it.
fn at_work(app: &mut Console, from: u64) -> Result<u64, Failure> {
    let kept = app.wait_for("starts with ")?;
    let number = kept.split(' ').next().and_then(|number| number.parse::<u64>().ok());
    if number.is_none_or(|number| number < from) {
        return Err(app.failure(&format!("it had told of {from} commits, and has {kept}")));
    }
    app.wait_for("the first commits are stored")?;
    app.wait_for_commits(from + SOME)
}

fn boot_sequencer(lab: &mut Lab) -> Result<Console, Failure> {
    lab.boot(Vm::Sequencer, &["sequencer", &format!("vsock://any:{PORT}")])
}

fn url(vm: Vm, port: u32) -> String {
    format!("vsock://{}:{port}", vm.cid())
}

/// Has the application push the rest; returns what it says about all of it.
fn finish(app: &mut Console) -> Result<String, Failure> {
    app.say("stop")?;
    app.wait_for("stored ")
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

fn nothing_but_the_first_snapshot(stored: &str) -> Result<(), Failure> {
    if stored.ends_with("snapshots because of [(FirstAttach, 1)]") {
        return Ok(());
    }
    Err(Failure::Check(format!("one snapshot was to do, but it stored {stored}")))
}
