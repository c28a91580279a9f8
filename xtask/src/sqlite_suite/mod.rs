//! `cargo xtask sqlite-suite`: SQLite's own test scripts against the preupdate engine.
//!
//! ```text
//! fixture   source package ─▶ testfixture + attach.c     tests/sqlite-suite ─▶ library
//! run       each script ─▶ without the library ─▶ outcome ─┐
//!                       └▶ with it ─▶ outcome ─────────────┴▶ new failures
//!                                   └▶ log ─▶ suite_replay ─▶ replicas, integrity
//! ```
//!
//! A failure counts if the run without capture does not have it, and if it comes again where the
//! suite takes no images. What a run without capture came to is kept as long as the fixture is the same.

mod fixture;
mod left_out;
mod outcome;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::prereqs;
use fixture::Fixture;
use left_out::{LEFT_OUT, QUICK};
use outcome::{Outcome, Replayed};

const HELP: &str = "\
Usage: cargo xtask sqlite-suite [--all | --veryquick | --quick] [--jobs N] [NAME…]

--veryquick  the scripts that SQLite's developers call so (default)
--all        all of them, hours of failing allocations included
--quick      the fixed choice that `cargo xtask test` runs
--jobs N     scripts at a time, 2 by default
NAME         just these scripts, such as fkey2; with them also those that are left out

Runs SQLite's test scripts, from Debian's source package, with capture attached to every
connection, and compares with a run without.";

/// How long a script may take without capture, in seconds; with capture thrice as long.
const PATIENCE_S: u64 = 600;

struct Request {
    which: Which,
    jobs: usize,
}

enum Which {
    All,
    VeryQuick,
    Quick,
    Named(Vec<String>),
}

/// `cargo xtask sqlite-suite`.
pub(crate) fn sqlite_suite(args: &[String]) -> Result<(), Failure> {
    let Some(request) = parse(args)? else {
        println!("{HELP}");
        return Ok(());
    };
    prereqs::ensure(prereqs::SQLITE_SUITE.iter().copied())?;
    let fixture = Fixture::prepare()?;
    let known = fixture.scripts()?;
    let chosen = choose(&request.which, &known, &fixture)?;
    fixture.prepare_for(&chosen)?;
    let named = matches!(request.which, Which::Named(_));
    let began = Instant::now();
    let finished = run_all(&fixture, &chosen, named, request.jobs);
    let (text, failures) = summary(&finished, known.len());
    println!("\n{text}");
    println!("time {:.0} s", began.elapsed().as_secs_f64());
    println!("{} passed, {failures} failed", finished.len() - failures);
    if failures == 0 { Ok(()) } else { Err(Failure::Suites(vec!["sqlite-suite"])) }
}

fn parse(args: &[String]) -> Result<Option<Request>, Failure> {
    let mut request = Request { which: Which::VeryQuick, jobs: 2 };
    let mut named = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--help" | "-h" => return Ok(None),
            "--all" => request.which = Which::All,
            "--veryquick" => request.which = Which::VeryQuick,
            "--quick" => request.which = Which::Quick,
            "--jobs" => {
                let jobs = args.next().and_then(|jobs| jobs.parse().ok()).filter(|jobs| *jobs > 0);
                request.jobs =
                    jobs.ok_or_else(|| Failure::Usage(format!("--jobs takes a number\n\n{HELP}")))?;
            }
            option if option.starts_with('-') => {
                return Err(Failure::Usage(format!("there is no option `{option}`\n\n{HELP}")));
            }
            name => named.push(name.trim_end_matches(".test").to_owned()),
        }
    }
    if !named.is_empty() {
        request.which = Which::Named(named);
    }
    Ok(Some(request))
}

fn choose(
    which: &Which,
    known: &[(String, PathBuf)],
    fixture: &Fixture,
) -> Result<Vec<(String, PathBuf)>, Failure> {
    let names: Vec<String> = match which {
        Which::All => return Ok(known.to_vec()),
        Which::VeryQuick => fixture.veryquick()?,
        Which::Quick => QUICK.iter().map(|name| (*name).to_owned()).collect(),
        Which::Named(names) => names.clone(),
    };
    let mut chosen = Vec::new();
    for name in names {
        match known.iter().find(|(known, _)| *known == name) {
            Some(script) => chosen.push(script.clone()),
            // The list has drivers too.
            None if matches!(which, Which::VeryQuick) => {}
            None => return Err(Failure::Usage(format!("SQLite has no test script {name}"))),
        }
    }
    Ok(chosen)
}

