//! The `synddb` command on logs and sequencers.
#![allow(clippy::unwrap_used)] // a test may panic where it stands

mod support;

use std::{
    ffi::{OsStr, OsString},
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use serde_json::{Value, json};
use support::{Log, rows_of};
use synddb_core::{
    changeset::{ChangesetWriter, Value as Cell},
    wire::{
        EntryKind,
        schema::{ObjectKind, SchemaStep, encode_steps},
    },
};
use synddb_sequencer::{Config, Server};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// A command line out of texts and paths.
macro_rules! args {
    ($($arg:expr),* $(,)?) => {
        vec![$(OsString::from(AsRef::<OsStr>::as_ref(&$arg))),*]
    };
}

fn synddb(args: Vec<OsString>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_synddb"));
    command.args(args).stdin(Stdio::null());
    command
}

fn run(args: Vec<OsString>) -> Output {
    synddb(args).output().unwrap()
}

/// Standard output of a command that succeeds.
fn succeeds(args: Vec<OsString>) -> String {
    let output = run(args);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Standard error of a command that ends with `code` and puts nothing out.
fn fails(code: i32, args: Vec<OsString>) -> String {
    let output = run(args);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "", "{error}");
    error
}

/// Waits, but not forever, until a command ends that writes its errors to a pipe. Its status, and
/// what it wrote.
fn end_of(mut child: Child) -> (Option<i32>, String) {
    let mut errors = child.stderr.take().unwrap();
    let (sender, ended) = channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        errors.read_to_string(&mut text).unwrap();
        let _ = sender.send(text);
    });
    let Ok(text) = ended.recv_timeout(PATIENCE) else {
        child.kill().unwrap();
        panic!("it did not end");
    };
    (child.wait().unwrap().code(), text)
}

/// Expects the parts in what a command says.
#[track_caller]
fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
}

#[test]
fn restore_builds_what_is_asked_for() {
    let log = Log::new();
    let source = log.orders();
    let data = log.data();
    for (args, seq) in [
        (&[][..], 9),
        (&["--to-seq", "6"], 6),
        (&["--epoch", "2", "--to-seq", "0"], 0),
        (&["--to-time", "1970-01-01T00:00:01.055Z"], 4),
        (&["--to-time", "1970-01-01T01:00:01.055+01:00", "--stream", "orders"], 4),
        (&["--to-time", "2", "--base", "4", "--no-check"], 9),
    ] {
        let out = log.out("x.db");
        let mut all = args!["restore", "--data", data, out];
        all.extend(args.iter().map(OsString::from));
        let said = succeeds(all);
        says(&said, &["orders", &format!("epoch 2, entry {seq}"), &source.stream.to_string()]);
        assert_eq!(rows_of(&out), source.rows(2, seq), "{args:?}");
        assert_eq!(log.results(), ["x.db"]);
        std::fs::remove_file(out).unwrap();
    }
}

#[test]
fn restore_tells_how_far_it_is_and_what_is_newer() {
    let log = Log::new();
    let source = log.orders();
    source.open_epoch();
    let output = run(args!["restore", "--data", log.data(), log.out("x.db")]);
    let (said, steps) = (output.stdout, String::from_utf8(output.stderr).unwrap());
    says(&String::from_utf8(said).unwrap(), &["entry 9", "epoch 3 is newer", "4 entries after it"]);
    says(&steps, &["snapshot  0 B of 8.0 KiB", "entries   0 of 4", "check"]);
}

