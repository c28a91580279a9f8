//! Sections of a linked program.

use std::fs;
use std::path::Path;

use crate::failure::Failure;

/// A 32-bit little-endian ELF file.
pub(super) struct Elf {
    bytes: Vec<u8>,
    sections: Vec<Section>,
}

struct Section {
    name: String,
    offset: usize,
    size: usize,
}

/// Where the file's header says where the table of sections is, and its fields.
const TABLE_AT: usize = 0x20;
const ENTRY_LEN_AT: usize = 0x2E;
const COUNT_AT: usize = 0x30;
const NAMES_AT: usize = 0x32;

impl Elf {
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let bytes =
            fs::read(path).map_err(|error| Failure::File(path.display().to_string(), error))?;
        Self::parse(bytes).ok_or_else(|| malformed(&path.display().to_string()))
    }

    fn parse(bytes: Vec<u8>) -> Option<Self> {
        if !bytes.starts_with(b"\x7FELF\x01\x01") {
            return None;
        }
        let table = word(&bytes, TABLE_AT)?;
        let [entry_len, count, names] =
            [ENTRY_LEN_AT, COUNT_AT, NAMES_AT].map(|at| half(&bytes, at));
        let (entry_len, names) = (entry_len?, table + names? * entry_len?);
        let names = word(&bytes, names + 16)?;
        let section = |at: usize| {
            let entry = table + at * entry_len;
            let name = bytes.get(names + word(&bytes, entry)?..)?;
            let name = name.split(|byte| *byte == 0).next()?;
            Some(Section {
                name: String::from_utf8_lossy(name).into_owned(),
                offset: word(&bytes, entry + 16)?,
                size: word(&bytes, entry + 20)?,
            })
        };
        let sections = (0..count?).map(section).collect::<Option<Vec<_>>>()?;
        Some(Self { bytes, sections })
    }

    /// Bytes of these sections together.
    pub(super) fn size(&self, names: &[&str]) -> u64 {
        let named = self.sections.iter().filter(|section| names.contains(&section.name.as_str()));
        named.map(|section| section.size as u64).sum()
    }

    /// The numbers in a section.
    pub(super) fn words(&self, name: &str) -> Result<Vec<u32>, Failure> {
        let section = self.sections.iter().find(|section| section.name == name);
        let bytes = section
            .and_then(|section| self.bytes.get(section.offset..section.offset + section.size))
            .ok_or_else(|| malformed(name))?;
        let words = bytes
            .chunks_exact(4)
            .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        Ok(words.collect())
    }
}

fn malformed(what: &str) -> Failure {
    Failure::Check(format!("{what} is not in the program, or it is no 32-bit ELF file"))
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let word = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes([word[0], word[1], word[2], word[3]]) as usize)
}

fn half(bytes: &[u8], at: usize) -> Option<usize> {
    let half = bytes.get(at..at + 2)?;
    Some(u16::from_le_bytes([half[0], half[1]]).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_elf_file_is_refused() {
        assert!(Elf::parse(Vec::new()).is_none());
        assert!(Elf::parse(b"\x7FELF\x02\x01 of 64 bits".to_vec()).is_none());
        let mut cut = b"\x7FELF\x01\x01".to_vec();
        cut.resize(0x34, 0xFF);
        assert!(Elf::parse(cut).is_none());
    }
}