/// A script and what came of it.
struct Finished {
    name: String,
    verdict: Verdict,
    took: Duration,
    tests: u64,
    replayed: Option<Replayed>,
    /// Patterns of the table that nothing matched.
    idle: Vec<&'static str>,
}

enum Verdict {
    Passed,
    /// What is new, by test or in words.
    Failed(Vec<String>),
    LeftOut,
    /// The run without capture already comes to nothing.
    Unfit(String),
}

fn run_all(
    fixture: &Fixture,
    scripts: &[(String, PathBuf)],
    named: bool,
    jobs: usize,
) -> Vec<Finished> {
    let next = AtomicUsize::new(0);
    let finished = Mutex::new(Vec::new());
    let work = || {
        while let Some((name, path)) = scripts.get(next.fetch_add(1, Ordering::Relaxed)) {
            let began = Instant::now();
            let mut result = run_script(fixture, name, path, named);
            result.took = began.elapsed();
            let mut finished = finished.lock().expect("no worker panics while it holds the lock");
            if let Verdict::Failed(new) = &result.verdict {
                println!("{name}: NEW {}", new.join(" "));
            } else if finished.len() % 100 == 99 {
                println!("{} of {} scripts", finished.len() + 1, scripts.len());
            }
            finished.push(result);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(work);
        }
    });
    let mut finished = finished.into_inner().expect("no worker panicked");
    finished.sort_by(|one: &Finished, other| one.name.cmp(&other.name));
    finished
}

fn run_script(fixture: &Fixture, name: &str, path: &Path, named: bool) -> Finished {
    let done = |verdict, tests, replayed| Finished {
        name: name.to_owned(),
        verdict,
        took: Duration::ZERO,
        tests,
        replayed,
        idle: Vec::new(),
    };
    let entry = LEFT_OUT.iter().find(|entry| entry.script == name);
    if entry.is_some_and(|entry| !named && entry.tests.is_empty()) {
        return done(Verdict::LeftOut, 0, None);
    }
    let (tests, known) = match plain(fixture, name, path) {
        Outcome::Ended { tests, failed } => (tests, failed),
        Outcome::TimedOut => return done(Verdict::Unfit("takes too long".into()), 0, None),
        Outcome::Died { last } => return done(Verdict::Unfit(last), 0, None),
    };
    let expected = |test: &str| {
        known.iter().any(|known| known == test)
            || entry.is_some_and(|entry| entry.tests.iter().any(|tests| matches(tests, test)))
    };
    let (outcome, replayed) = captured(fixture, name, path, &[]);
    let (tests_failed, mut new) = match outcome {
        Outcome::Ended { failed, .. } => (failed, Vec::new()),
        Outcome::TimedOut => (Vec::new(), vec!["timeout".to_owned()]),
        Outcome::Died { last } => (Vec::new(), vec![format!("died: {last}")]),
    };
    let different: Vec<String> =
        replayed.different.iter().map(|text| format!("replica: {text}")).collect();
    let idle = entry.map_or(&[][..], |entry| entry.tests).iter().copied().filter(|pattern| {
        let named = |test: &String| matches(pattern, test) && !known.contains(test);
        !tests_failed.iter().chain(&different).any(named)
    });
    let idle = idle.collect();
    let suspects: Vec<String> = tests_failed.into_iter().filter(|test| !expected(test)).collect();
    if !suspects.is_empty() {
        // Once more, with nothing but the engine and its flushes: images are the doing of this
        // suite, and show in whatever scripts count.
        match captured(fixture, name, path, &[("SYNDDB_SUITE_BARE", Path::new("1"))]).0 {
            Outcome::Ended { failed, .. } => {
                new.extend(suspects.into_iter().filter(|test| failed.contains(test)));
            }
            Outcome::TimedOut => new.push("timeout".to_owned()),
            Outcome::Died { last } => new.push(format!("died: {last}")),
        }
    }
    new.extend(different.into_iter().filter(|text| !expected(text)));
    if !replayed.complaints.is_empty() && !damages(path) {
        // What the databases look like without capture, too, is not its doing.
        let known = without_capture_but_images(fixture, name, path).complaints;
        let of_ours = replayed.complaints.iter().filter(|text| !known.contains(text));
        new.extend(of_ours.map(|text| format!("integrity: {text}")));
    }
    let verdict = if new.is_empty() { Verdict::Passed } else { Verdict::Failed(new) };
    Finished { idle, ..done(verdict, tests, Some(replayed)) }
}

