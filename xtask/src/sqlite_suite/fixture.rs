//! SQLite's source and `testfixture`, our library for it, and the program that replays its log.
//!
//! Everything lies in `target/sqlite-suite`, made once: the source until that directory goes, the
//! fixture until its flags or `attach.c` change.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::failure::Failure;
use crate::process;

/// The Debian release whose source package is taken. Its SQLite is the oldest with the functions
/// that the engine needs (`sqlite3_set_clientdata` came with 3.44).
const RELEASE: &str = "trixie";

/// Beside `--enable-all`: assertions, failing allocations, and what the bundled SQLite has.
const CHECKED: &str = "-DSQLITE_DEBUG -DSQLITE_MEMDEBUG -DSQLITE_ENABLE_DBSTAT_VTAB \
    -DSQLITE_ENABLE_STAT4 -DSQLITE_ENABLE_FTS3_PARENTHESIS -DSQLITE_ENABLE_UNLOCK_NOTIFY \
    -DSQLITE_ENABLE_COLUMN_METADATA -DSQLITE_EXTRA_INIT=synddb_suite_init";

/// For scripts that have allocations fail. One that fails inside the statement by which capture
/// joins a transaction rolls that back under the script's own statement, as SQLite does after any
/// such failure; the cursors know, but `sqlite3BtreeDelete` asserts before it asks them.
const FAULTS: &str = "-DSQLITE_MEMDEBUG -DSQLITE_ENABLE_DBSTAT_VTAB \
    -DSQLITE_ENABLE_STAT4 -DSQLITE_ENABLE_FTS3_PARENTHESIS -DSQLITE_ENABLE_UNLOCK_NOTIFY \
    -DSQLITE_ENABLE_COLUMN_METADATA -DSQLITE_EXTRA_INIT=synddb_suite_init";

/// Functions whose callers outside SQLite's own file go through `attach.c`.
const WRAPPED: [&str; 6] = ["prepare", "prepare_v2", "prepare_v3", "exec", "close", "close_v2"];

/// What a run needs.
pub(super) struct Fixture {
    /// Where all of it lies.
    pub(super) dir: PathBuf,
    /// The unpacked source package.
    pub(super) source: PathBuf,
    /// SQLite's test program with assertions.
    pub(super) checked: Program,
    /// Without, for scripts that have allocations fail. Built for the first of them.
    faults: OnceLock<Program>,
    /// The library that the program loads.
    pub(super) engine: PathBuf,
    /// The program that replays logs.
    pub(super) replay: PathBuf,
}

/// A build of `testfixture`.
pub(super) struct Program {
    pub(super) path: PathBuf,
    /// Results without capture are good for as long as this is the same.
    pub(super) key: String,
}

impl Fixture {
    /// Makes what is not there.
    pub(super) fn prepare() -> Result<Fixture, Failure> {
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| process::root().join("target"), |dir| process::root().join(dir));
        let dir = target.join("sqlite-suite");
        fs::create_dir_all(&dir).map_err(|error| failed("create the directory", &dir, error))?;
        let source = match unpacked(&dir) {
            Some(source) => source,
            None => fetch(&dir)?,
        };
        let checked = build(&dir, &source, CHECKED)?;
        let include = checked.path.with_file_name("include");
        let engine = engine(&dir, &include)?;
        let mut replay = process::cargo();
        replay.args(["build", "--quiet", "-p", "synddb-tests", "--bin", "suite_replay"]);
        process::run(in_root(replay))?;
        let replay = target.join("debug").join("suite_replay");
        Ok(Fixture { dir, source, checked, faults: OnceLock::new(), engine, replay })
    }

    /// Makes what else these scripts need.
    pub(super) fn prepare_for(&self, scripts: &[(String, PathBuf)]) -> Result<(), Failure> {
        if self.faults.get().is_none() && scripts.iter().any(|(_, path)| has_faults(path)) {
            let _ = self.faults.set(build(&self.dir, &self.source, FAULTS)?);
        }
        Ok(())
    }

    /// The program for a script of those prepared for.
    pub(super) fn program_for(&self, script: &Path) -> &Program {
        self.faults.get().filter(|_| has_faults(script)).unwrap_or(&self.checked)
    }

    /// Every test script, by the name under which it is run, with its path.
    pub(super) fn scripts(&self) -> Result<Vec<(String, PathBuf)>, Failure> {
        const DIRS: [&str; 8] = [
            "test",
            "ext/rtree",
            "ext/fts5/test",
            "ext/session",
            "ext/expert",
            "ext/recover",
            "ext/rbu",
            "ext/intck",
        ];
        // They run others.
        const DRIVERS: [&str; 14] = [
            "all",
            "async",
            "quick",
            "veryquick",
            "memleak",
            "permutations",
            "soak",
            "fts3",
            "mallocAll",
            "rtree",
            "full",
            "extraquick",
            "session",
            "rbu",
        ];
        let mut scripts = Vec::new();
        for dir in DIRS {
            let dir = self.source.join(dir);
            let entries = fs::read_dir(&dir).map_err(|error| failed("read", &dir, error))?;
            for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
                let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
                if path.extension().is_some_and(|e| e == "test") && !DRIVERS.contains(&name) {
                    scripts.push((name.to_owned(), path));
                }
            }
        }
        scripts.sort();
        scripts.dedup_by(|one, other| one.0 == other.0);
        Ok(scripts)
    }

    /// The names of the scripts that SQLite's developers call very quick.
    pub(super) fn veryquick(&self) -> Result<Vec<String>, Failure> {
        let list = self.dir.join("veryquick.tcl");
        let tcl = format!(
            "set testdir {{{0}}}\nset argv0 {{{0}/veryquick.test}}\nset argv {{}}\n\
             source {{{0}/permutations.test}}\narray set spec $::testspec(veryquick)\n\
             foreach file $spec(-files) {{ puts \"script [file rootname [file tail $file]]\" }}\n",
            self.source.join("test").display()
        );
        fs::write(&list, tcl).map_err(|error| failed("write", &list, error))?;
        let output = Command::new(&self.checked.path)
            .arg(&list)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| Failure::Start(self.checked.path.display().to_string(), error))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let names = text.lines().filter_map(|line| line.strip_prefix("script "));
        Ok(names.map(str::to_owned).collect())
    }
}

