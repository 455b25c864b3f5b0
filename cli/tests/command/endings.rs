//! How the command comes to its end.

use rustix::process::Signal;

use crate::harness::{Dragonwire, Place};

#[test]
fn sigterm_ends_what_waits() {
    let place = Place::new();
    for kind in ["pub", "sub", "xpub", "xsub", "push", "pull"] {
        let mut command = Dragonwire::start(&format!("{kind} --bind {}", place.ipc("x")));
        command.bound();
        assert_eq!(command.end_by(Signal::TERM).status, Some(143), "{kind}");
    }
}

#[test]
fn sigterm_ends_a_push_without_peers() {
    let place = Place::new();
    // bound: nobody takes the message; connecting: it waits to be sent
    for flag in ["--bind", "--connect"] {
        let mut push = Dragonwire::start(&format!("push {flag} {}", place.ipc("nobody")));
        push.write(r#"["x"]"#);
        if flag == "--bind" {
            push.bound();
        } else {
            push.end_input();
            push.told("1 message not sent yet");
        }
        assert_eq!(push.end_by(Signal::TERM).status, Some(143));
    }
    // what was bound is gone with it
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
}

#[test]
fn ctrl_c_sums_up() {
    let mut pull = Dragonwire::start("pull --bind tcp://127.0.0.1:0");
    let endpoint = pull.bound();
    let mut push = Dragonwire::start(&format!("push --connect {endpoint}"));
    for i in 0..3 {
        push.write(&format!("[\"{i}\"]"));
        pull.line();
    }
    let ended = push.end_by(Signal::INT);
    assert_eq!(ended.status, Some(130), "{ended:?}");
    assert!(ended.errors.last().unwrap().starts_with("PUSH: sent 3 ("), "{ended:?}");
    let ended = pull.end_by(Signal::INT);
    assert_eq!(ended.status, Some(130), "{ended:?}");
    assert!(ended.errors.last().unwrap().starts_with("PULL: received 3 ("), "{ended:?}");
}

#[test]
fn push_waits_for_its_peer_within_linger() {
    let place = Place::new();
    let endpoint = place.ipc("nobody");
    let mut push = Dragonwire::start(&format!("push --connect {endpoint} --linger 50"));
    push.write(r#"["x"]"#);
    let ended = push.finish();
    assert!(ended.errors.contains(&"1 message dropped: linger 1".to_owned()), "{ended:?}");
}

#[test]
fn what_was_sent_before_the_end_arrives() {
    let mut xpub = Dragonwire::start("xpub --bind tcp://127.0.0.1:0 --hwm 0");
    let endpoint = xpub.bound();
    let mut sub = Dragonwire::start(&format!("sub --connect {endpoint} --subscribe a"));
    assert_eq!(xpub.line(), r#"["\u0001a"]"#);
    let lines: String = (0..100_000).map(|i| format!("[\"a\",\"{i}\"]\n")).collect();
    xpub.write_octets(lines.as_bytes());
    xpub.finish();
    for i in 0..100_000 {
        assert_eq!(sub.line(), format!("[\"a\",\"{i}\"]"));
    }
}

#[test]
fn a_publisher_that_nobody_hears_says_so() {
    let mut publisher = Dragonwire::start("pub --bind tcp://127.0.0.1:0");
    publisher.write(r#"["a"]"#);
    publisher.write(r#"["b"]"#);
    let ended = publisher.finish();
    assert!(ended.errors.contains(&"2 messages dropped: no_subscriber 2".to_owned()), "{ended:?}");
}

#[test]
fn a_reader_that_goes_ends_it_quietly() {
    let mut pull = Dragonwire::start_unread(&["pull", "--bind", "tcp://127.0.0.1:0"], |_| {});
    let endpoint = pull.bound();
    pull.close_output();
    let mut push = Dragonwire::start(&format!("push --connect {endpoint}"));
    push.write(r#"["x"]"#);
    let ended = pull.ended();
    assert_eq!((ended.status, ended.errors.len()), (Some(141), 0), "{ended:?}");
}

#[test]
fn an_output_that_cannot_be_written_is_a_failure() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut pull = Dragonwire::start_unread(&["pull", "--bind", "tcp://127.0.0.1:0"], |command| {
        command.stdout(full);
    });
    let endpoint = pull.bound();
    let mut push = Dragonwire::start(&format!("push --connect {endpoint}"));
    push.write(r#"["x"]"#);
    let ended = pull.ended();
    assert_eq!((ended.status, ended.errors.len()), (Some(1), 1), "{ended:?}");
    let line = &ended.errors[0];
    assert!(line.starts_with("dragonwire: cannot write the standard output: "), "{line}");
}

#[test]
fn an_input_that_cannot_be_read_is_a_failure() {
    let folder = std::fs::File::open("/").unwrap();
    let mut publisher =
        Dragonwire::start_with(&["pub", "--bind", "tcp://127.0.0.1:0"], |command| {
            command.stdin(folder);
        });
    publisher.bound();
    let ended = publisher.ended();
    assert_eq!((ended.status, ended.errors.len()), (Some(1), 1), "{ended:?}");
    let line = &ended.errors[0];
    assert!(line.starts_with("dragonwire: cannot read the standard input: "), "{line}");
}
