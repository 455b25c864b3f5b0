//! `directory`: a directory that is served, and requests to it.

use rustix::process::Signal;

use crate::harness::{Dragonwire, Ended, Place};

fn ask(arguments: &[&str], at: &str) -> Ended {
    let mut command =
        Dragonwire::start_with(&[&["directory"], arguments, &["--directory", at]].concat(), |_| {});
    command.ended()
}

fn good(arguments: &[&str], at: &str) -> Vec<String> {
    let ended = ask(arguments, at);
    assert_eq!((ended.status, ended.errors.len()), (Some(0), 0), "{arguments:?}: {ended:?}");
    ended.output
}

#[test]
fn rows_are_written_read_and_removed() {
    let mut server = Dragonwire::start("directory --bind tcp://127.0.0.1:*");
    let at = server.bound();
    assert!(good(&["list", "chassis"], &at).is_empty());
    assert!(good(&["put", "chassis", "one", "{\"a\": 1}"], &at).is_empty());
    good(&["put", "chassis", "two", "2"], &at);
    assert_eq!(good(&["get", "chassis", "one"], &at), ["{\"a\": 1}"]);
    let rows = [r#"["one","{\"a\": 1}"]"#, r#"["two","2"]"#];
    assert_eq!(good(&["list", "chassis"], &at), rows);
    good(&["delete", "chassis", "one"], &at);
    let ended = ask(&["get", "chassis", "one"], &at);
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert_eq!(ended.errors, ["dragonwire: table \"chassis\" has no row \"one\""]);
    // what is gone is gone
    let ended = ask(&["delete", "chassis", "one"], &at);
    assert_eq!((ended.status, ended.errors.len()), (Some(0), 1), "{ended:?}");
    let ended = server.end_by(Signal::TERM);
    assert_eq!((ended.status, ended.output.len()), (Some(0), 0), "{ended:?}");
    // nobody answers now
    let ended = ask(&["list", "chassis"], &at);
    assert_eq!((ended.status, ended.errors.len()), (Some(1), 1), "{ended:?}");
    assert!(ended.errors[0].contains("is it running there?"), "{ended:?}");
}

#[test]
fn a_snapshot_survives_a_kill_and_belongs_to_one_server() {
    let place = Place::new();
    let snapshot = place.path().join("snapshot").display().to_string();
    let arguments = format!("directory --bind tcp://127.0.0.1:* --snapshot {snapshot}");
    let mut server = Dragonwire::start(&arguments);
    let at = server.bound();
    good(&["put", "publisher", "1", "{}"], &at);
    let mut second = Dragonwire::start(&arguments);
    let ended = second.ended();
    assert_eq!((ended.status, ended.errors.len()), (Some(1), 1), "{ended:?}");
    assert!(ended.errors[0].contains("another directory server uses it"), "{ended:?}");
    server.signal(Signal::KILL);
    server.wait_killed();
    let mut server = Dragonwire::start(&arguments);
    let at = server.bound();
    assert_eq!(good(&["get", "publisher", "1"], &at), ["{}"]);
    assert_eq!(server.end_by(Signal::INT).status, Some(0));
}

#[test]
fn an_address_in_use_is_named() {
    let mut server = Dragonwire::start("directory --bind tcp://127.0.0.1:*");
    let at = server.bound();
    let ended = Dragonwire::start(&format!("directory --bind {at}")).ended();
    assert_eq!((ended.status, ended.errors.len()), (Some(1), 1), "{ended:?}");
    assert!(ended.errors[0].contains(&at), "{ended:?}");
    server.end_by(Signal::TERM);
}
