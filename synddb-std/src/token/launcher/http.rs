//! One request over a Unix socket: as much of HTTP/1.1 as that takes.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

/// Longest answer in bytes, head included.
const MAX_ANSWER: usize = 64 << 10;

/// Posts JSON; the status and the body of the answer, all of it within `timeout`.
pub(super) fn post(
    socket: &Path,
    path: &str,
    body: &str,
    timeout: Duration,
) -> Result<(u16, Vec<u8>), String> {
    let answer = exchange(socket, path, body, timeout).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "there is no such socket; is this Confidential Space?".into(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "it did not answer in time".into(),
        _ => error.to_string(),
    })?;
    parse(&answer).ok_or_else(|| "its answer is not HTTP, or not whole".to_owned())
}

fn exchange(socket: &Path, path: &str, body: &str, timeout: Duration) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + timeout;
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(timeout))?;
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    // Until the launcher closes, as it was asked to, or what was announced is here.
    while !is_whole(&answer) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if answer.len() > MAX_ANSWER {
            return Err(io::Error::other("its answer is too long"));
        }
    }
    Ok(answer)
}

/// Whether there is nothing to be waited for.
fn is_whole(answer: &[u8]) -> bool {
    let Some((head, body)) = Head::read(answer) else { return false };
    match head.length {
        Length::Fixed(len) => body.len() >= len,
        Length::Chunked => unchunked(body).is_some(),
        Length::UntilClosed => false,
    }
}

fn parse(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let (head, body) = Head::read(answer)?;
    let body = match head.length {
        Length::Fixed(len) => body.get(..len)?.to_vec(),
        Length::Chunked => unchunked(body)?,
        Length::UntilClosed => body.to_vec(),
    };
    Some((head.status, body))
}

struct Head {
    status: u16,
    length: Length,
}

enum Length {
    Fixed(usize),
    Chunked,
    UntilClosed,
}

impl Head {
    /// The head, where it is here whole, and what follows it.
    fn read(answer: &[u8]) -> Option<(Self, &[u8])> {
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
        let (head, body) = (std::str::from_utf8(&answer[..end]).ok()?, &answer[end + 4..]);
        let mut lines = head.split("\r\n");
        let mut status = lines.next()?.split(' ');
        let version = status.next().filter(|version| version.starts_with("HTTP/1."));
        let status = version.and_then(|_| status.next())?.parse().ok()?;
        let mut length = Length::UntilClosed;
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            if name.eq_ignore_ascii_case("transfer-encoding") {
                length = Length::Chunked;
            } else if name.eq_ignore_ascii_case("content-length")
                && !matches!(length, Length::Chunked)
            {
                length = Length::Fixed(value.trim().parse().ok()?);
            }
        }
        Some((Self { status, length }, body))
    }
}

/// The body that comes in chunks, where all of them are here.
fn unchunked(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(&rest[..end]).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_in_every_form() {
        let body = |answer: &str| {
            parse(answer.as_bytes())
                .map(|(status, body)| (status, String::from_utf8(body).unwrap()))
        };
        let ok = |text: &str| Some((200, text.to_owned()));
        assert_eq!(body("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"), ok("abc"));
        assert_eq!(body("HTTP/1.0 200 OK\r\n\r\nabc"), ok("abc"));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(
            body(&format!("{chunked}2;x=y\r\nab\r\nA\r\n0123456789\r\n0\r\n\r\n")),
            ok("ab0123456789")
        );
        assert_eq!(body("HTTP/1.1 500 Oops\r\n\r\n"), Some((500, String::new())));
        for cut in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
            &format!("{chunked}2\r\nab\r\n"),
            &format!("{chunked}ffffffffffffffff\r\nab\r\n"),
            "SSH-2.0\r\n\r\n",
        ] {
            assert_eq!(body(cut), None, "{cut}");
        }
    }
}
