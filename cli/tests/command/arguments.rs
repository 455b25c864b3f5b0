//! Arguments that are wrong, and endpoints that cannot be had.

use crate::harness::{Dragonwire, Ended, Place};

fn refused(arguments: &[&str]) -> Ended {
    Dragonwire::start_with(arguments, |_| {}).ended()
}

#[test]
fn bad_arguments_are_told_in_one_line() {
    for (arguments, part) in [
        (&["pub"][..], "no endpoint"),
        (&[], "a TYPE is missing"),
        (&["req", "--bind", "ipc://@x"], "\"req\""),
        (&["pull", "--bind", "tcp://127.0.0.1"], "the port is missing"),
        (&["pull", "--bind", "udp://127.0.0.1:1"], "transport \"udp\""),
        (&["pull", "--connect", "tcp://*:5555"], "not connected to"),
        (&["pull", "--bind", "tcp://1.2.3.4:0;1.2.3.4:5"], "not for binding"),
        (&["pull", "--bind", "ipc://@x", "--count", "many"], "'many'"),
        (&["pub", "--bind", "ipc://@x", "--identity", &"x".repeat(256)], "at most 255 octets"),
        (&["sub", "--bind", "ipc://@x", "--subscribe-hex", "0g"], "not hexadecimal"),
    ] {
        let ended = refused(arguments);
        assert_eq!(ended.status, Some(2), "{arguments:?}: {ended:?}");
        assert_eq!((ended.output.len(), ended.errors.len()), (0, 1), "{arguments:?}: {ended:?}");
        assert!(ended.errors[0].starts_with("dragonwire: "), "{ended:?}");
        assert!(ended.errors[0].contains(part), "{arguments:?}: {ended:?}");
    }
}

#[test]
fn help_tells_the_types_and_their_options() {
    let ended = refused(&["--help"]);
    assert_eq!((ended.status, ended.errors.len()), (Some(0), 0));
    let text = ended.output.join("\n");
    for word in ["pub", "sub", "xpub", "xsub", "push", "pull", "demo", "Exit status"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(!text.contains("demo-worker"), "{text}");
    let text = refused(&["xpub", "--help"]).output.join("\n");
    for option in ["--bind", "--connect", "--verbose", "--count", "--format", "--max-msg-size"] {
        assert!(text.contains(option), "{option}: {text}");
    }
    assert!(refused(&["--version"]).output[0].starts_with("dragonwire 0."));
}

#[test]
fn an_endpoint_in_use_is_named() {
    let place = Place::new();
    for endpoint in ["tcp://127.0.0.1:0", &place.ipc("live")] {
        let mut first = Dragonwire::start(&format!("pull --bind {endpoint}"));
        let endpoint = first.bound();
        let ended = refused(&["pull", "--bind", &endpoint]);
        assert_eq!(ended.status, Some(1), "{ended:?}");
        assert_eq!(ended.errors.len(), 1, "{ended:?}");
        let line = &ended.errors[0];
        assert!(line.starts_with(&format!("dragonwire: cannot bind {endpoint}: ")), "{line}");
    }
    let ended = refused(&["pull", "--bind", &place.ipc("no/such/folder")]);
    assert_eq!((ended.status, ended.errors.len()), (Some(1), 1), "{ended:?}");
}

#[test]
fn every_option_is_taken() {
    let mut pull = Dragonwire::start(
        "pull --bind tcp://[::1]:0 --count 1 --identity me --hwm 5 --linger 100 --handshake-ivl 900 \
         --heartbeat-ivl 0 --heartbeat-timeout 500 --heartbeat-ttl 1000 --max-msg-size 100 --stats",
    );
    let endpoint = pull.bound();
    assert!(endpoint.starts_with("tcp://[::1]:"), "{endpoint}");
    pull.told("sent 0 (0/s)  peers 0");
    let mut push = Dragonwire::start(&format!(
        "push --connect {endpoint} --identity-hex 00ff --reconnect-ivl 20 --heartbeat-ivl 100"
    ));
    push.connected();
    push.write(&format!("[\"{:101}\"]", 1));
    let told = pull.told("closed ");
    assert!(told.contains("the limit is 100"), "{told}");
    push.told("disconnected ");
    push.connected();
    push.write(&format!("[\"{:100}\"]", 2));
    assert_eq!(pull.line(), format!("[\"{:100}\"]", 2));
    pull.finish();
    push.end_by(rustix::process::Signal::TERM);
}
