//! The checks, by name.

use std::time::{Duration, Instant};

use synddb_core::{
    http::FRAMES_CONTENT_TYPE,
    transport::{Transport, TransportError, TransportErrorKind as Kind},
    wire::{
        Message, header,
        message::{Bye, Farewell, MAX_CONTROL_FRAME},
    },
};

use crate::{
    LIMIT, Protocol, SLACK,
    peer::{CLOSE, MAX_FRAME, Manner, bye, encode, response},
    talk::{Found, Talk},
};

type Check<T> = fn(&mut Talk<T>) -> Found;

const SHORT: Duration = Duration::from_millis(30);

/// Every check: its name, over which protocol only, and what is done.
pub(crate) fn all<T: Transport>() -> Vec<(&'static str, Option<Protocol>, Check<T>)> {
    vec![
        ("frames of every size arrive whole", None, frames_of_every_size),
        ("answers of every size arrive whole", None, answers_of_every_size),
        ("frames in flight are answered in order", None, frames_in_flight),
        ("large frames and answers at once", None, large_both_ways),
        ("a time-out of zero only takes what is there", None, zero_timeout),
        ("a time-out is kept where nothing comes", None, idle_timeout),
        ("answers in pieces are put together", None, answers_in_pieces),
        ("a trickle holds nobody", Some(Protocol::Stream), trickle),
        ("a slow reader gets everything", None, slow_reader),
        ("a silent peer holds nobody", None, silent_peer),
        ("a deaf peer holds nobody", None, deaf_peer),
        ("a peer that hangs up is noticed", None, peer_hangs_up),
        ("a frame that is cut short is never given", None, cut_short),
        ("garbage is no sequencer", None, garbage),
        ("another version is no sequencer", None, another_version),
        ("a frame over the limit is refused", None, over_the_limit),
        ("a Bye arrives, and the end after it", None, peer_says_bye),
        ("close() twice, connect() twice", None, close_and_connect_again),
        ("nothing of a connection outlives it", None, nothing_left),
        ("statuses are told apart", Some(Protocol::Http), statuses),
        ("what answers without HTTP is no sequencer", Some(Protocol::Http), no_http),
        ("a body that is cut short is a lost connection", Some(Protocol::Http), cut_body),
        ("requests say what they are", Some(Protocol::Http), request_headers),
    ]
}

fn frames_of_every_size<T: Transport>(talk: &mut Talk<T>) -> Found {
    talk.begin()?;
    let edges = [1 << 10, 1 << 12, MAX_CONTROL_FRAME, 1 << 16, 1 << 18, 1 << 20];
    let around = edges.iter().flat_map(|edge| [edge - 1, *edge, edge + 1]);
    for len in [header::LEN, header::LEN + 1, 100].into_iter().chain(around).chain([MAX_FRAME]) {
        talk.exchange(len - header::LEN, 0).map_err(|wrong| format!("{len} bytes: {wrong}"))?;
    }
    Ok(())
}

fn answers_of_every_size<T: Transport>(talk: &mut Talk<T>) -> Found {
    talk.begin()?;
    let edges = [1 << 8, 1 << 9, 1 << 10, 1 << 12, 1 << 13];
    let around = edges.iter().flat_map(|edge| [edge - 1, *edge, edge + 1]);
    for len in around.chain([MAX_CONTROL_FRAME - 1, MAX_CONTROL_FRAME]) {
        talk.exchange(100, len).map_err(|wrong| format!("{len} bytes: {wrong}"))?;
    }
    Ok(())
}

fn frames_in_flight<T: Transport>(talk: &mut Talk<T>) -> Found {
    talk.begin()?;
    for round in 0..20 {
        let mut sent = Vec::new();
        for at in 0..talk.window()? {
            sent.push(talk.ask(4 + 97 * at * round, 30 + at)?);
        }
        sent.iter().try_for_each(|sent| talk.answered(sent))?;
    }
    // As a sender does: a new one for each answer.
    let mut sent = std::collections::VecDeque::new();
    for at in 0..100 {
        sent.push_back(talk.ask(4 + at, 0)?);
        if sent.len() == talk.window()? {
            let first = sent.pop_front().ok_or("max_in_flight() is 0")?;
            talk.answered(&first)?;
        }
    }
    sent.iter().try_for_each(|sent| talk.answered(sent))
}