#[test]
fn restore_says_why_it_cannot() {
    let log = Log::new();
    let data = log.data();
    let out = log.out("x.db");
    let restore = |code, args: &[&str]| {
        let mut all = args!["restore", "--data", data, out];
        all.extend(args.iter().map(OsString::from));
        fails(code, all)
    };
    says(&restore(1, &[]), &["no streams yet"]);
    let source = log.source("empty");
    says(&restore(1, &[]), &["the log has nothing of stream"]);
    source.open_epoch();
    says(&restore(1, &[]), &["nothing can be restored yet", "epoch 1"]);
    let orders = log.orders();
    let id = orders.stream.to_string();
    says(&restore(1, &[]), &["--stream", &id, "orders", "empty"]);
    says(&restore(1, &["--stream", "order"]), &["no stream order", &id]);
    for (args, parts) in [
        (&["--to-seq", "10"][..], &["no entry 10", "last one is 9"][..]),
        (&["--epoch", "1"], &["epoch 1", "given up"]),
        (&["--epoch", "7"], &["no epoch 7", "newest one is 2"]),
        (&["--to-time", "1"], &["1970-01-01T00:00:01.010Z", "epoch 2"]),
    ] {
        says(&restore(1, &[&["--stream", &id], args].concat()), parts);
    }
    log.sql("UPDATE entries SET payload = x'' WHERE epoch = 2 AND seq = 8");
    says(&restore(1, &["--stream", &id]), &["entry 8 of epoch 2", "--epoch 2 --to-seq 7"]);
    for args in [
        &["--to-seq", "1", "--to-time", "1"][..],
        &["--to-time", "yesterday"],
        &["--to-seq", "-1"],
        &["second.db"],
    ] {
        restore(2, args);
    }
    assert_eq!(log.results(), [""; 0]);

    std::fs::write(&out, "mine").unwrap();
    let early = &["--stream", &id, "--to-seq", "7"];
    says(&restore(1, early), &["x.db", "--force"]);
    assert_eq!(std::fs::read(&out).unwrap(), b"mine");
    let mut force = args!["restore", "--data", data, "--force", out];
    force.extend(early.iter().map(OsString::from));
    succeeds(force);
    assert_eq!(rows_of(&out), orders.rows(2, 7));

    let log_db = data.join("log.db");
    let into_log = args!["restore", "--data", data, "--stream", id, "--force", log_db];
    says(&fails(1, into_log), &["data directory"]);
    let nowhere = fails(1, args!["restore", "--data", log.out("none"), out]);
    says(&nowhere, &["no log.db", "data directory?"]);
}

#[cfg(unix)]
#[test]
fn an_interrupted_restore_leaves_nothing() {
    let log = Log::new();
    let source = log.source("orders");
    source.open_epoch();
    let note = source.upload_bytes(&vec![0; 1 << 20]);
    source.tell(&note);
    // The image comes as slowly as it is written here.
    let image = log.image(source.stream, note.id);
    std::fs::remove_file(&image).unwrap();
    assert!(Command::new("mkfifo").arg(&image).status().unwrap().success());
    let mut command = synddb(args!["restore", "--data", log.data(), log.out("x.db")]);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut image = std::fs::File::options().write(true).open(&image).unwrap();
    image.write_all(b"S").unwrap();
    assert!(
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success()
    );
    while image.write_all(b"Q").is_ok() {}
    let (code, error) = end_of(child);
    assert_eq!(code, Some(1));
    says(&error, &["interrupted; nothing was restored"]);
    assert_eq!(log.results(), [""; 0]);
}

#[cfg(unix)]
#[test]
fn a_sequencer_ends_well_at_a_signal() {
    let dir = Log::new().close();
    let data = dir.path().join("data");
    let listen = "http://127.0.0.1:0";
    let mut command = synddb(args!["sequencer", "--data", data, "--listen", listen]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
    let url = said.trim_end().strip_prefix("listening on ").unwrap();
    says(&succeeds(args!["status", url]), &["no streams yet"]);
    says(&fails(1, args!["sequencer", "--data", data, "--listen", listen]), &["another process"]);
    assert!(
        Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success()
    );
    assert_eq!(end_of(child).0, Some(0));
}

#[test]
fn tail_shows_entries_and_their_rows() {
    let log = Log::new();
    let source = log.orders();
    let data = log.data();
    let said = succeeds(args!["tail", "--data", data]);
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines[0], "epoch 2 entry 1  1970-01-01T00:00:01.020Z  commit 11  snapshot  68 B");
    says(lines[1], &["as of entry 0, 8.0 KiB"]);
    says(lines[3], &["insert t  0 pk=2  1=\"b\""]);
    says(lines[5], &["update t  0 pk=1  1: \"before the base\" → \"a\""]);
    says(lines[9], &["delete t  0 pk=2  1=\"b\""]);
    assert_eq!(lines.len(), 2 * 9);
    let first_of_each = |args: &[&str]| {
        let mut all = args!["tail", "--data", data];
        all.extend(args.iter().map(OsString::from));
        let said = succeeds(all);
        let entries = said.lines().filter(|line| !line.starts_with(' '));
        let places = entries.map(|line| line.split("  ").next().unwrap().to_owned());
        places.collect::<Vec<_>>()
    };
    assert_eq!(first_of_each(&["--limit", "2"]), ["epoch 2 entry 8", "epoch 2 entry 9"]);
    assert_eq!(first_of_each(&["--from", "3", "-n", "1"]), ["epoch 2 entry 3"]);
    assert_eq!(first_of_each(&["--epoch", "1"]), ["epoch 1 entry 1"]);
    assert_eq!(first_of_each(&["--from", "10"]), [""; 0]);
    assert_eq!(
        first_of_each(&["--stream", &source.stream.to_string(), "-n1"]),
        ["epoch 2 entry 9"]
    );

    says(&fails(1, args!["tail", "--data", data, "--from", "11"]), &["no entry 11", "is 9"]);
    says(&fails(1, args!["tail", "--data", data, "--epoch", "3"]), &["no epoch 3", "is 2"]);
    fails(2, args!["tail", "--data", data, "--from", "0"]);
    fails(2, args!["tail"]);
}

