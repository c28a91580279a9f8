//! A demo that is interrupted leaves no process and no file behind.
//!
//! The demo starts `synddb`, which is another package's: `cargo xtask test demo` builds it first.
#![cfg(unix)]
#![allow(clippy::unwrap_used)] // helpers of tests may panic, as tests may

use std::{
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

#[test]
fn an_interrupted_demo_leaves_no_process_and_no_file() {
    for signal in ["INT", "TERM", "HUP"] {
        let dir = tempfile::tempdir().unwrap();
        let mut demo = Command::new(env!("CARGO_BIN_EXE_demo"))
            .env("TMPDIR", dir.path())
            .stdout(Stdio::piped())
            // So that its children can be told from other processes.
            .process_group(0)
            .spawn()
            .unwrap();
        let mut lines =
            BufReader::new(demo.stdout.take().unwrap()).lines().map(|line| line.unwrap());
        assert!(lines.any(|line| line.contains("link up")), "it never wrote");
        // To itself alone: a terminal would tell its children as well.
        let id = demo.id();
        assert!(shell(&format!("kill -s {signal} {id}")));
        assert_eq!(demo.wait().unwrap().code(), Some(130), "{signal}");
        assert!(!shell(&format!("kill -s 0 -- -{id} 2>/dev/null")), "{signal}: a process is left");
        let left: Vec<_> = dir.path().read_dir().unwrap().collect();
        assert!(left.is_empty(), "{signal}: {left:?}");
    }
}

fn shell(command: &str) -> bool {
    Command::new("sh").args(["-c", command]).status().unwrap().success()
}
