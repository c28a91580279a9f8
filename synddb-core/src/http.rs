//! Frames over HTTP: a [`Transport`] over whatever HTTP client there is.
//!
//! ```text
//!  POST /v1/frames                              200
//!  Content-Type: application/vnd.synddb.frames  Content-Type: application/vnd.synddb.frames
//!
//!  [Hello, ticket 0]                      ───▶  [HelloAck, ticket 7]
//!  [Hello, ticket 7][Entries][Entries]    ───▶  [Ack][Ack]
//!  [Hello, ticket 7][Ping]                ───▶  [Ack]
//! ```
//!
//! Every body begins with the Hello, so that requests may come over any connection; the ticket
//! that the first one was answered with says that the session goes on. One request is on its way
//! at a time. The Hello's token is also sent as `Authorization: Bearer`, for whoever stands between.
//!
//! A client implements [`HttpExchange`]; [`HttpFrames`] does the rest, and [`AsyncHttpFrames`] for
//! one that implements [`AsyncHttpExchange`]. It does not retry, follows no redirects, and knows no
//! other protocol to fall back to.

use alloc::{string::String, vec, vec::Vec};
use core::{fmt, future::Future, time::Duration};

use crate::{
    transport::{Transport, TransportError, TransportErrorKind},
    wire::{
        Header, Kind, Message, WireError,
        message::{Hello, MAX_CONTROL_FRAME},
    },
};

/// Where frames are posted to, below the sequencer's address.
pub const FRAMES_PATH: &str = "/v1/frames";
/// Media type of bodies made of frames.
pub const FRAMES_CONTENT_TYPE: &str = "application/vnd.synddb.frames";
/// Frames in one body, where nothing else is asked for.
pub const DEFAULT_FRAMES_PER_BODY: usize = 8;

/// Characters of a foreign body that an error shows.
const EXCERPT_CHARS: usize = 80;

/// One request and its response, with a client that may keep connections open.
pub trait HttpExchange {
    /// Why there was no response.
    type Error: TransportError;

    /// Posts `request` and waits for the response, within the client's own time limits.
    ///
    /// The response's body is written over what `response` held, up to `limit` bytes; more of it
    /// is not read. Redirects are not followed, and every status is a response.
    ///
    /// # Errors
    /// There was no response, or its body ended before its announced length.
    fn post(
        &mut self,
        request: HttpRequest<'_>,
        response: &mut Vec<u8>,
        limit: usize,
    ) -> Result<HttpResponse, Self::Error>;

    /// Called where a frame is waited for and none can come, since nothing was asked: sleep up to
    /// `timeout`, lest the driver spin. Does nothing where there is no such thing.
    fn idle(&mut self, timeout: Duration) {
        let _ = timeout;
    }
}

/// The asynchronous twin of [`HttpExchange`], of no particular runtime.
pub trait AsyncHttpExchange {
    /// Why there was no response.
    type Error: TransportError;

    /// See [`HttpExchange::post`]. Where the future is dropped before its end, the request may have
    /// been sent all the same.
    fn post(
        &mut self,
        request: HttpRequest<'_>,
        response: &mut Vec<u8>,
        limit: usize,
    ) -> impl Future<Output = Result<HttpResponse, Self::Error>>;
}

/// A POST.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HttpRequest<'a> {
    /// Below the sequencer's address.
    pub path: &'a str,
    /// `Content-Type`, and what to accept.
    pub content_type: &'a str,
    /// Goes as `Authorization: Bearer`; empty where there is none, or where it holds what no header
    /// can.
    pub token: &'a str,
    /// The body.
    pub body: &'a [u8],
}

impl fmt::Debug for HttpRequest<'_> {
    /// Without the token, which the body has too.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, content_type, body, .. } = self;
        write!(f, "POST {path}, {} bytes of {content_type}", body.len())
    }
}

/// What a response says besides its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpResponse {
    /// The status, 100 to 999.
    pub status: u16,
    /// Whether the body is made of frames, as its content type says.
    pub is_frames: bool,
    /// How long the other side asks to wait.
    pub retry_after: Option<Duration>,
}

