//! Back-pressure from a standard output that nobody reads to a standard input.

use std::io::Write;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;

use rustix::process::Signal;

use crate::harness::{DEADLINE, Dragonwire, QUIET};

const LINES: u64 = 100_000;

fn line(i: u64) -> String {
    format!("[\"{i}\",\"{:1000}\"]", i)
}

#[test]
fn an_output_that_nobody_reads_stops_the_input_of_the_other_side() {
    let mut pull = Dragonwire::start_unread(
        &["pull", "--bind", "tcp://127.0.0.1:0", "--count", &LINES.to_string()],
        |_| {},
    );
    let endpoint = pull.bound();
    let mut push = Dragonwire::start(&format!("push --connect {endpoint}"));
    push.connected();
    let mut input = push.take_input();
    let (progress, written) = channel();
    thread::spawn(move || {
        for i in 0..LINES {
            if writeln!(input, "{}", line(i)).is_err() || progress.send(i + 1).is_err() {
                return;
            }
        }
    });
    let mut blocked_at = 0;
    loop {
        match written.recv_timeout(QUIET) {
            Ok(lines) => blocked_at = lines,
            Err(RecvTimeoutError::Timeout) => break,
            Err(RecvTimeoutError::Disconnected) => panic!("never blocked"),
        }
    }
    // a hundred megabytes are offered; high-water marks and the kernel's buffers hold some of it
    assert!(blocked_at < LINES / 2, "blocked only at {blocked_at}");

    pull.read();
    for i in 0..LINES {
        assert_eq!(pull.line(), line(i));
    }
    assert_eq!(pull.ended().status, Some(0));
    while written.recv_timeout(DEADLINE).is_ok() {}
    assert_eq!(push.ended().status, Some(0));
}

#[test]
fn sigterm_ends_both_sides_while_they_are_blocked() {
    let mut pull = Dragonwire::start_unread(&["pull", "--bind", "tcp://127.0.0.1:0"], |_| {});
    let endpoint = pull.bound();
    let mut push = Dragonwire::start(&format!("push --connect {endpoint}"));
    push.connected();
    let mut input = push.take_input();
    let (progress, written) = channel();
    thread::spawn(move || {
        let line = line(0);
        while writeln!(input, "{line}").is_ok() && progress.send(()).is_ok() {}
    });
    while written.recv_timeout(QUIET).is_ok() {}
    assert_eq!(push.end_by(Signal::TERM).status, Some(143));
    assert_eq!(pull.end_by(Signal::TERM).status, Some(143));
}
