//! The processes that the demo starts and kills.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Lines},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{Result, pause, report::Line};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that does not outlive its owner, however that ends.
struct Running {
    child: Child,
    name: &'static str,
}

impl Running {
    fn start(name: &'static str, command: &mut Command) -> Result<Self> {
        match command.spawn() {
            Ok(child) => Ok(Self { child, name }),
            Err(error) => Err(format!("{name} could not be started: {error}").into()),
        }
    }

    /// What it prints, line by line.
    fn lines(&mut self) -> Result<Lines<BufReader<ChildStdout>>> {
        let stdout = self.child.stdout.take().ok_or("standard output is not ours")?;
        Ok(BufReader::new(stdout).lines())
    }

    /// SIGKILL, where there are signals: without a chance to tidy up.
    fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end, which has to be a success.
    fn succeed(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.ended()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("{} ended: {status}", self.name).into()),
                None if Instant::now() > deadline => {
                    return Err(format!("{} does not end", self.name).into());
                }
                None => pause()?,
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.kill();
    }
}

/// `synddb sequencer`.
pub(crate) struct Sequencer {
    running: Running,
    pub(crate) url: String,
}

impl Sequencer {
    /// Starts it, at `url` where one is given and else at a free port, and waits until it listens.
    pub(crate) fn start(data: &Path, url: Option<&str>) -> Result<Self> {
        let mut running = Running::start(
            "the sequencer",
            Command::new(program("synddb")?)
                .args(["sequencer", "--listen", url.unwrap_or("http://127.0.0.1:0"), "--data"])
                .arg(data)
                .env("RUST_LOG", "warn")
                .stdin(Stdio::null())
                .stdout(Stdio::piped()),
        )?;
        let mut lines = running.lines()?;
        let (tell, told) = mpsc::channel();
        thread::spawn(move || tell.send(lines.next()));
        let deadline = Instant::now() + PATIENCE;
        let line = loop {
            match told.try_recv() {
                Ok(line) => break line.transpose()?.unwrap_or_default(),
                Err(_) if Instant::now() > deadline => break "nothing".into(),
                Err(_) => pause()?,
            }
        };
        match line.strip_prefix("listening on ") {
            Some(url) => Ok(Self { url: url.to_owned(), running }),
            None => Err(format!("the sequencer did not start: it said {line:?}").into()),
        }
    }

    /// Without a chance to tidy up.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.running.kill()
    }
}

/// The order book.
pub(crate) struct Book {
    running: Running,
    // Its end tells the book to stop.
    stdin: Option<ChildStdin>,
    line: Arc<Mutex<Line>>,
    reader: Option<JoinHandle<()>>,
}

impl Book {
    pub(crate) fn start(database: &Path, url: &str, seed: u64) -> Result<Self> {
        let mut running = Running::start(
            "the order book",
            Command::new(program("order_book")?)
                .arg(database)
                .args([url, &seed.to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped()),
        )?;
        let stdin = running.child.stdin.take();
        let lines = running.lines()?;
        let line = Arc::new(Mutex::new(Line::default()));
        let last = Arc::clone(&line);
        let reader = thread::spawn(move || {
            for line in lines.map_while(std::io::Result::ok).filter_map(|line| Line::parse(&line)) {
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                *last = Line { number: last.number + 1, ..line };
            }
        });
        Ok(Self { running, stdin, line, reader: Some(reader) })
    }

    /// What it last said.
    pub(crate) fn line(&self) -> Line {
        *self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it says anew that the link is up, something is stored, and something on the way;
    /// gives that line.
    pub(crate) fn wait_for_unacknowledged(&mut self) -> Result<Line> {
        let (from, deadline) = (self.line().number, Instant::now() + PATIENCE);
        loop {
            let line = self.line();
            let on_the_way =
                line.unacknowledged > 0 && line.acknowledged() > 0 && line.link.is_up();
            if line.number > from && on_the_way {
                return Ok(line);
            }
            if let Some(status) = self.running.ended()? {
                return Err(format!("the order book ended: {status}").into());
            }
            if Instant::now() > deadline {
                return Err(format!("no commit is ever on the way: {line:?}").into());
            }
            pause()?;
        }
    }

    /// Without a chance to tidy up.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.running.kill()
    }

    /// Lets it push and shut down; gives its last words.
    pub(crate) fn stop(mut self) -> Result<Line> {
        self.stdin = None;
        self.running.succeed()?;
        // What it said last may still be on its way here.
        if self.reader.take().is_some_and(|reader| reader.join().is_err()) {
            return Err("what the order book said cannot be read".into());
        }
        Ok(self.line())
    }
}

/// Runs `synddb` with `args` to its end.
pub(crate) fn synddb(args: &[&OsStr]) -> Result<()> {
    let mut command = Command::new(program("synddb")?);
    Running::start("synddb", command.args(args).stdin(Stdio::null()))?.succeed()
}

/// A program that was built together with this one.
fn program(name: &str) -> Result<PathBuf> {
    let path =
        std::env::current_exe()?.with_file_name(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    if path.exists() {
        Ok(path)
    } else {
        Err(format!("{} is not built: run `cargo xtask demo`", path.display()).into())
    }
}