impl HttpResponse {
    /// Takes the headers `Content-Type` and `Retry-After` as they came. Of `Retry-After` only
    /// seconds are understood; a date is ignored, as clocks may differ.
    pub fn new(status: u16, content_type: Option<&str>, retry_after: Option<&str>) -> Self {
        let media_type = content_type.and_then(|value| value.split(';').next()).unwrap_or("");
        let seconds = retry_after.and_then(|value| value.trim().parse().ok());
        Self {
            status,
            is_frames: media_type.trim().eq_ignore_ascii_case(FRAMES_CONTENT_TYPE),
            retry_after: seconds.map(Duration::from_secs),
        }
    }
}

/// Error of [`HttpFrames`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HttpError<E> {
    /// There was no response.
    Exchange(E),
    /// A frame was sent before a Hello was, or before it was answered.
    NoSession,
    /// The Hello was answered by no frame.
    NoAnswer,
    /// Something between here and the sequencer answered, or something else than a sequencer.
    Status {
        /// The status.
        status: u16,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
        /// How its body begins.
        excerpt: String,
    },
    /// The response says that it is made of frames, and is not.
    NotFrames {
        /// The status.
        status: u16,
        /// How its body begins.
        excerpt: String,
    },
    /// A frame is broken or longer than accepted.
    Wire(WireError),
}

impl<E: fmt::Display> fmt::Display for HttpError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exchange(error) => error.fmt(f),
            Self::NoSession => f.write_str("a frame was sent before the Hello was answered"),
            Self::NoAnswer => f.write_str("the sequencer answered the Hello with an empty body"),
            Self::Status { status, retry_after, excerpt } => {
                write!(f, "POST {FRAMES_PATH} was answered with status {status}")?;
                if let Some(wait) = retry_after {
                    write!(f, ", retry after {} s", wait.as_secs())?;
                }
                f.write_str(match (status, status_kind(*status)) {
                    (300..=399, _) => {
                        ": redirects are not followed, use the address it redirects to"
                    }
                    (404 | 405 | 415, _) => {
                        ": this address does not speak synddb frames; is this an older SyndDB \
                         sequencer that speaks CBOR?"
                    }
                    (_, TransportErrorKind::NotASequencer) => {
                        ": not a synddb sequencer; is the address right, or a proxy in between?"
                    }
                    (_, TransportErrorKind::Unauthorized) => ": access refused",
                    (_, TransportErrorKind::TooLarge) => {
                        ": the request is over a size limit on the way"
                    }
                    (_, TransportErrorKind::Busy) => ": busy",
                    _ => "",
                })?;
                show_excerpt(f, excerpt)
            }
            Self::NotFrames { status, excerpt } => {
                write!(
                    f,
                    "POST {FRAMES_PATH} was answered with status {status} and bytes that are not \
                     synddb frames"
                )?;
                show_excerpt(f, excerpt)
            }
            Self::Wire(error) => error.fmt(f),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> core::error::Error for HttpError<E> {}

