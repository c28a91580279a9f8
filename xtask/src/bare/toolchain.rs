//! Debian's compiler with its sources.
//!
//! The standard library can only be built from the sources of the very compiler that builds it, and
//! Debian has such a pair. Nothing is installed: the packages are unpacked into the cache directory
//! of the user, 0.5 GB, once.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::failure::Failure;
use crate::process;

/// The compiler of Debian's packages for web browsers, which is the newest, and its sources.
const COMPILER: &str = "rustc-web";
const SOURCES: &str = "rust-web-src";

/// The compiler.
pub(crate) fn rustc() -> PathBuf {
    dir().join("rustc")
}

/// Whether it is there, runs, and can compile this project.
pub(crate) fn found() -> bool {
    process::output(&rustc().to_string_lossy(), &["--version"])
        .and_then(|told| Some(new_enough(told.strip_prefix("rustc ")?)))
        .unwrap_or(false)
}

/// Whether a version of Rust, with whatever follows it, is one that this project can do with.
fn new_enough(version: &str) -> bool {
    let minor = |version: &str| -> Option<u32> {
        let mut numbers = version.split('.');
        (numbers.next() == Some("1")).then_some(())?;
        numbers.next()?.parse().ok()
    };
    minor(version) >= minor(env!("CARGO_PKG_RUST_VERSION"))
}

/// Downloads the packages and unpacks them.
pub(crate) fn install() -> Result<(), Failure> {
    let new = dir().with_extension(format!("new-{}", std::process::id()));
    let result = unpack(&new).and_then(|()| {
        let _ = fs::remove_dir_all(dir());
        fs::rename(&new, dir()).map_err(|error| file(&dir(), error))
    });
    let _ = fs::remove_dir_all(&new);
    result
}

fn dir() -> PathBuf {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| env::home_dir().map(|home| home.join(".cache")));
    cache.unwrap_or_else(env::temp_dir).join("synddb/bare-rustc")
}

fn unpack(new: &Path) -> Result<(), Failure> {
    let packages = packages().ok_or_else(|| {
        Failure::Prerequisites(format!(
            "the package {COMPILER} is not known here: it is in Debian 12 and later; run apt-get update"
        ))
    })?;
    let version = candidate(COMPILER).unwrap_or_default();
    if !new_enough(&version) {
        return Err(Failure::Prerequisites(format!(
            "the package {COMPILER} here is of version {version}, {} is needed: it comes with Debian's \
             security updates (deb http://deb.debian.org/debian-security bookworm-security main); add \
             them to apt's sources and run apt-get update",
            env!("CARGO_PKG_RUST_VERSION")
        )));
    }
    let downloads = new.join("packages");
    let tree = new.join("tree");
    fs::create_dir_all(&downloads)
        .and_then(|()| fs::create_dir_all(&tree))
        .map_err(|error| file(new, error))?;
    let mut download = Command::new("apt-get");
    // Root's cache is closed to the user that apt-get would download as.
    download
        .args(["--quiet=2", "-o", "APT::Sandbox::User=root", "download"])
        .args(&packages)
        .current_dir(&downloads);
    process::run(download)?;
    let files = fs::read_dir(&downloads).map_err(|error| file(&downloads, error))?;
    for file in files.flatten() {
        // Of the sources only those of the library are needed, a tenth.
        let part: &[&str] = if file.file_name().to_string_lossy().starts_with(SOURCES) {
            &["--wildcards", "./usr/src/rustc-*/library", "./usr/lib/rustlib/src"]
        } else {
            &[]
        };
        unpack_package(&file.path(), &tree, part)?;
    }
    fs::remove_dir_all(&downloads).map_err(|error| file(&downloads, error))?;
    // A script, so that the library's path reaches nothing but the compiler.
    let script = "#!/bin/sh\ntree=\"${0%/*}/tree/usr\"\n\
                  LD_LIBRARY_PATH=\"$tree/lib/x86_64-linux-gnu\" exec \"$tree/bin/rustc\" \"$@\"\n";
    let rustc = new.join("rustc");
    fs::write(&rustc, script).map_err(|error| file(&rustc, error))?;
    let mut executable = Command::new("chmod");
    executable.arg("+x").arg(&rustc);
    process::run(executable)
}

/// The compiler, what it needs, and its sources.
fn packages() -> Option<Vec<String>> {
    let library = dependency(COMPILER, "libstd-rust-web-dev")?;
    let shared = dependency(&library, "libstd-rust-web-")?;
    let llvm = dependency(&shared, "libllvm")?;
    Some(vec![COMPILER.into(), library, shared, llvm, SOURCES.into()])
}

/// The version of a package that would be downloaded.
fn candidate(package: &str) -> Option<String> {
    let told = process::output("apt-cache", &["show", "--no-all-versions", package])?;
    told.lines().find_map(|line| line.strip_prefix("Version: ")).map(str::to_owned)
}

/// The first dependency of a package whose name begins so.
fn dependency(package: &str, begins: &str) -> Option<String> {
    let told = process::output("apt-cache", &["depends", package])?;
    let mut names = told.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.find(|name| name.starts_with(begins)).map(str::to_owned)
}

fn unpack_package(package: &Path, tree: &Path, part: &[&str]) -> Result<(), Failure> {
    let start = |error| Failure::Start("dpkg-deb".into(), error);
    let mut contents = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(start)?;
    let mut tar = Command::new("tar");
    tar.arg("--extract").arg("--directory").arg(tree).args(part);
    tar.stdin(contents.stdout.take().map_or_else(Stdio::null, Stdio::from));
    let unpacked = process::run(tar);
    contents.wait().map_err(start)?;
    unpacked
}

fn file(path: &Path, error: std::io::Error) -> Failure {
    Failure::File(path.display().to_string(), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_of_the_old_distribution_is_not_new_enough() {
        assert!(!new_enough("1.85.0+dfsg3-1~deb12u3"));
        assert!(!new_enough(""));
        assert!(new_enough("1.96.0+dfsg1-1~deb12u2"));
        assert!(new_enough(env!("CARGO_PKG_RUST_VERSION")));
    }
}