fn large_both_ways<T: Transport>(talk: &mut Talk<T>) -> Found {
    talk.begin()?;
    for _ in 0..2 {
        let mut sent = Vec::new();
        for _ in 0..talk.window()? {
            sent.push(talk.ask(1 << 20, MAX_CONTROL_FRAME)?);
        }
        sent.iter().try_for_each(|sent| talk.answered(sent))?;
    }
    Ok(())
}

fn zero_timeout<T: Transport>(talk: &mut Talk<T>) -> Found {
    talk.begin()?;
    let since = Instant::now();
    for _ in 0..100 {
        nothing_comes(talk, Duration::ZERO)?;
    }
    if since.elapsed() > SLACK {
        return Err(format!("100 calls of recv() took {:.1?}", since.elapsed()));
    }
    let sent = talk.ask(100, 0)?;
    let since = Instant::now();
    while since.elapsed() < LIMIT + SLACK {
        if let Some(frame) = talk.recv(Duration::ZERO)?.map_err(|kind| format!("{kind:?}"))? {
            return sent.check(&frame);
        }
        std::thread::yield_now();
    }
    Err("with a time-out of zero recv() never gives an answer that has come".into())
}

fn idle_timeout<T: Transport>(talk: &mut Talk<T>) -> Found {
    talk.begin()?;
    let since = Instant::now();
    for _ in 0..10 {
        nothing_comes(talk, SHORT)?;
    }
    if since.elapsed() < SHORT * 5 {
        return Err(format!(
            "10 calls of recv() with a time-out of {SHORT:?} and nothing to come took {:.1?}: whoever \
             drives it would spin",
            since.elapsed()
        ));
    }
    talk.exchange(100, 0)
}

fn answers_in_pieces<T: Transport>(talk: &mut Talk<T>) -> Found {
    talk.begin()?;
    for (piece, answer) in [(1, 30), (7, 100), (19, 200), (21, 200), (1000, 9000)] {
        talk.peer().set(Manner::Dribble { piece, pause: Duration::from_millis(2) });
        let sent = [talk.ask(10, answer)?, talk.ask(10, answer)?];
        if talk.window()? > 1 {
            sent.iter().try_for_each(|sent| talk.answered(sent))?;
        } else {
            talk.answered(&sent[0])?;
        }
    }
    Ok(())
}

fn trickle<T: Transport>(talk: &mut Talk<T>) -> Found {
    talk.begin()?;
    talk.peer().set(Manner::Dribble { piece: 1, pause: Duration::from_millis(100) });
    talk.ask(10, 100)?;
    // That takes ten seconds; each call has to come back, and what came so far is no frame.
    for _ in 0..10 {
        nothing_comes(talk, SHORT)?;
    }
    talk.close()?;
    talk.recovers()
}

fn slow_reader<T: Transport>(talk: &mut Talk<T>) -> Found {
    talk.begin()?;
    talk.peer().set(Manner::Sip { piece: 1 << 18, pause: Duration::from_millis(20) });
    talk.exchange(MAX_FRAME - header::LEN, 0)
}

fn silent_peer<T: Transport>(talk: &mut Talk<T>) -> Found {
    talk.begin()?;
    talk.peer().set(Manner::Silent);
    talk.ask(100, 0)?;
    if talk.is_http() {
        // Who asks and waits in one step gives up by itself.
        talk.fails(&[Kind::TimedOut])?;
    } else {
        for _ in 0..5 {
            nothing_comes(talk, SHORT)?;
        }
    }
    talk.recovers()
}

fn deaf_peer<T: Transport>(talk: &mut Talk<T>) -> Found {
    talk.begin()?;
    talk.peer().set(Manner::Deaf);
    let (frame, _) = talk.frame_to_send(MAX_FRAME - header::LEN, 0);
    // A frame that is half sent is the end of the connection. Who has room for all of it may take it:
    // that no answer comes is for whoever waits for it to see.
    // A system's write may wait once for the part that fits and once more for the next.
    for _ in 0..talk.window()? {
        let sent = talk.in_time("send() to a peer that takes nothing", LIMIT * 3, |talk| {
            Ok(talk.send(&frame))
        })?;
        match sent {
            Ok(()) => {}
            Err(Kind::TimedOut | Kind::Disconnected) => return talk.recovers(),
            Err(kind) => return Err(format!("the error is {kind:?} instead of TimedOut")),
        }
    }
    match talk.recv(SHORT)? {
        Ok(None) | Err(Kind::TimedOut | Kind::Disconnected) => talk.recovers(),
        Ok(Some(_)) => Err("recv() gave an answer, and nobody sent one".into()),
        Err(kind) => Err(format!("the error is {kind:?} instead of TimedOut")),
    }
}