/// Whether a script damages databases on purpose.
fn damages(path: &Path) -> bool {
    const SIGNS: [&str; 3] = ["hexio_write", "writable_schema", "corrupt"];
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    SIGNS.iter().any(|sign| text.contains(sign))
}

/// Whether `pattern`, which may end in `*`, names the test.
fn matches(pattern: &str, test: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == test, |start| test.starts_with(start))
}

/// The run without capture, or what is known of it.
fn plain(fixture: &Fixture, name: &str, path: &Path) -> Outcome {
    let dir = fixture.dir.join(format!("plain-{}", fixture.program_for(path).key));
    let (kept, exit) = (dir.join(format!("{name}.out")), dir.join(format!("{name}.exit")));
    let known = || Some((fs::read(&kept).ok()?, fs::read_to_string(&exit).ok()?));
    if let Some((printed, exit)) = known() {
        return Outcome::read(&String::from_utf8_lossy(&printed), exit.trim().parse().ok());
    }
    let (printed, code) = run(fixture, name, path, "plain", PATIENCE_S, &[]);
    let _ = fs::create_dir_all(&dir)
        .and_then(|()| fs::write(&kept, &printed))
        .and_then(|()| fs::write(&exit, code.unwrap_or(-1).to_string()));
    Outcome::read(&printed, code)
}

fn captured(
    fixture: &Fixture,
    name: &str,
    path: &Path,
    more: &[(&str, &Path)],
) -> (Outcome, Replayed) {
    let mode = if more.is_empty() { "captured" } else { "bare" };
    let (printed, code, replayed) = with_library(fixture, name, path, mode, more);
    (Outcome::read(&printed, code), replayed)
}

/// Nothing attached, but the same images taken.
fn without_capture_but_images(fixture: &Fixture, name: &str, path: &Path) -> Replayed {
    with_library(fixture, name, path, "images", &[("SYNDDB_SUITE_IMAGES_ONLY", Path::new("1"))]).2
}

fn with_library(
    fixture: &Fixture,
    name: &str,
    path: &Path,
    mode: &str,
    more: &[(&str, &Path)],
) -> (String, Option<i32>, Replayed) {
    let log = fixture.dir.join("run").join(format!("{name}.{mode}.log"));
    let _ = fs::remove_file(&log);
    let variables = [("SYNDDB_SUITE_LIBRARY", &*fixture.engine), ("SYNDDB_SUITE_LOG", &*log)];
    let variables = [&variables[..], more].concat();
    let (printed, code) = run(fixture, name, path, mode, 3 * PATIENCE_S, &variables);
    let replay = Command::new(&fixture.replay).arg(&log).stdin(Stdio::null()).output();
    let replayed = match replay {
        Ok(output) if output.status.success() => {
            Replayed::read(&String::from_utf8_lossy(&output.stdout))
        }
        // A script without a connection has no log.
        _ if !log.exists() => Replayed::default(),
        _ => Replayed {
            different: vec!["the log could not be replayed".into()],
            ..Default::default()
        },
    };
    let _ = fs::remove_file(&log);
    (printed, code, replayed)
}

/// Runs a script in a directory of its own, and returns what it printed and its exit status: 124
/// after `patience_s` seconds.
fn run(
    fixture: &Fixture,
    name: &str,
    path: &Path,
    mode: &str,
    patience_s: u64,
    variables: &[(&str, &Path)],
) -> (String, Option<i32>) {
    let dir = fixture.dir.join("run").join(format!("{name}.{mode}"));
    let _ = fs::remove_dir_all(&dir);
    if let Err(error) = fs::create_dir_all(&dir) {
        return (format!("could not create {}: {error}", dir.display()), None);
    }
    let output = Command::new("timeout")
        .arg("--kill-after=5")
        .arg(patience_s.to_string())
        .arg(&fixture.program_for(path).path)
        .arg(path)
        .current_dir(&dir)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output();
    let result = match output {
        Ok(output) => {
            let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
            text += &String::from_utf8_lossy(&output.stderr);
            (text, output.status.code())
        }
        Err(error) => (format!("could not start timeout: {error}"), None),
    };
    let _ = fs::write(fixture.dir.join("run").join(format!("{name}.{mode}.out")), &result.0);
    let _ = fs::remove_dir_all(&dir);
    result
}

