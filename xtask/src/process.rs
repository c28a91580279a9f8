//! Starting other programs.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use crate::failure::Failure;

/// The root of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace root")
}

/// The cargo that runs this program: the same toolchain for everything below it.
pub(crate) fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// A command from a line as one would type it: `NAME=value cargo args…`, split at white space (there
/// is no quoting). It runs in the workspace root, and without standard input, so that nothing can
/// wait for an answer.
pub(crate) fn from_line(line: &str) -> Command {
    let mut words = line.split_whitespace().peekable();
    let mut variables = Vec::new();
    while let Some((name, value)) = words.peek().and_then(|word| word.split_once('=')) {
        variables.push((name, value));
        words.next();
    }
    let mut command = match words.next() {
        Some("cargo") | None => cargo(),
        Some(program) => Command::new(program),
    };
    command.args(words).envs(variables).current_dir(root()).stdin(Stdio::null());
    command
}

/// Runs a command to its end; an unsuccessful one is a [`Failure`].
pub(crate) fn run(mut command: Command) -> Result<(), Failure> {
    let line = describe(&command);
    match command.status() {
        Err(error) => Err(Failure::Start(line, error)),
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::Program { command: line, code: code(status) }),
    }
}

/// Becomes the command, where the system can: its exit status, signals and terminal are then its own.
/// Returns only on failure (or, on systems without `exec`, on success as well).
pub(crate) fn become_command(mut command: Command) -> Result<(), Failure> {
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt;
        let error = command.exec();
        Err(Failure::Start(describe(&command), error))
    }
    #[cfg(not(unix))]
    run(command)
}

/// Whether the command ran and succeeded; what it prints is dropped.
pub(crate) fn succeeds(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// What a successful command printed, without white space around it.
pub(crate) fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// Where a program lies: as given if that is a path, else in `PATH`, else among cargo's own.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Joining an absolute path gives that path.
    env::split_paths(&path)
        .chain(cargo_home().map(|home| home.join("bin")))
        .map(|dir| dir.join(format!("{name}{}", env::consts::EXE_SUFFIX)))
        .find(|file| file.is_file())
}

/// Where cargo keeps what it downloads and installs.
pub(crate) fn cargo_home() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| env::home_dir().map(|home| home.join(".cargo")))
}

/// The command line of a command, as one would type it.
fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_stem().unwrap_or(program.as_os_str());
    let words = std::iter::once(name).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn code(status: ExitStatus) -> Option<u8> {
    status.code().and_then(|code| u8::try_from(code).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_split_into_variables_program_and_arguments() {
        let command = from_line("A=1 B=-Dx cargo test  --features x=y");
        let args: Vec<_> = command.get_args().collect();
        assert_eq!(args, ["test", "--features", "x=y"]);
        let envs: Vec<_> =
            command.get_envs().filter_map(|(name, value)| value.zip(Some(name))).collect();
        assert_eq!(envs, [("1".as_ref(), "A".as_ref()), ("-Dx".as_ref(), "B".as_ref())]);
        assert_eq!(describe(&command), "cargo test --features x=y");
    }

    #[test]
    #[cfg(unix)]
    fn a_failed_program_gives_its_exit_status() {
        let mut command = Command::new("sh");
        command.args(["-c", "exit 7"]);
        assert!(matches!(run(command), Err(Failure::Program { code: Some(7), .. })));
    }

    #[test]
    fn a_program_that_does_not_exist_is_not_found_and_cannot_start() {
        assert_eq!(find_program("no-such-program-in-any-path"), None);
        let failure = run(Command::new("no-such-program-in-any-path"));
        assert!(matches!(failure, Err(Failure::Start(..))));
    }
}