#[test]
fn tail_stops_at_damage_and_says_how_to_go_on() {
    let log = Log::new();
    let _source = log.orders();
    let data = log.data();
    log.sql("UPDATE entries SET payload = x'99' WHERE epoch = 2 AND seq = 6");
    log.sql("DELETE FROM entries WHERE epoch = 2 AND seq = 3");
    for (from, shown, parts) in [
        ("1", 2, ["entry 3 of epoch 2 is missing", "--from 4"]),
        ("4", 2, ["entry 6 of epoch 2 is damaged", "--from 7"]),
    ] {
        let output = run(args!["tail", "--data", data, "--from", from]);
        assert_eq!(output.status.code(), Some(1));
        says(&String::from_utf8(output.stderr).unwrap(), &parts);
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(said.lines().filter(|line| line.starts_with("epoch")).count(), shown);
    }
}

fn json_lines(said: &str) -> Vec<Value> {
    said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn tail_as_json_is_exact() {
    let log = Log::new();
    let source = log.source("all kinds");
    source.at(1234).open_epoch();
    let note = source.snapshot();
    let mut buffer = [0; 1024];
    let mut writer = ChangesetWriter::new(&mut buffer);
    writer.table("odd \"name\"\u{1b}", &[2, 0, 1]).unwrap();
    writer
        .insert(&[Cell::Integer(i64::MIN), Cell::Real(1.0), Cell::Text(b"it's \x1b \xe2\x82\xac")])
        .unwrap();
    writer.delete(&[Cell::Null, Cell::Real(f64::NEG_INFINITY), Cell::Text(b"\xff\x00")]).unwrap();
    writer
        .update(
            &[Cell::Integer(1), Cell::Blob(b"\x00\xab"), Cell::Integer(2)],
            &[Cell::Undefined, Cell::Null, Cell::Undefined],
        )
        .unwrap();
    let len = writer.len();
    source.append(EntryKind::Changeset, &buffer[..len]);
    let sql = "CREATE TABLE x(y)";
    let create = SchemaStep::Create { kind: ObjectKind::Table, name: "x", table: "x", sql };
    let steps = [create, SchemaStep::UserVersion(7)];
    source.append(EntryKind::Schema, encode_steps(&steps, &mut buffer).unwrap());

    let lines = json_lines(&succeeds(args!["tail", "--data", log.data(), "--json"]));
    let kinds: Vec<_> = lines.iter().map(|line| line["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["snapshot", "changeset", "schema"]);
    // The shape is the same for all of them.
    let fields = |line: &Value| line.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert!(lines.iter().all(|line| fields(line) == fields(&lines[0])));
    assert_eq!(
        lines[0]["snapshot"],
        json!({
            "id": note.id.to_string(),
            "as_of": 0,
            "bytes": note.len,
            "sha256": note.sha256.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
        })
    );
    assert_eq!(lines[2]["sql"], json!(["CREATE TABLE x(y)", "PRAGMA user_version = 7"]));
    let changeset = &lines[1];
    for (field, value) in [
        ("stream", json!(source.stream.to_string())),
        ("epoch", json!(1)),
        ("seq", json!(2)),
        ("first_commit", json!(12)),
        ("last_commit", json!(12)),
        ("time_ms", json!(5)),
        ("received_ms", json!(1234)),
        ("schema_version", json!(1)),
        // Of no rows.
        ("content_hash", json!("0".repeat(32))),
        ("bytes", json!(len)),
        ("sql", json!(null)),
        ("snapshot", json!(null)),
    ] {
        assert_eq!(changeset[field], value, "{field}");
    }
    assert_eq!(lines[2]["chain"], source.head().chain.to_string());
    let row = |operation: &str, old: Value, new: Value| {
        json!({
            "table": "odd \"name\"\u{1b}",
            "operation": operation,
            "indirect": false,
            "key": [2, 0],
            "old": old,
            "new": new,
        })
    };
    assert_eq!(
        changeset["changes"],
        json!([
            row("insert", json!({}), json!({"0": i64::MIN, "1": 1.0, "2": "it's \u{1b} €"})),
            row(
                "delete",
                json!({"0": null, "1": {"real": "-Infinity"}, "2": {"text": "ff00"}}),
                json!({})
            ),
            row("update", json!({"0": 1, "1": {"blob": "00ab"}, "2": 2}), json!({"1": null})),
        ])
    );

    // What is in names and values never reaches a terminal as it is.
    let said = succeeds(args!["tail", "--data", log.data()]);
    assert!(!said.contains('\u{1b}'), "{said}");
    says(&said, &["\\u{1b}", "x'00ab'", "-inf", "NULL"]);
}

/// A `tail --follow` whose lines come one by one.
struct Follow {
    child: Child,
    lines: Receiver<String>,
}

impl Follow {
    fn start(log: &Log, args: Vec<OsString>) -> Self {
        let data = log.data();
        let mut command = synddb(args!["tail", "--data", data, "--follow", "--json"]);
        command.args(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let lines = out.lines().map_while(Result::ok);
            lines.map_while(|line| sender.send(line).ok()).for_each(drop);
        });
        Self { child, lines }
    }

    fn next(&self) -> (u64, u64) {
        let line: Value =
            serde_json::from_str(&self.lines.recv_timeout(PATIENCE).unwrap()).unwrap();
        (line["epoch"].as_u64().unwrap(), line["seq"].as_u64().unwrap())
    }

    /// Expects that it ends by itself, with status 0 and nothing more to say.
    fn ends(self) {
        assert_eq!(end_of(self.child), (Some(0), String::new()));
        assert_eq!(self.lines.iter().collect::<Vec<_>>(), [""; 0]);
    }
}

#[test]
fn following_sees_what_comes_in_every_epoch() {
    let log = Log::new();
    let source = log.orders();
    let follow = Follow::start(&log, args!["--from", "9", "--limit", "5"]);
    assert_eq!(follow.next(), (2, 9));
    source.insert(20, "later");
    assert_eq!(follow.next(), (2, 10));
    source.insert(21, "the last of its epoch");
    source.open_epoch();
    source.open_epoch();
    source.snapshot();
    assert_eq!(follow.next(), (2, 11));
    assert_eq!(follow.next(), (4, 1));
    source.insert(22, "the last that may be shown");
    assert_eq!(follow.next(), (4, 2));
    follow.ends();
    // From an old epoch to the newest.
    let follow = Follow::start(&log, args!["--epoch", "1", "--from", "1", "--limit", "13"]);
    assert_eq!(follow.next(), (1, 1));
    let places: Vec<_> = (0..12).map(|_| follow.next()).collect();
    assert_eq!(places[..2], [(2, 1), (2, 2)]);
    assert_eq!(places[11], (4, 1));
    follow.ends();
}

#[test]
fn following_may_begin_before_the_first_epoch() {
    let log = Log::new();
    let source = log.source("new");
    let follow = Follow::start(&log, args!["--limit", "1"]);
    source.open_epoch();
    source.insert(1, "a");
    assert_eq!(follow.next(), (1, 1));
    follow.ends();
}

#[cfg(unix)]
#[test]
fn following_ends_quietly_at_signals() {
    let log = Log::new();
    let _source = log.orders();
    for signal in ["-INT", "-TERM"] {
        let follow = Follow::start(&log, args!["--from", "9"]);
        assert_eq!(follow.next(), (2, 9));
        let pid = follow.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        follow.ends();
    }
}

#[cfg(unix)]
#[test]
fn following_ends_when_nobody_reads_any_more() {
    let log = Log::new();
    let _source = log.orders();
    let mut command = synddb(args!["tail", "--data", log.data(), "--follow"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut String::new()).unwrap();
    drop(out);
    // Although nothing more comes that it could fail to write.
    assert_eq!(end_of(child), (Some(0), String::new()));
}

#[test]
fn a_closed_pipe_is_no_error() {
    let log = Log::new();
    let source = log.orders();
    for id in 100..400 {
        source.insert(id, &"x".repeat(1000));
    }
    let data = log.data();
    for args in [
        args!["tail", "--data", data, "--from", "1"],
        args!["tail", "--data", data, "--from", "1", "--json"],
        args!["streams", "--data", data],
        args!["status", "--data", data],
        args!["completions", "bash"],
    ] {
        let mut command = synddb(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        assert_eq!(end_of(child), (Some(0), String::new()));
    }
}

#[test]
fn status_of_a_sequencer_and_of_its_log() {
    let log = Log::new();
    log.orders();
    log.source("nothing yet").open_epoch();
    let dir = log.close();
    let data = dir.path().join("data");
    let mut config = Config::new("127.0.0.1:0".parse().unwrap(), &data);
    let socket = format!("http+unix:{}", dir.path().join("socket").display());
    config.listen.push(socket.parse().unwrap());
    let server = Server::start(config).unwrap();
    let url = format!("http://{}", server.addr());

    let over_socket = succeeds(args!["status", socket]);
    says(&over_socket, &[&socket, "synddb 0.", "orders"]);
    let said = succeeds(args!["status", url]);
    says(&said, &[&url, "synddb 0.", "protocol 1", "up ", "LAST APPEND"]);
    let line = |name| said.lines().find(|line| line.contains(name)).unwrap();
    says(line("orders"), &["complete", "1970-01-01T00:00:01.100Z"]);
    says(line("nothing yet"), &["pending"]);

    let status: Value = serde_json::from_str(&succeeds(args!["status", url, "--json"])).unwrap();
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert!(status["uptime_s"].is_u64());
    let orders = status["streams"].as_array().unwrap().iter().find(|one| one["name"] == "orders");
    let mut orders = orders.unwrap().clone();
    orders.as_object_mut().unwrap().remove("id").unwrap();
    assert_eq!(
        orders,
        json!({
            "name": "orders", "epoch": 2, "next_seq": 10, "base_complete": true,
            // One in epoch 1.
            "entries": 10,
            "last_append_ms": 1100,
        })
    );

    // Beside the sequencer, and without it.
    for server in [Some(server), None] {
        let from_data = succeeds(args!["status", "--data", data, "--json"]);
        let from_data: Value = serde_json::from_str(&from_data).unwrap();
        assert_eq!(from_data["streams"], status["streams"]);
        assert_eq!(from_data["version"], Value::Null);
        let out = dir.path().join("beside.db");
        succeeds(args!["restore", "--data", data, "--stream", "orders", "--force", out]);
        drop(server);
    }
    says(&fails(1, args!["status", url]), &["nothing listens", "is the sequencer running"]);
    says(&fails(1, args!["status", "--data", dir.path()]), &["no log.db"]);
    fails(2, args!["status", "--data", data, url]);
    fails(2, args!["status", "http://"]);
    says(&fails(2, args!["status", "unix:/run/synddb.sock"]), &["begins with http", "--data"]);
    says(&fails(1, args!["status", socket]), &["there is no such socket"]);
}

#[test]
fn a_sequencer_listens_at_every_address_that_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let unix = format!("unix:{}", socket.display());
    let vm = format!("vsock+unix:{}:8433", dir.path().join("vm").display());
    let data = dir.path().join("data");
    let listen = |addresses: &[&str], more: &[&str]| {
        let mut all = args!["sequencer", "--data", data];
        for address in addresses {
            all.extend(args!["--listen", address]);
        }
        all.extend(more.iter().map(OsString::from));
        all
    };
    let addresses = [unix.as_str(), "http://127.0.0.1:0", vm.as_str()];
    says(&fails(1, listen(&addresses, &[])), &[&vm, "--insecure"]);
    says(&fails(2, listen(&["unix:socket"], &[])), &["does not begin with /", "unix:/path"]);
    says(&fails(2, listen(&["tcp://x:1"], &[])), &["http://HOST:PORT", "vsock://CID:PORT"]);

    let mut command = synddb(listen(&addresses, &["--insecure"]));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = || {
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        line.trim().strip_prefix("listening on ").expect("an address").to_owned()
    };
    let (first, second, third) = (line(), line(), line());
    assert_eq!((first, third), (unix, vm));
    succeeds(args!["status", second]);
    for path in [&socket, &dir.path().join("vm_8433")] {
        std::os::unix::net::UnixStream::connect(path).unwrap();
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(end_of(child).0, Some(0));
    assert!(!socket.exists());
}

/// Answers one request in this way, and says where.
fn impostor(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut link, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let read = link.read(&mut request).unwrap();
        assert!(request[..read].starts_with(b"GET /status HTTP/1.1\r\n"));
        link.write_all(answer.as_bytes()).unwrap();
    });
    format!("http://{addr}")
}

#[test]
fn status_knows_a_sequencer_from_others() {
    for (answer, parts) in [
        (
            "HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html; charset=utf-8\r\n\
             Content-Length: 15\r\n\r\n<html>oh</html>",
            &["web page (502 Bad Gateway)", "proxy"][..],
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 22\r\n\r\n\
             {\"current_sequence\":1}",
            &["not a synddb sequencer", "200 OK"],
        ),
        (
            "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n\r\n",
            &["not a synddb sequencer", "404 Not Found"],
        ),
        (
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: 24\r\n\r\nthe log cannot be read\x1b\n",
            &["not ready: the log cannot be read\\u{1b};"],
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{",
            &["did not answer to the end"],
        ),
        ("SSH-2.0-OpenSSH_9.2\r\n", &["not as HTTP"]),
    ] {
        let url = impostor(answer);
        says(&fails(1, args!["status", url]), &[&[url.as_str()], parts].concat());
    }
}

#[test]
fn status_does_not_wait_forever() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    says(&fails(1, args!["status", url, "--timeout", "1"]), &["no answer within 1 s"]);
}

#[test]
fn streams_of_one_name_are_told_apart() {
    let log = Log::new();
    let named = log.orders();
    let other = log.source("other");
    log.sql("UPDATE streams SET name = 'orders'");
    other.open_epoch();
    let tail = |stream: &str| {
        let said = succeeds(args!["tail", "--data", log.data(), "--json", "--stream", stream]);
        json_lines(&said).first().map(|line| line["stream"].as_str().unwrap().to_owned())
    };
    // Whose identifier comes from the name is meant by it.
    assert_eq!(tail("orders"), Some(named.stream.to_string()));
    log.sql("UPDATE streams SET name = 'same'");
    let said = fails(1, args!["tail", "--data", log.data(), "--stream", "same"]);
    says(&said, &["several streams", &named.stream.to_string(), &other.stream.to_string()]);
}

#[test]
fn help_tells_the_exit_status_and_shells_know_all_commands() {
    says(&succeeds(args!["--help"]), &["Exit status", "0 ", "1 ", "2 "]);
    says(&succeeds(args!["tail", "--help"]), &["received_ms", "{\"blob\": HEX}"]);
    fails(2, args!["unknown"]);
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = succeeds(args!["completions", shell]);
        says(&script, &["sequencer", "streams", "restore", "tail", "status", "to-time"]);
    }
}

/// The value that a line of what `keygen` printed gives for a word.
#[cfg(feature = "tls")]
fn printed(said: &str, word: &str) -> String {
    let words: Vec<_> = said.split_whitespace().collect();
    let at = words.iter().position(|found| *found == word).unwrap();
    words[at + 1].to_owned()
}

/// Starts a sequencer; its process, and where it listens.
fn start_sequencer(args: Vec<OsString>) -> (Child, String) {
    let mut command = synddb(args);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
    (child, said.trim_end().strip_prefix("listening on ").unwrap().to_owned())
}

fn signal(child: &Child, signal: &str) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
}

#[cfg(all(unix, feature = "tls"))]
#[test]
fn keygen_makes_what_both_sides_need_to_meet() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let said = succeeds(args!["keygen", "--out", keys]);
    let file = |name: &str| keys.join(name).into_os_string().into_string().unwrap();
    for (name, mode) in
        [("server.key", 0o600), ("client.key", 0o600), ("server.crt", 0o644), ("client.crt", 0o644)]
    {
        let found = std::fs::metadata(file(name)).unwrap().permissions().mode();
        assert_eq!(found & 0o777 & !mode, 0, "{name}: {found:o}");
    }
    let before = std::fs::read(file("client.key")).unwrap();
    std::fs::remove_file(file("server.crt")).unwrap();
    says(&fails(1, args!["keygen", "--out", keys]), &["server.key", "not overwritten", "--out"]);
    assert!(!keys.join("server.crt").exists(), "half of a set of keys");
    assert_eq!(std::fs::read(file("client.key")).unwrap(), before);

    // What it prints, as it prints it.
    std::fs::remove_dir_all(&keys).unwrap();
    let said_again = succeeds(args!["keygen", "--out", keys]);
    assert_ne!(printed(&said, "server"), printed(&said_again, "server"), "keys are new each time");
    let said = said_again;
    let of = |word: &str| printed(&said, word);
    let args = args![
        "sequencer",
        "--data",
        dir.path().join("data"),
        "--listen",
        "https://127.0.0.1:0",
        "--tls-cert",
        of("--tls-cert"),
        "--tls-key",
        of("--tls-key"),
        "--tls-client-pin",
        of("--tls-client-pin"),
    ];
    let (child, url) = start_sequencer(args);
    let with_client = args![
        "status",
        url,
        "--tls-pin",
        of("--tls-pin"),
        "--tls-cert",
        file("client.crt"),
        "--tls-key",
        file("client.key"),
    ];
    says(&succeeds(with_client), &["no streams yet"]);
    says(&fails(1, args!["status", url, "--tls-pin", of("--tls-pin")]), &["client certificate"]);
    let other = format!("sha256:{}", "0".repeat(64));
    says(&fails(1, args!["status", url, "--tls-pin", other]), &["not pinned", &of("server")]);
    // The certificate is for these names, where it is the root instead of the pin.
    let by_root = args![
        "status",
        url.replace("127.0.0.1", "localhost"),
        "--tls-ca",
        file("server.crt"),
        "--tls-cert",
        file("client.crt"),
        "--tls-key",
        file("client.key"),
    ];
    says(&succeeds(by_root), &["no streams yet"]);
    says(&fails(1, args!["status", url.replace("https", "http")]), &["use https"]);
    signal(&child, "-TERM");
    let (code, errors) = end_of(child);
    assert_eq!(code, Some(0), "{errors}");
    says(&errors, &["it showed no certificate", "does not speak TLS"]);
}