/// The summary, and how many scripts failed.
fn summary(finished: &[Finished], scripts: usize) -> (String, usize) {
    let mut lines = Vec::new();
    let total = |name: &str| -> u64 {
        finished.iter().filter_map(|f| f.replayed.as_ref()).map(|r| r.count(name)).sum()
    };
    let ran: Vec<_> = finished.iter().filter(|f| f.replayed.is_some()).collect();
    let with = |name: &str| {
        ran.iter().filter(|f| f.replayed.as_ref().is_some_and(|r| r.count(name) > 0)).count()
    };
    let mut line = |name: &str, value: String| lines.push(format!("{name:<28} {value}"));
    line("scripts run", format!("{} of {scripts}", ran.len()));
    line("tests", finished.iter().map(|f| f.tests).sum::<u64>().to_string());
    line("connections attached", total("attached").to_string());
    line("commits captured", total("commits").to_string());
    line("schema changes captured", total("schemas").to_string());
    line("commits or changes lost", total("losses").to_string());
    line("scripts that changed rows", with("wrote").to_string());
    let captured = |f: &&&Finished| {
        f.replayed
            .as_ref()
            .is_some_and(|r| ["commits", "schemas", "losses"].iter().any(|name| r.count(name) > 0))
    };
    line("scripts with captured events", ran.iter().filter(captured).count().to_string());
    line("replicas equal", format!("{}, in {} scripts", total("equal"), with("equal")));

    let mut reasons: BTreeMap<&str, u64> = BTreeMap::new();
    for (count, reason) in ran.iter().filter_map(|f| f.replayed.as_ref()).flat_map(|r| &r.reasons) {
        // Without numbers that differ each time.
        let reason = reason.split(" (").next().unwrap_or(reason);
        *reasons.entry(reason).or_default() += count;
    }
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (reason, count) in reasons.into_iter().take(40) {
        lines.push(format!("  {count:>8} {reason}"));
    }
    let silent: BTreeSet<&str> = ran
        .iter()
        .filter(|f| !captured(f))
        .filter(|f| f.replayed.as_ref().is_some_and(|r| r.count("wrote") > 0))
        .map(|f| &*f.name)
        .collect();
    if !silent.is_empty() {
        let names: Vec<&str> = silent.into_iter().collect();
        lines.push(format!("changed rows without a captured event: {}", names.join(" ")));
    }

    lines.push(String::new());
    let share = LEFT_OUT.len() as f64 * 100.0 / scripts as f64;
    if share > 5.0 {
        lines.push("more than one script in twenty is left out".into());
    }
    lines.push(format!("left out, wholly or in part: {} scripts, {share:.1} %", LEFT_OUT.len()));
    for entry in LEFT_OUT.iter().filter(|e| finished.iter().any(|f| f.name == e.script)) {
        let tests = if entry.tests.is_empty() { "all".into() } else { entry.tests.join(" ") };
        lines.push(format!("  {} ({tests}): {}", entry.script, entry.why));
    }
    for f in finished.iter().filter(|f| !f.idle.is_empty()) {
        lines.push(format!("  {}: nothing failed as {}", f.name, f.idle.join(" or ")));
    }
    let unfit = finished.iter().filter_map(|f| match &f.verdict {
        Verdict::Unfit(why) => Some(format!("  {}: {why}", f.name)),
        _ => None,
    });
    let unfit: Vec<String> = unfit.collect();
    lines.push(format!("not run, for without capture they come to nothing: {}", unfit.len()));
    lines.extend(unfit);
    let mut slow: Vec<&Finished> = finished.iter().collect();
    slow.sort_by_key(|f| std::cmp::Reverse(f.took));
    let slow = slow.iter().take(8).map(|f| format!("{} {:.0} s", f.name, f.took.as_secs_f64()));
    lines.push(format!("slowest: {}", slow.collect::<Vec<_>>().join(", ")));

    let mut failures = 0;
    for f in finished {
        if let Verdict::Failed(new) = &f.verdict {
            failures += 1;
            lines.push(format!("FAILED {}: {}", f.name, new.join("; ")));
        }
    }
    let left_out = finished.iter().filter(|f| matches!(f.verdict, Verdict::LeftOut)).count();
    if left_out > 0 {
        lines.push(format!("{left_out} of the chosen scripts were left out wholly"));
    }
    (lines.join("\n"), failures)
}