fn peer_hangs_up<T: Transport>(talk: &mut Talk<T>) -> Found {
    for _ in 0..3 {
        talk.begin()?;
        talk.peer().set(Manner::Cut(0));
        talk.ask(100, 0)?;
        talk.fails(&[Kind::Disconnected])?;
        talk.recovers()?;
    }
    Ok(())
}

fn cut_short<T: Transport>(talk: &mut Talk<T>) -> Found {
    for len in [1, 4, header::LEN - 1, header::LEN, header::LEN + 1, 200, 299] {
        talk.begin()?;
        talk.peer().set(Manner::Cut(len));
        talk.ask(100, 300)?;
        talk.fails(&[Kind::Disconnected])
            .map_err(|wrong| format!("{len} of 300 bytes: {wrong}"))?;
        talk.recovers()?;
    }
    Ok(())
}

fn garbage<T: Transport>(talk: &mut Talk<T>) -> Found {
    let banner = b"SSH-2.0-OpenSSH_9.2\r\n".to_vec();
    for bytes in [banner, vec![0; 100], vec![0xFF; 100_000], b"SYD".repeat(10)] {
        talk.begin()?;
        talk.peer().set(Manner::Say(bytes.clone()));
        talk.ask(100, 0)?;
        talk.fails(&[Kind::NotASequencer])
            .map_err(|wrong| format!("{}…: {wrong}", bytes[..10].escape_ascii()))?;
        talk.recovers()?;
    }
    Ok(())
}

fn another_version<T: Transport>(talk: &mut Talk<T>) -> Found {
    talk.begin()?;
    let mut newer = bye();
    newer[4] = header::VERSION + 8;
    talk.peer().set(Manner::Say(newer));
    talk.ask(100, 0)?;
    talk.fails(&[Kind::NotASequencer])?;
    talk.recovers()
}

fn over_the_limit<T: Transport>(talk: &mut Talk<T>) -> Found {
    talk.begin()?;
    let mut large = bye();
    large[12..16].copy_from_slice(&(1u32 << 30).to_le_bytes());
    talk.peer().set(Manner::Say(large));
    talk.ask(100, 0)?;
    // A frame that cannot be taken, or one that is cut short: it comes to the same.
    talk.fails(&[Kind::Disconnected, Kind::TooLarge, Kind::NotASequencer])?;
    talk.recovers()
}

fn peer_says_bye<T: Transport>(talk: &mut Talk<T>) -> Found {
    talk.begin()?;
    talk.peer().set(Manner::Bye);
    talk.exchange(100, 0)?;
    let last = talk.frame(LIMIT)?;
    if last != bye() {
        return Err(format!("recv() gave {} bytes that are not the peer's Bye", last.len()));
    }
    if !talk.is_http() {
        talk.fails(&[Kind::Disconnected])?;
    }
    talk.recovers()?;
    // And the other way: the peer takes it and closes.
    let farewell = encode(0, &Message::Bye(Bye { farewell: Farewell::Done }));
    talk.send(&farewell).map_err(|kind| format!("send() of a Bye failed: {kind:?}"))?;
    talk.close()?;
    talk.recovers()
}

fn close_and_connect_again<T: Transport>(talk: &mut Talk<T>) -> Found {
    // Before anything else, too.
    talk.close()?;
    talk.begin()?;
    talk.exchange(100, 0)?;
    talk.close()?;
    talk.close()?;
    // Without a connection nothing is sent, and nothing comes.
    let (frame, _) = talk.frame_to_send(100, 0);
    if talk.send(&frame).is_ok() && matches!(talk.recv(SHORT)?, Ok(Some(_))) {
        return Err("a frame that was sent after close() is answered".into());
    }
    talk.connect()?;
    talk.connect()?;
    talk.greet()?;
    talk.exchange(100, 0)?;
    talk.begin()?;
    talk.exchange(100, 0)
}