#[cfg(unix)]
#[test]
fn access_rules_are_read_again_at_a_signal() {
    let dir = tempfile::tempdir().unwrap();
    let (rules, token) = (dir.path().join("access.toml"), dir.path().join("token"));
    std::fs::write(&token, "swordfish\n").unwrap();
    let data = dir.path().join("data");
    let args =
        args!["sequencer", "--data", data, "--listen", "http://127.0.0.1:0", "--access", rules];
    says(&fails(1, args.clone()), &["--access", "access.toml"]);
    std::fs::write(&rules, "[[principal]]\nname = 'x'\ntokens = ['swordfish']").unwrap();
    let said = fails(1, args.clone());
    says(&said, &["line 3", "unknown field `tokens`"]);
    assert!(!said.contains("swordfish"), "{said}");

    std::fs::write(&rules, "").unwrap();
    let (child, url) = start_sequencer(args);
    says(&fails(1, args!["status", url]), &["grants no access", "neither a token"]);
    let with_token = || args!["status", url, "--token-file", token];
    says(&fails(1, with_token()), &["grants no access", "not known here"]);
    // printf %s swordfish | sha256sum
    let hash = "b9f195c5cc7ef6afadbfbc42892ad47d3b24c6bc94bb510c4564a90a14e8b799";
    let known = format!("[[principal]]\nname = 'x'\ntokens_sha256 = ['{hash}']\nread = ['*']");
    std::fs::write(&rules, known).unwrap();
    signal(&child, "-HUP");
    let deadline = std::time::Instant::now() + PATIENCE;
    while run(with_token()).status.code() != Some(0) {
        assert!(std::time::Instant::now() < deadline, "the rules were not read again");
    }
    let elsewhere = args!["status", "http://192.0.2.1:1", "--token-file", token];
    says(&fails(1, elsewhere), &["in the clear"]);
    signal(&child, "-TERM");
    let (code, errors) = end_of(child);
    assert_eq!(code, Some(0), "{errors}");
    says(&errors, &["access rules read again"]);
    assert!(!errors.contains("swordfish"), "{errors}");
}

