//! Moments as people write them.

use std::{fmt, str::FromStr};

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

/// Numbers from here on are milliseconds since 1970, smaller ones seconds: as seconds this is the
/// year 5138, as milliseconds March 1973.
const FIRST_AS_MILLIS: u64 = 100_000_000_000;

/// A moment by a sequencer's clock, in milliseconds.
///
/// Reads RFC 3339 (`2026-11-02T12:00:00.250+01:00`; fraction and offset may be left out, and the
/// offset is UTC then), seconds since 1970, and milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(u64);

impl Moment {
    /// The moment so many milliseconds after the start of 1970, UTC.
    pub const fn from_unix_ms(ms: u64) -> Self {
        Self(ms)
    }

    /// Milliseconds since the start of 1970, UTC.
    pub const fn unix_ms(self) -> u64 {
        self.0
    }
}

/// RFC 3339 in UTC with milliseconds; the bare number where no calendar reaches.
impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = i64::try_from(self.0).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
        match known {
            Some(moment) => write!(f, "{moment:.3}"),
            None => write!(f, "{} ms", self.0),
        }
    }
}

/// The text is no moment since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidMoment;

impl fmt::Display for InvalidMoment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "expected RFC 3339, such as 2026-11-02T12:00:00Z, or seconds or milliseconds since \
             1970",
        )
    }
}

impl std::error::Error for InvalidMoment {}

impl FromStr for Moment {
    type Err = InvalidMoment;

    fn from_str(text: &str) -> Result<Self, InvalidMoment> {
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            let number: u64 = text.parse().map_err(|_| InvalidMoment)?;
            let ms = if number < FIRST_AS_MILLIS { number * 1000 } else { number };
            return Ok(Self(ms));
        }
        let moment = text
            .parse::<Timestamp>()
            .or_else(|_| {
                // Without an offset; a date alone would leave open which end of the day is meant.
                let with_time = if text.contains(':') { text } else { "" };
                with_time.parse::<DateTime>().and_then(|utc| TimeZone::UTC.to_timestamp(utc))
            })
            .map_err(|_| InvalidMoment)?;
        // Entries carry whole milliseconds.
        let ms = moment.as_nanosecond().div_euclid(1_000_000);
        u64::try_from(ms).map(Self).map_err(|_| InvalidMoment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_read_as_people_write_them() {
        let noon = 1_793_620_800_000;
        for (text, ms) in [
            ("2026-11-02T12:00:00Z", noon),
            ("2026-11-02T12:00:00", noon),
            ("2026-11-02 12:00:00", noon),
            ("2026-11-02t12:00z", noon),
            ("2026-11-02T13:30:00+01:30", noon),
            ("2026-11-02T04:00:00.25-08:00", noon + 250),
            ("2026-11-02T12:00:00.0019999Z", noon + 1),
            ("1793620800", noon),
            ("1793620800000", noon),
            ("0", 0),
            ("1970-01-01T00:00:00Z", 0),
        ] {
            assert_eq!(text.parse(), Ok(Moment(ms)), "{text}");
        }
        for text in [
            "",
            "noon",
            "-5",
            "2026-11-02",
            "1969-12-31T23:59:59Z",
            "2026-13-02T12:00:00Z",
            "1.5",
            "99999999999999999999",
            "2026-11-02T12:00:00+99:00",
        ] {
            assert_eq!(text.parse::<Moment>(), Err(InvalidMoment), "{text}");
        }
    }

    #[test]
    fn moments_are_written_as_they_read() {
        let moment = Moment(1_793_620_800_250);
        assert_eq!(moment.to_string(), "2026-11-02T12:00:00.250Z");
        assert_eq!(moment.to_string().parse(), Ok(moment));
        assert_eq!(Moment(u64::MAX).to_string(), format!("{} ms", u64::MAX));
    }
}
