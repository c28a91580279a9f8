//! When a token expires. Nothing is verified: that is for whoever it is shown to.

/// `exp` of a JWT's payload, seconds since 1970; `None` where there is none, or it is no JWT.
pub(super) fn expiry(token: &str) -> Option<u64> {
    let payload = base64url(token.split('.').nth(1)?)?;
    number_field(&payload, b"exp")
}

fn base64url(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0);
    for character in text.trim_end_matches('=').bytes() {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

/// The number that an object's own field has, and no other object's in it.
fn number_field(json: &[u8], wanted: &[u8]) -> Option<u64> {
    let (mut depth, mut at) = (0, 0);
    while at < json.len() {
        match json[at] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            b'"' => {
                let start = at + 1;
                let end = end_of_string(json, start)?;
                let rest = json[end + 1..].trim_ascii_start();
                if depth == 1
                    && &json[start..end] == wanted
                    && let Some(value) = rest.strip_prefix(b":")
                {
                    let value = value.trim_ascii_start();
                    let digits = value.iter().take_while(|byte| byte.is_ascii_digit()).count();
                    return std::str::from_utf8(&value[..digits]).ok()?.parse().ok();
                }
                at = end;
            }
            _ => {}
        }
        at += 1;
    }
    None
}

fn end_of_string(json: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match json.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_of_a_token_is_read() {
        // {"exp":1700000000}
        assert_eq!(expiry("eyJhbGciOiJub25lIn0.eyJleHAiOjE3MDAwMDAwMDB9.x"), Some(1_700_000_000));
        for none in ["", "abc", "a.b.c", "a.e30.c", "a.!!!.c"] {
            assert_eq!(expiry(none), None, "{none}");
        }
    }

    #[test]
    fn only_the_outermost_field_counts() {
        let exp = |json: &str| number_field(json.as_bytes(), b"exp");
        assert_eq!(exp(r#"{"a":{"exp":1},"b":["exp",2],"c":"\"exp\":3", "exp" : 4.5}"#), Some(4));
        assert_eq!(exp(r#"{"a":"exp","x":5}"#), None);
        assert_eq!(exp(r#"{"exp":"soon"}"#), None);
        assert_eq!(exp(r#"{"exp"#), None);
        assert_eq!(exp(r#"{"a":"\"#), None);
    }
}