#[test]
fn verify_tells_what_is_damaged_and_where() {
    let log = Log::new();
    let source = log.orders();
    let (data, work) = (log.data(), log.out(""));
    let verify = || args!["verify", "--data", data, "--work", work];
    let said = succeeds(verify());
    says(&said, &["orders", "2 epochs, 10 entries, 2 snapshots", "1 epochs replayed", "sound"]);
    says(&succeeds(args!["verify", "--data", data, "--no-replay"]), &["2 snapshots: sound"]);
    assert_eq!(log.results(), [""; 0]);

    let replica = log.out("replica.db");
    succeeds(args!["restore", "--data", data, "--to-seq", "5", replica]);
    let against = |more: &[&str]| {
        let mut all = verify();
        all.extend(args!["--replica", replica]);
        all.extend(more.iter().map(OsString::from));
        all
    };
    says(&succeeds(against(&[])), &["as of epoch 2, entry 5"]);
    let db = rusqlite::Connection::open(&replica).unwrap();
    db.execute_batch("UPDATE t SET v = 'other' WHERE id = 3").unwrap();
    drop(db);
    let output = run(against(&["--to-seq", "5"]));
    assert_eq!(output.status.code(), Some(1));
    says(
        &String::from_utf8(output.stdout).unwrap(),
        &["table t: (3, \"other\") against (3, \"c\")"],
    );
    says(&String::from_utf8(output.stderr).unwrap(), &["differs from epoch 2, entry 5"]);

    log.sql(
        "UPDATE entries SET payload = CAST(payload || x'00' AS BLOB) WHERE epoch = 2 AND seq = 6",
    );
    let output = run(verify());
    assert_eq!(output.status.code(), Some(1));
    let place = format!("stream {} epoch 2 entry 6: is not as it was sent", source.stream);
    says(&String::from_utf8(output.stdout).unwrap(), &["DAMAGED", &place]);
    says(&String::from_utf8(output.stderr).unwrap(), &["the log is damaged in 1 place"]);
}

