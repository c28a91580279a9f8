//! What a VM boots into: an archive in the format that the kernel unpacks (cpio, "newc").

use std::collections::BTreeSet;
use std::path::Path;

use super::{cache, kernel};
use crate::failure::Failure;
use crate::process;

const INIT: &str = include_str!("init.sh");

/// Busybox, the modules, `init.sh`, the files with keys, and the programs, each with the libraries it
/// loads.
pub(super) fn build(programs: &[&Path], keys: &Path) -> Result<Vec<u8>, Failure> {
    let mut archive = Archive::new();
    for dir in ["data", "dev", "proc", "sys", "tmp"] {
        archive.directory(dir);
    }
    archive.file("init", INIT.as_bytes());
    for (name, dir) in [("modules", &*kernel::modules()), ("keys", keys)] {
        for path in kernel::files(dir) {
            let place = path.strip_prefix(dir).unwrap_or(&path).to_string_lossy();
            archive.file(&format!("{name}/{place}"), &cache::read_bytes(&path)?);
        }
    }
    let busybox = process::find_program("busybox")
        .ok_or_else(|| Failure::Check("busybox is not in PATH".into()))?;
    let mut libraries = BTreeSet::new();
    for program in programs.iter().copied().chain([&*busybox]) {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("bin/{name}"), &cache::read_bytes(program)?);
        libraries.extend(loaded_by(program));
    }
    for library in libraries {
        archive.file(library.trim_start_matches('/'), &cache::read_bytes(library.as_ref())?);
    }
    Ok(archive.finish())
}

/// The libraries that a program loads, by their paths; none if it is static.
fn loaded_by(program: &Path) -> Vec<String> {
    let told = process::output("ldd", &[&program.to_string_lossy()]).unwrap_or_default();
    told.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned).collect()
}

struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    entries: usize,
}

impl Archive {
    fn new() -> Self {
        Self { bytes: Vec::new(), directories: BTreeSet::new(), entries: 0 }
    }

    /// A directory, behind those it lies in.
    fn directory(&mut self, path: &str) {
        if path.is_empty() || !self.directories.insert(path.to_owned()) {
            return;
        }
        self.directory(parent(path));
        self.entry(path, 0o040_755, &[]);
    }

    /// A file that may be executed.
    fn file(&mut self, path: &str, contents: &[u8]) {
        self.directory(parent(path));
        self.entry(path, 0o100_755, contents);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: usize, contents: &[u8]) {
        self.entries += 1;
        // inode, mode, user, group, links, time, length, two devices, length of the name, checksum
        let (inode, length, name) = (self.entries, contents.len(), path.len() + 1);
        let fields = [inode, mode, 0, 0, 1, 0, length, 0, 0, 0, 0, name, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_what_cpio_writes() {
        let mut archive = Archive::new();
        archive.file("a/b", b"hello");
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        let header = |fields: [&str; 4]| {
            let [inode, mode, length, name] = fields;
            let zero = "00000000";
            format!(
                "070701{inode}{mode}{zero}{zero}00000001{zero}{length}{zero}{zero}{zero}{zero}{name}\
                 {zero}"
            )
        };
        let expected = [
            &header(["00000001", "000041ED", "00000000", "00000002"]),
            "a\0",
            &header(["00000002", "000081ED", "00000005", "00000004"]),
            "a/b\0\0\0hello\0\0\0",
            &header(["00000003", "00000000", "00000000", "0000000B"]),
            "TRAILER!!!\0\0\0\0",
        ];
        assert_eq!(text, expected.concat());
    }
}
