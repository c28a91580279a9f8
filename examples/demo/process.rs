//! The processes that the demo starts and kills.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::{Result, pause, program};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// `synddb sequencer`.
pub(crate) struct Sequencer {
    child: Child,
    pub(crate) url: String,
}

impl Sequencer {
    /// Starts it, at `url` where one is given and else at a free port, and waits until it listens.
    pub(crate) fn start(data: &Path, url: Option<&str>) -> Result<Self> {
        let mut child = Command::new(program("synddb")?)
            .args(["sequencer", "--listen", url.unwrap_or("http://127.0.0.1:0"), "--data"])
            .arg(data)
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        match line.trim().strip_prefix("listening on ") {
            Some(url) => Ok(Self { url: url.to_owned(), child }),
            None => Err(format!("the sequencer did not start: {line:?}").into()),
        }
    }

    /// Without a chance to tidy up.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    pub(crate) fn stop(mut self) -> Result<()> {
        self.kill()
    }
}

impl Drop for Sequencer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.kill();
    }
}

/// What the order book last said of itself.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Line {
    pub(crate) commits: u64,
    pub(crate) unacknowledged: u64,
    pub(crate) lag_ms: u64,
    pub(crate) link_up: bool,
    /// Counts the lines.
    number: u64,
}

/// The order book.
pub(crate) struct Book {
    child: Child,
    // Its end tells the book to stop.
    stdin: Option<ChildStdin>,
    line: Arc<Mutex<Line>>,
}

impl Book {
    pub(crate) fn start(database: &Path, url: &str, seed: u64) -> Result<Self> {
        let mut child = Command::new(program("order_book")?)
            .arg(database)
            .args([url, &seed.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        let line = Arc::new(Mutex::new(Line::default()));
        if let Some(stdout) = child.stdout.take() {
            let line = Arc::clone(&line);
            thread::spawn(move || {
                for text in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
                    let mut line = line.lock().unwrap_or_else(PoisonError::into_inner);
                    *line = parse(&text, line.number + 1);
                }
            });
        }
        Ok(Self { child, stdin, line })
    }

    /// What it last said.
    pub(crate) fn line(&self) -> Line {
        *self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it says anew that something is on the way.
    pub(crate) fn wait_for_unacknowledged(&mut self) -> Result<()> {
        let (from, deadline) = (self.line().number, Instant::now() + PATIENCE);
        loop {
            let line = self.line();
            if line.number > from && line.unacknowledged > 0 && line.link_up {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("the order book ended: {status}").into());
            }
            if Instant::now() > deadline {
                return Err(format!("no commit is ever on the way: {line:?}").into());
            }
            pause();
        }
    }

    /// Without a chance to tidy up.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Lets it push and shut down; gives its last words.
    pub(crate) fn stop(mut self) -> Result<Line> {
        self.stdin = None;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(self.line()),
                Some(status) => return Err(format!("the order book ended: {status}").into()),
                None if Instant::now() > deadline => {
                    return Err(format!("the order book does not end: {:?}", self.line()).into());
                }
                None => pause(),
            }
        }
    }
}

impl Drop for Book {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.kill();
    }
}

fn parse(text: &str, number: u64) -> Line {
    let json: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    let figure = |name: &str| json[name].as_u64().unwrap_or_default();
    Line {
        commits: figure("commits"),
        unacknowledged: figure("unacknowledged"),
        lag_ms: figure("lag_ms"),
        link_up: json["link"] == "up",
        number,
    }
}