#[test]
fn prune_says_what_would_go_before_it_goes() {
    let log = Log::new();
    let source = log.orders();
    let (data, out, rows) = (log.data(), log.out("out.db"), source.rows(2, 9));
    drop(source);
    let in_use = fails(1, args!["prune", "--data", data]);
    says(&in_use, &["another process serves"]);
    let would = succeeds(args!["prune", "--data", data, "--dry-run"]);
    let what = "1 epochs before 2, the entries of epoch 2 up to 5, 1 snapshots, 8.0 KiB";
    says(&would, &["would go: ", what]);
    let dir = log.close();
    assert_eq!(would, succeeds(args!["prune", "--data", data, "--dry-run"]), "nothing went");
    let said = succeeds(args!["prune", "--data", data, "--retain", "30000d"]);
    says(&said, &["nothing can go"]);
    says(&fails(2, args!["prune", "--data", data, "--retain", "soon"]), &["as in 30d"]);
    says(&succeeds(args!["prune", "--data", data]), &["gone: ", what]);
    says(&succeeds(args!["prune", "--data", data]), &["nothing can go"]);
    says(&succeeds(args!["verify", "--data", data, "--work", dir.path()]), &["sound"]);
    succeeds(args!["restore", "--data", data, out]);
    assert_eq!(rows_of(&out), rows);
    says(
        &fails(1, args!["restore", "--data", data, "--to-seq", "4", dir.path().join("x.db")]),
        &["its earliest is of entry 5"],
    );
}
