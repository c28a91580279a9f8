//! A program that runs, what it has said, and what it is waited for to say.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::failure::Failure;

/// How long anything may take that is waited for. The machines are emulated and the host may be busy.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// A program that is killed when this is dropped, or before.
pub(super) struct Console {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
    /// What it has said, with the seconds since it was started.
    said: Vec<(Duration, String)>,
    started: Instant,
}

impl Console {
    /// Starts a program that ends with this one, however this one ends.
    pub(super) fn start(name: &str, command: &Command) -> Result<Self, Failure> {
        let mut bound = Command::new("setpriv");
        bound.args(["--pdeathsig", "KILL"]).arg(command.get_program()).args(command.get_args());
        bound.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = bound.spawn().map_err(|error| Failure::Start("setpriv".into(), error))?;
        let (tell, lines) = mpsc::channel();
        if let Some(output) = child.stdout.take() {
            forward(output, tell.clone());
        }
        if let Some(output) = child.stderr.take() {
            forward(output, tell);
        }
        let input = child.stdin.take();
        let started = Instant::now();
        Ok(Self { name: name.to_owned(), child, input, lines, said: Vec::new(), started })
    }

    /// Waits for a line that holds `text`; returns what follows the text in it.
    pub(super) fn wait_for(&mut self, text: &str) -> Result<String, Failure> {
        let found = self.wait_until(|line| Some(line.split_once(text)?.1.to_owned()));
        found.map_err(|why| self.failure(&format!("{why} before it said `{text}`")))
    }

    /// Waits for a line about commits, and returns how many there are, once there are so many.
    pub(super) fn wait_for_commits(&mut self, many: u64) -> Result<u64, Failure> {
        let found = self.wait_until(|line| {
            let (number, _) = line.split_once("committed ")?.1.split_once(',')?;
            number.parse().ok().filter(|number| *number >= many)
        });
        found.map_err(|why| self.failure(&format!("{why} before it had {many} commits")))
    }

    /// Types a line.
    pub(super) fn say(&mut self, line: &str) -> Result<(), Failure> {
        let input = self.input.as_mut().ok_or(std::io::ErrorKind::BrokenPipe.into());
        let typed = input.and_then(|input| writeln!(input, "{line}"));
        typed.map_err(|error| self.failure(&format!("took no line ({error})")))
    }

    /// Waits for its end, which has to be a good one.
    pub(super) fn end(mut self) -> Result<(), Failure> {
        match self.wait_until(|_| None::<()>) {
            Err("it ended") => {}
            Ok(()) | Err(_) => return Err(self.failure("did not end")),
        }
        let status = self.child.wait().map_err(|error| Failure::Start("wait".into(), error))?;
        if status.success() { Ok(()) } else { Err(self.failure(&format!("ended with {status}"))) }
    }

    /// Kills it, as if its power was cut.
    pub(super) fn kill(mut self) {
        self.end_by_force();
    }

    /// A failure, with all that was said here.
    pub(super) fn failure(&mut self, what: &str) -> Failure {
        while let Ok(line) = self.lines.try_recv() {
            self.said.push((self.started.elapsed(), line));
        }
        let mut text = format!("{}: {what}. All it said:", self.name);
        for (at, line) in &self.said {
            text += &format!("\n  [{:>5.1} s] {line}", at.as_secs_f64());
        }
        Failure::Check(text)
    }

    /// Reads lines until one gives what is looked for; the error tells why there will be none.
    fn wait_until<T>(
        &mut self,
        mut wanted: impl FnMut(&str) -> Option<T>,
    ) -> Result<T, &'static str> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    let found = wanted(&line);
                    self.said.push((self.started.elapsed(), line));
                    if let Some(found) = found {
                        return Ok(found);
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Err("it was waited for too long"),
                Err(RecvTimeoutError::Disconnected) => return Err("it ended"),
            }
        }
    }

    fn end_by_force(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.end_by_force();
    }
}

/// Passes lines on until there are no more.
fn forward(output: impl std::io::Read + Send + 'static, tell: mpsc::Sender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if tell.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Console {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Console::start("shell", &command).unwrap()
    }

    #[test]
    fn lines_are_waited_for_in_their_order() {
        let mut shell = shell(
            "echo one 1; echo committed 20, committed; echo committed 40,; read x; echo $x >&2",
        );
        assert_eq!(shell.wait_for("one").unwrap(), " 1");
        assert_eq!(shell.wait_for_commits(30).unwrap(), 40);
        shell.say("typed").unwrap();
        shell.wait_for("typed").unwrap();
        shell.end().unwrap();
    }

    #[test]
    fn who_ends_too_early_or_badly_is_told_with_all_that_was_said() {
        let failure = shell("echo hello").wait_for("bye").unwrap_err().to_string();
        assert!(failure.contains("ended before it said `bye`"), "{failure}");
        assert!(failure.contains("hello"), "{failure}");
        let failure = shell("echo hello; exit 3").end().unwrap_err().to_string();
        assert!(failure.contains("exit status: 3") && failure.contains("hello"), "{failure}");
    }
}