/// Whether a script has allocations fail.
fn has_faults(script: &Path) -> bool {
    const SIGNS: [&str; 4] =
        ["malloc_common", "memdebug_fail", "do_malloc_test", "do_faultsim_test"];
    let text = fs::read(script).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    SIGNS.iter().any(|sign| text.contains(sign))
}

fn failed(doing: &str, path: &Path, error: io::Error) -> Failure {
    Failure::Start(format!("{doing} {}", path.display()), error)
}

fn in_root(mut command: Command) -> Command {
    command.current_dir(process::root()).stdin(Stdio::null());
    command
}

fn unpacked(dir: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(dir).ok()?.filter_map(Result::ok).map(|entry| entry.path());
    entries.filter(|path| path.join("test/permutations.test").is_file()).max()
}

/// `apt-get source`, with a list of sources and a state of its own: the machine's stay as they are,
/// and nothing of it needs a privilege.
fn fetch(dir: &Path) -> Result<PathBuf, Failure> {
    println!("fetching the source package of sqlite3 from Debian {RELEASE}");
    let apt = dir.join("apt");
    for part in ["lists/partial", "cache/archives/partial"] {
        let part = apt.join(part);
        fs::create_dir_all(&part).map_err(|error| failed("create", &part, error))?;
    }
    let list = apt.join("sources.list");
    let line = format!(
        "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
         http://deb.debian.org/debian {RELEASE} main\n"
    );
    fs::write(&list, line).map_err(|error| failed("write", &list, error))?;
    for action in [&["update"][..], &["source", "--only-source", "sqlite3"]] {
        let mut command = Command::new("apt-get");
        command.args(["-q", "-o", "Dir::Etc::sourceparts=-"]);
        for (name, place) in [
            ("Dir::Etc::sourcelist", "sources.list"),
            ("Dir::State::lists", "lists"),
            ("Dir::Cache", "cache"),
        ] {
            command.arg("-o").arg(format!("{name}={}", apt.join(place).display()));
        }
        command.args(action).current_dir(dir).stdin(Stdio::null());
        process::run(command)?;
    }
    unpacked(dir).ok_or_else(|| {
        Failure::Toothless(format!("apt-get unpacked no test scripts into {}", dir.display()))
    })
}

fn build(dir: &Path, source: &Path, flags: &str) -> Result<Program, Failure> {
    let attach = process::root().join("tests/sqlite-suite/attach.c");
    let text = fs::read(&attach).map_err(|error| failed("read", &attach, error))?;
    let mut hasher = DefaultHasher::new();
    (source.file_name(), flags, WRAPPED, text).hash(&mut hasher);
    let key = format!("{:016x}", hasher.finish());
    let build = dir.join(format!("fixture-{key}"));
    let program = Program { path: build.join("testfixture"), key };
    let include = build.join("include");
    // Made last.
    if include.is_dir() {
        return Ok(program);
    }
    println!("building testfixture from {}", source.display());
    let _ = fs::remove_dir_all(&build);
    fs::create_dir_all(&build).map_err(|error| failed("create", &build, error))?;
    let log = build.join("build.log");
    let mut configure = Command::new(source.join("configure"));
    configure.args(["--enable-all", "--disable-shared", "CFLAGS=-O2"]);
    let wraps = WRAPPED.map(|name| format!("-Wl,--wrap=sqlite3_{name}")).join(" ");
    let mut make = Command::new("make");
    make.args(["testfixture", &format!("OPTS={flags}")])
        .arg(format!("TLIBS={} -rdynamic {wraps} -lm -ldl -lpthread -lz", attach.display()));
    for mut command in [configure, make] {
        let to_log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .and_then(|file| Ok((file.try_clone()?, file)))
            .map_err(|error| failed("write", &log, error))?;
        command.current_dir(&build).stdin(Stdio::null()).stdout(to_log.0).stderr(to_log.1);
        process::run(command).inspect_err(|_| eprintln!("xtask: see {}", log.display()))?;
    }
    // With no code in it: SQLite's is in the program.
    let making = build.join("include.new");
    fs::create_dir_all(&making).map_err(|error| failed("create", &making, error))?;
    fs::copy(build.join("sqlite3.h"), making.join("sqlite3.h"))
        .and_then(|_| fs::write(making.join("libsqlite3.a"), b"!<arch>\n"))
        .and_then(|()| fs::rename(&making, &include))
        .map_err(|error| failed("fill", &making, error))?;
    Ok(program)
}

/// The library, with the declarations of the fixture's SQLite and no SQLite of its own.
fn engine(dir: &Path, include: &Path) -> Result<PathBuf, Failure> {
    let target = dir.join("engine");
    let mut cargo = process::cargo();
    cargo
        .args(["build", "--quiet", "--manifest-path", "tests/sqlite-suite/Cargo.toml"])
        .arg("--target-dir")
        .arg(&target)
        .env("SQLITE3_LIB_DIR", include)
        .env("SQLITE3_INCLUDE_DIR", include)
        .env("SQLITE3_STATIC", "1");
    process::run(in_root(cargo))?;
    Ok(target.join("debug/libsqlite_suite.so"))
}
