//! What the order book says of itself.

use serde_json::Value;

/// The last line it said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Line {
    pub(crate) commits: u64,
    pub(crate) unacknowledged: u64,
    pub(crate) lag_ms: u64,
    pub(crate) link: Link,
    /// Counts the lines; 0 before the first.
    pub(crate) number: u64,
}

/// State of its link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Link {
    #[default]
    Connecting,
    Up,
    Down,
    Stopped,
}

impl Line {
    /// `None` for anything but a whole line: a killed process may leave a half one, and a figure
    /// that is missing is not 0.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let json: Value = serde_json::from_str(text).ok()?;
        Some(Self {
            commits: json["commits"].as_u64()?,
            unacknowledged: json["unacknowledged"].as_u64()?,
            lag_ms: json["lag_ms"].as_u64()?,
            link: match json["link"].as_str()? {
                "connecting" => Link::Connecting,
                "up" => Link::Up,
                "down" => Link::Down,
                "stopped" => Link::Stopped,
                _ => return None,
            },
            number: 0,
        })
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.commits.saturating_sub(self.unacknowledged)
    }
}

impl Link {
    pub(crate) fn is_up(self) -> bool {
        self == Self::Up
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Up => "up",
            Self::Down => "down",
            Self::Stopped => "stopped",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"{"commits":9,"unacknowledged":2,"lag_ms":31,"link":"up"}"#;

    #[test]
    fn a_whole_line_is_read() {
        let line = Line::parse(WHOLE).unwrap();
        assert_eq!((line.commits, line.acknowledged(), line.lag_ms), (9, 7, 31));
        assert!(line.link.is_up());
    }

    #[test]
    fn anything_less_is_no_line_of_zeros() {
        for length in 0..WHOLE.len() {
            assert_eq!(Line::parse(&WHOLE[..length]), None, "{length}");
        }
        assert_eq!(Line::parse(r#"{"commits":9,"lag_ms":31,"link":"up"}"#), None);
        assert_eq!(Line::parse(&WHOLE.replace("up", "sideways")), None);
    }
}