fn nothing_left<T: Transport>(talk: &mut Talk<T>) -> Found {
    for close in [true, false] {
        talk.begin()?;
        // Answers that came and were not taken, or only in part.
        let sent = talk.ask(100, 3000)?;
        if talk.window()? > 2 {
            talk.ask(100, 3000)?;
            talk.ask(100, 3000)?;
            talk.answered(&sent)?;
        }
        if close {
            talk.close()?;
        }
        talk.begin()?;
        talk.exchange(100, 0)?;
        nothing_comes(talk, SHORT)?;
    }
    Ok(())
}

fn statuses<T: Transport>(talk: &mut Talk<T>) -> Found {
    let page = b"<html>Welcome to the proxy</html>";
    for (status, more, kinds) in [
        ("401 Unauthorized", "", [Kind::Unauthorized]),
        ("403 Forbidden", "", [Kind::Unauthorized]),
        ("404 Not Found", "", [Kind::NotASequencer]),
        ("413 Content Too Large", "", [Kind::TooLarge]),
        ("415 Unsupported Media Type", "", [Kind::NotASequencer]),
        ("429 Too Many Requests", "", [Kind::Busy]),
        ("500 Internal Server Error", "", [Kind::Other]),
        ("503 Service Unavailable", "", [Kind::Busy]),
        ("200 OK", "", [Kind::NotASequencer]),
        // One that is followed would come round again until somebody gives up.
        ("307 Temporary Redirect", "Location: /v1/frames\r\n", [Kind::NotASequencer]),
    ] {
        talk.begin()?;
        talk.peer().set(Manner::Raw(response(
            status,
            "text/html",
            &(CLOSE.to_owned() + more),
            page,
        )));
        talk.ask(100, 0)?;
        talk.fails(&kinds).map_err(|wrong| format!("status {status}: {wrong}"))?;
        talk.recovers()?;
    }
    let more = CLOSE.to_owned() + "Retry-After: 7\r\n";
    talk.peer().set(Manner::Raw(response("429 Wait", "text/plain", &more, b"")));
    talk.ask(100, 0)?;
    let mut reply = vec![0; MAX_CONTROL_FRAME];
    match talk.transport().recv(&mut reply, SHORT) {
        Err(error) => match error.retry_after() {
            Some(wait) if wait == Duration::from_secs(7) => talk.recovers(),
            other => Err(format!("Retry-After: 7 comes to {other:?}")),
        },
        Ok(_) => Err("status 429 is no error".into()),
    }
}

fn no_http<T: Transport>(talk: &mut Talk<T>) -> Found {
    talk.begin()?;
    talk.peer().set(Manner::Raw(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()));
    talk.ask(100, 0)?;
    talk.fails(&[Kind::NotASequencer])?;
    talk.recovers()
}

fn cut_body<T: Transport>(talk: &mut Talk<T>) -> Found {
    talk.begin()?;
    let mut cut = response("200 OK", FRAMES_CONTENT_TYPE, "", &bye());
    cut.pop();
    talk.peer().set(Manner::Raw(cut));
    talk.ask(100, 0)?;
    talk.fails(&[Kind::Disconnected])?;
    talk.recovers()
}

fn request_headers<T: Transport>(talk: &mut Talk<T>) -> Found {
    talk.connect()?;
    talk.greet_as(b"a.token-of~ours")?;
    for again in [false, true] {
        if again {
            talk.exchange(100, 0)?;
        }
        let head = talk.peer().head();
        let media_type = FRAMES_CONTENT_TYPE;
        for line in [
            &format!("content-type:{media_type}"),
            &format!("accept:{media_type}"),
            "authorization:Bearer a.token-of~ours",
        ] {
            if !head.lines().any(|found| found == line) {
                return Err(format!("no `{line}` in\n{head}"));
            }
        }
    }
    talk.begin()?;
    if talk.peer().head().contains("authorization") {
        return Err("a token goes on being sent after a Hello without one".into());
    }
    Ok(())
}

/// One call of `recv` that has nothing to give.
fn nothing_comes<T: Transport>(talk: &mut Talk<T>, timeout: Duration) -> Found {
    match talk.recv(timeout)? {
        Ok(None) => Ok(()),
        Ok(Some(frame)) => {
            Err(format!("recv() gave {} bytes, and no answer was to come", frame.len()))
        }
        Err(kind) => Err(format!("recv() failed where nothing was to come yet: {kind:?}")),
    }
}