impl<E: TransportError> TransportError for HttpError<E> {
    fn kind(&self) -> TransportErrorKind {
        match self {
            Self::Exchange(error) => error.kind(),
            Self::Status { status, .. } => status_kind(*status),
            Self::NotFrames { .. } | Self::Wire(WireError::Version { .. }) => {
                TransportErrorKind::NotASequencer
            }
            Self::NoSession | Self::NoAnswer | Self::Wire(_) => TransportErrorKind::Disconnected,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Exchange(error) => error.retry_after(),
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// What a status means that did not come with frames.
fn status_kind(status: u16) -> TransportErrorKind {
    match status {
        401 | 403 | 407 => TransportErrorKind::Unauthorized,
        408 | 429 | 503 => TransportErrorKind::Busy,
        413 => TransportErrorKind::TooLarge,
        200..=399 | 404 | 405 | 415 => TransportErrorKind::NotASequencer,
        _ => TransportErrorKind::Other,
    }
}

/// A [`Transport`] whose frames travel in the bodies of HTTP requests and responses.
///
/// [`send`](Transport::send) gathers frames, [`recv`](Transport::recv) posts them in one body and
/// hands out the answers one by one. After an error only a new Hello leads on.
#[derive(Debug)]
pub struct HttpFrames<E> {
    exchange: E,
    session: Session,
}

impl<E> HttpFrames<E> {
    /// A transport of [`DEFAULT_FRAMES_PER_BODY`].
    pub const fn new(exchange: E) -> Self {
        Self { exchange, session: Session::new() }
    }

    /// Puts up to this many frames into one body, at least one. It is told to the sender as
    /// [`max_in_flight`](Transport::max_in_flight).
    #[must_use]
    pub const fn with_frames_per_body(mut self, frames: usize) -> Self {
        self.session.frames_per_body = if frames == 0 { 1 } else { frames };
        self
    }

    /// The client.
    pub const fn exchange(&self) -> &E {
        &self.exchange
    }
}

impl<E: HttpExchange> HttpFrames<E> {
    fn receive(
        &mut self,
        reply: &mut [u8],
        timeout: Duration,
    ) -> Result<Option<usize>, HttpError<E::Error>> {
        match self.session.due() {
            Due::Answer => {}
            Due::Nothing => {
                self.exchange.idle(timeout);
                return Ok(None);
            }
            Due::Post => {
                let (request, answers, limit) = self.session.request();
                let response = self.exchange.post(request, answers, limit);
                self.session.answered(response.map_err(HttpError::Exchange)?)?;
            }
        }
        self.session.take_answer(reply)
    }
}

impl<E: HttpExchange> Transport for HttpFrames<E> {
    type Error = HttpError<E::Error>;

    /// Nothing is opened before there is something to post.
    fn connect(&mut self) -> Result<(), Self::Error> {
        self.session.reset();
        Ok(())
    }

    fn close(&mut self) {
        self.session.reset();
    }

    fn send(&mut self, frame: &[u8]) -> Result<(), Self::Error> {
        self.session.gather(frame)
    }

    /// Takes as long as the client lets a request take, where there is something to post.
    fn recv(&mut self, reply: &mut [u8], timeout: Duration) -> Result<Option<usize>, Self::Error> {
        let received = self.receive(reply, timeout);
        if received.is_err() {
            self.session.reset();
        }
        received
    }

    fn max_in_flight(&self) -> usize {
        self.session.frames_per_body
    }
}

/// As [`HttpFrames`], over a client that waits instead of blocking.
///
/// It is no [`AsyncTransport`](crate::transport::AsyncTransport): what is on its way in a request is
/// lost with the future that waits for the response, so whoever drives this lets it end.
#[derive(Debug)]
pub struct AsyncHttpFrames<E> {
    exchange: E,
    session: Session,
}

impl<E> AsyncHttpFrames<E> {
    /// Frames over a client, up to [`DEFAULT_FRAMES_PER_BODY`] in one body.
    pub const fn new(exchange: E) -> Self {
        Self { exchange, session: Session::new() }
    }

    /// See [`Transport::close`]; there is nothing to connect.
    pub fn close(&mut self) {
        self.session.reset();
    }

    /// See [`Transport::max_in_flight`].
    pub const fn max_in_flight(&self) -> usize {
        self.session.frames_per_body
    }

    /// Whether [`recv`](Self::recv) would have nothing to post and nothing to hand out.
    pub fn is_idle(&self) -> bool {
        self.session.due() == Due::Nothing
    }
}

impl<E: AsyncHttpExchange> AsyncHttpFrames<E> {
    /// Keeps a frame for the next [`recv`](Self::recv) to send.
    ///
    /// # Errors
    /// Where it is no frame, or there is no session that it could belong to.
    pub fn send(&mut self, frame: &[u8]) -> Result<(), HttpError<E::Error>> {
        self.session.gather(frame)
    }

    /// Hands out an answer, after posting what was gathered where there is none left. `None` where
    /// there is nothing to wait for.
    ///
    /// # Errors
    /// Only a new Hello leads on.
    pub async fn recv(&mut self, reply: &mut [u8]) -> Result<Option<usize>, HttpError<E::Error>> {
        let received = self.receive(reply).await;
        if received.is_err() {
            self.session.reset();
        }
        received
    }

    async fn receive(&mut self, reply: &mut [u8]) -> Result<Option<usize>, HttpError<E::Error>> {
        match self.session.due() {
            Due::Answer => {}
            Due::Nothing => return Ok(None),
            Due::Post => {
                let (request, answers, limit) = self.session.request();
                let response = self.exchange.post(request, answers, limit).await;
                self.session.answered(response.map_err(HttpError::Exchange)?)?;
            }
        }
        self.session.take_answer(reply)
    }
}

/// What is between frames and requests, whoever posts them.
struct Session {
    frames_per_body: usize,
    state: State,
    /// The Hello's token, for the header.
    token: String,
    /// The Hello, and the gathered frames behind it.
    body: Vec<u8>,
    /// Length of the Hello in the body.
    hello_len: usize,
    gathered: usize,
    answers: Vec<u8>,
    /// How much of the answers was handed out.
    taken: usize,
    /// Status of the response that the answers came with.
    status: u16,
}

impl fmt::Debug for Session {
    /// Without the bodies: there is a token in them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { state, gathered, .. } = self;
        f.debug_struct("Session")
            .field("state", state)
            .field("gathered", gathered)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No Hello yet.
    Silent,
    /// The body is a Hello to be posted alone.
    Greeting,
    /// The Hello was posted, its answer is among the answers.
    Greeted,
    /// The Hello in front of the body has a ticket.
    Open,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    /// An answer is here.
    Answer,
    /// The body is to be posted.
    Post,
    Nothing,
}

impl Session {
    const fn new() -> Self {
        Self {
            frames_per_body: DEFAULT_FRAMES_PER_BODY,
            state: State::Silent,
            token: String::new(),
            body: Vec::new(),
            hello_len: 0,
            gathered: 0,
            answers: Vec::new(),
            taken: 0,
            status: 0,
        }
    }

    fn reset(&mut self) {
        self.state = State::Silent;
        self.token.clear();
        self.body.clear();
        self.hello_len = 0;
        self.gathered = 0;
        self.answers.clear();
        self.taken = 0;
    }

    fn due(&self) -> Due {
        match self.state {
            _ if self.taken < self.answers.len() => Due::Answer,
            State::Greeting => Due::Post,
            State::Open if self.gathered > 0 => Due::Post,
            _ => Due::Nothing,
        }
    }

    fn gather<E>(&mut self, frame: &[u8]) -> Result<(), HttpError<E>> {
        let header = Header::read(frame, usize::MAX).map_err(HttpError::Wire)?;
        if header.kind() == Ok(Kind::Hello) {
            let (_, Message::Hello(hello)) =
                Message::decode(frame, MAX_CONTROL_FRAME).map_err(HttpError::Wire)?
            else {
                return Err(HttpError::NoSession);
            };
            self.reset();
            if let Ok(token) = str::from_utf8(hello.token)
                && token.bytes().all(|byte| byte.is_ascii_graphic())
            {
                self.token.push_str(token);
            }
            self.body.extend_from_slice(frame);
            self.hello_len = frame.len();
            self.state = State::Greeting;
            return Ok(());
        }
        if self.state != State::Open {
            return Err(HttpError::NoSession);
        }
        self.body.extend_from_slice(frame);
        self.gathered += 1;
        Ok(())
    }

    /// The request, where its response's body goes, and how long that may be.
    fn request(&mut self) -> (HttpRequest<'_>, &mut Vec<u8>, usize) {
        // A frame may be answered, refused or both; the Hello in front may be refused.
        let limit = self.gathered.saturating_add(1).saturating_mul(2 * MAX_CONTROL_FRAME);
        self.answers.clear();
        self.taken = 0;
        let request = HttpRequest {
            path: FRAMES_PATH,
            content_type: FRAMES_CONTENT_TYPE,
            token: &self.token,
            body: &self.body,
        };
        (request, &mut self.answers, limit)
    }

    fn answered<E>(&mut self, response: HttpResponse) -> Result<(), HttpError<E>> {
        self.body.truncate(self.hello_len);
        self.gathered = 0;
        self.status = response.status;
        // An error without a frame is decided by its status, whatever its content type.
        let decided = !self.answers.is_empty() || (200..300).contains(&response.status);
        if !response.is_frames || !decided {
            return Err(HttpError::Status {
                status: response.status,
                retry_after: response.retry_after,
                excerpt: excerpt(&self.answers),
            });
        }
        if self.state == State::Greeting {
            if self.answers.is_empty() {
                return Err(HttpError::NoAnswer);
            }
            self.state = State::Greeted;
        }
        Ok(())
    }

    fn take_answer<E>(&mut self, reply: &mut [u8]) -> Result<Option<usize>, HttpError<E>> {
        let rest = self.answers.get(self.taken..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(None);
        }
        let header = Header::read(rest, reply.len()).map_err(|error| match error {
            WireError::NotOurs => {
                HttpError::NotFrames { status: self.status, excerpt: excerpt(rest) }
            }
            error => HttpError::Wire(error),
        })?;
        let len = header.frame_len();
        let (Some(frame), Some(room)) = (rest.get(..len), reply.get_mut(..len)) else {
            return Err(HttpError::Wire(WireError::Truncated));
        };
        room.copy_from_slice(frame);
        self.taken += len;
        if self.state == State::Greeted && header.kind() == Ok(Kind::HelloAck) {
            self.open(room).map_err(HttpError::Wire)?;
        }
        Ok(Some(len))
    }

    /// From now on the Hello in front of every body names the session.
    fn open(&mut self, hello_ack: &[u8]) -> Result<(), WireError> {
        let (_, Message::HelloAck(ack)) = Message::decode(hello_ack, hello_ack.len())? else {
            return Ok(());
        };
        let (tag, Message::Hello(hello)) = Message::decode(&self.body, MAX_CONTROL_FRAME)? else {
            return Ok(());
        };
        let mut resumed = vec![0; MAX_CONTROL_FRAME];
        let hello = Hello { ticket: ack.ticket, ..hello };
        let len = Message::Hello(hello).encode(tag, &mut resumed)?;
        resumed.truncate(len);
        self.body = resumed;
        self.hello_len = len;
        self.state = State::Open;
        Ok(())
    }
}

/// How a foreign body begins, in one line.
fn excerpt(body: &[u8]) -> String {
    // A character has at most four bytes.
    let start = body.get(..4 * EXCERPT_CHARS).unwrap_or(body);
    let text = String::from_utf8_lossy(start);
    let mut line = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()) {
        if !word.is_empty() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    match line.char_indices().nth(EXCERPT_CHARS) {
        Some((end, _)) => {
            line.truncate(end);
            line.push('…');
        }
        None if start.len() < body.len() => line.push('…'),
        None => {}
    }
    line
}

fn show_excerpt(f: &mut fmt::Formatter<'_>, excerpt: &str) -> fmt::Result {
    if excerpt.is_empty() { Ok(()) } else { write!(f, "; it begins: {excerpt}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_they_come() {
        let response = |kind, wait| HttpResponse::new(200, kind, wait);
        assert!(response(Some("Application/VND.synddb.frames; v=1"), None).is_frames);
        assert!(!response(Some("application/vnd.synddb.framesets"), None).is_frames);
        assert!(!response(None, None).is_frames);
        assert_eq!(response(None, Some(" 7 ")).retry_after, Some(Duration::from_secs(7)));
        for odd in ["Wed, 21 Oct 2026 07:28:00 GMT", "-1", "1.5", "", "99999999999999999999999"] {
            assert_eq!(response(None, Some(odd)).retry_after, None, "{odd}");
        }
    }

    #[test]
    fn an_excerpt_is_one_short_line() {
        assert_eq!(excerpt(b"<html>\r\n\t<b>no\x07pe\x00"), "<html> <b>no pe");
        assert_eq!(excerpt(&[0xFF, b'a']), "\u{FFFD}a");
        let long = excerpt("ä".repeat(500).as_bytes());
        assert_eq!(long.chars().count(), EXCERPT_CHARS + 1);
        assert!(long.ends_with('…'));
    }
}
