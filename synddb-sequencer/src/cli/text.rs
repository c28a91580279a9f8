//! How things are written for people. Names and values come from anywhere: nothing in them reaches
//! a terminal as a command to it.

/// A name as it is, or quoted and escaped where there is anything unusual in it.
pub(crate) fn name(name: &str) -> String {
    let is_plain = |character: char| character.is_alphanumeric() || "_-.:/@+".contains(character);
    if name.chars().all(is_plain) { name.to_owned() } else { format!("{name:?}") }
}

/// A message of several lines without anything that a terminal obeys.
pub(crate) fn harmless(message: &str) -> String {
    let escape = |character: char| match character {
        '\n' | '"' | '\'' | '\\' => character.to_string(),
        character => character.escape_debug().collect(),
    };
    message.chars().map(escape).collect()
}

/// Bytes in the unit that suits them.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while value >= 1023.95 && units.len() > 0 {
        value /= 1024.0;
        unit = units.next();
    }
    format!("{value:.1} {}", unit.unwrap_or(&""))
}

/// "1 entry", "2 entries".
pub(crate) fn entries(count: u64) -> String {
    if count == 1 { "1 entry".into() } else { format!("{count} entries") }
}

/// A duration in its two largest units.
pub(crate) fn duration(seconds: u64) -> String {
    let units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let parts = units.iter().scan(seconds, |rest, (length, unit)| {
        let count = *rest / length;
        *rest %= length;
        Some((count, unit))
    });
    let parts = parts.skip_while(|(count, _)| *count == 0).take(2);
    let parts: Vec<_> = parts.map(|(count, unit)| format!("{count} {unit}")).collect();
    if parts.is_empty() { "0 s".into() } else { parts.join(" ") }
}

/// Columns as wide as their widest cell, two blanks between them.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_read_well() {
        for (number, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
        for (seconds, text) in
            [(0, "0 s"), (59, "59 s"), (3600, "1 h 0 min"), (90_061, "1 d 1 h"), (61, "1 min 1 s")]
        {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn terminals_get_no_commands() {
        assert_eq!(name("orders.v2"), "orders.v2");
        assert_eq!(name("a\u{1b}[31mb"), "\"a\\u{1b}[31mb\"");
        assert_eq!(name("\u{202e}x"), "\"\\u{202e}x\"");
        assert_eq!(harmless("it's\n\u{7}"), "it's\n\\u{7}");
    }
}
