//! Why a command ended without success, and the exit status that tells scripts.

use std::fmt;
use std::io;
use std::process::ExitCode;

/// Why a command ended without success.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line makes no sense; the text says what would. Exit status 2.
    Usage(String),
    /// A prerequisite is missing and could not be installed; the text says how to. Exit status 3.
    Prerequisites(String),
    /// A program could not be started. Exit status 1.
    Start(String, io::Error),
    /// A program ran and failed; it has said why. Exit status 1, or the program's own.
    Program {
        /// The command line.
        command: String,
        /// The program's exit status, unless a signal ended it.
        code: Option<u8>,
    },
    /// A check failed, or what it needs could not be made; the text says what. Exit status 1.
    Check(String),
    /// A step that has to fail, because it proves that a check can, did not. Exit status 1.
    Toothless(String),
    /// A file could not be read or written. Exit status 1.
    File(String, io::Error),
    /// These suites failed. Exit status 1.
    Suites(Vec<&'static str>),
}

impl Failure {
    /// The exit status for this failure.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage(_) => 2,
            Self::Prerequisites(_) => 3,
            Self::Program { code: Some(code), .. } => *code,
            Self::Program { code: None, .. }
            | Self::Start(..)
            | Self::Check(_)
            | Self::Toothless(_)
            | Self::File(..)
            | Self::Suites(_) => 1,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text)
            | Self::Prerequisites(text)
            | Self::Check(text)
            | Self::Toothless(text) => f.write_str(text),
            Self::File(path, error) => write!(f, "{path}: {error}"),
            Self::Start(command, error) => write!(f, "could not start `{command}`: {error}"),
            Self::Program { command, code: Some(code) } => {
                write!(f, "`{command}` failed with exit status {code}")
            }
            Self::Program { command, code: None } => {
                write!(f, "`{command}` was ended by a signal")
            }
            Self::Suites(names) => write!(f, "failed: {}", names.join(", ")),
        }
    }
}
