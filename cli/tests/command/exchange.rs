//! Messages and subscriptions between two commands.

use std::time::Duration;

use crate::harness::{Dragonwire, Place};

/// Publishes until the subscriber is seen to get something, and takes that away.
fn meet(publisher: &mut Dragonwire, subscriber: &mut Dragonwire, topic: &str) {
    loop {
        publisher.write(&format!(r#"["{topic}","meet"]"#));
        if subscriber.line_within(Duration::from_millis(20)).is_some() {
            break;
        }
    }
    publisher.write(&format!(r#"["{topic}","met"]"#));
    while !subscriber.line().contains("\"met\"") {}
}

#[test]
fn push_to_pull_over_tcp() {
    let mut pull = Dragonwire::start("pull --bind tcp://127.0.0.1:* --count 4");
    let endpoint = pull.bound();
    assert!(endpoint.starts_with("tcp://127.0.0.1:") && !endpoint.ends_with(":0"), "{endpoint}");
    let mut push = Dragonwire::start(&format!("push --connect {endpoint}"));
    assert_eq!(push.connected(), endpoint);
    push.write(r#"["hello","world"]"#);
    assert_eq!(pull.line(), r#"["hello","world"]"#);
    push.write(r#" [ {"hex":"00FF80"}, "", "gr\u00fc\u00df\n" ] "#);
    assert_eq!(pull.line(), r#"[{"hex":"00ff80"},"","grüß\n"]"#);
    // a frame in hex that is UTF-8 is a string on the other side; a last line needs no end
    push.write_octets(b"[{\"hex\":\"61\"}]\n[\"the\",\"last\",\"of\",\"four\"]");
    push.finish();
    assert_eq!(pull.line(), r#"["a"]"#);
    assert_eq!(pull.line(), r#"["the","last","of","four"]"#);
    let ended = pull.ended();
    assert_eq!((ended.status, ended.output.len()), (Some(0), 0), "{ended:?}");
}

#[test]
fn a_connecting_one_starts_before_the_other() {
    let place = Place::new();
    let endpoint = place.ipc("late.sock");
    let mut push = Dragonwire::start(&format!("push --connect {endpoint} --reconnect-ivl 10"));
    push.write(r#"["early"]"#);
    push.end_input();
    push.told("waiting for ");
    let mut pull = Dragonwire::start(&format!("pull --bind {endpoint} --count 1"));
    assert_eq!(pull.bound(), endpoint);
    assert_eq!(pull.line(), r#"["early"]"#);
    assert_eq!(push.ended().status, Some(0));
    assert_eq!(pull.ended().status, Some(0));
}

#[test]
fn endpoints_are_mixed_and_repeated() {
    let place = Place::new();
    let (one, two, three) = (place.ipc("one"), place.ipc("two"), place.ipc("three"));
    let mut bound = Dragonwire::start(&format!("push --bind {three}"));
    bound.bound();
    let mut pull =
        Dragonwire::start(&format!("pull --bind {one} --connect {three} --bind {two} --count 3"));
    assert_eq!(pull.bound(), one);
    assert_eq!(pull.bound(), two);
    assert_eq!(pull.connected(), three);
    let mut got = Vec::new();
    for (place, word) in [(&one, "one"), (&two, "two")] {
        let mut push = Dragonwire::start(&format!("push --connect {place}"));
        push.write(&format!("[\"{word}\"]"));
        push.finish();
        got.push(pull.line());
    }
    bound.write("[\"three\"]");
    got.push(pull.line());
    assert_eq!(got, [r#"["one"]"#, r#"["two"]"#, r#"["three"]"#]);
    assert_eq!(pull.ended().status, Some(0));
    bound.finish();
}

#[test]
fn an_abstract_name_and_a_stale_socket_file() {
    let name = format!("ipc://@dragonwire-test-{}", std::process::id());
    let mut pull = Dragonwire::start(&format!("pull --bind {name} --count 1"));
    assert_eq!(pull.bound(), name);
    let mut push = Dragonwire::start(&format!("push --connect {name}"));
    push.write("[\"a\"]");
    push.finish();
    assert_eq!(pull.line(), "[\"a\"]");
    pull.finish();

    let place = Place::new();
    drop(std::os::unix::net::UnixListener::bind(place.path().join("stale")).unwrap());
    let mut pull = Dragonwire::start(&format!("pull --bind {}", place.ipc("stale")));
    pull.bound();
}

#[test]
fn pub_to_sub() {
    let mut publisher = Dragonwire::start("pub --bind tcp://127.0.0.1:0");
    let endpoint = publisher.bound();
    let mut subscriber = Dragonwire::start(&format!(
        "sub --connect {endpoint} --subscribe a. --subscribe-hex ff00 --count 100"
    ));
    // the standard input means nothing to its end
    subscriber.end_input();
    meet(&mut publisher, &mut subscriber, "a.");
    for line in [r#"["b.","no"]"#, r#"["a.b","yes"]"#, r#"["a"]"#, r#"[{"hex":"ff00ff"}]"#] {
        publisher.write(line);
    }
    assert_eq!(subscriber.line(), r#"["a.b","yes"]"#);
    assert_eq!(subscriber.line(), r#"[{"hex":"ff00ff"}]"#);
    for i in 0..100 {
        publisher.write(&format!("[\"a.{i}\"]"));
    }
    publisher.finish();
    assert_eq!(subscriber.line(), "[\"a.0\"]");
    assert_eq!(subscriber.ended().status, Some(0));
}

#[test]
fn subscriptions_change_while_running() {
    let mut xpub = Dragonwire::start("xpub --bind tcp://127.0.0.1:0");
    let endpoint = xpub.bound();
    let mut sub = Dragonwire::start(&format!("sub --connect {endpoint}"));
    sub.told("no subscription yet");
    sub.write(r#"{"subscribe":"a"}"#);
    assert_eq!(xpub.line(), r#"["\u0001a"]"#);
    xpub.write(r#"["ab","1"]"#);
    assert_eq!(sub.line(), r#"["ab","1"]"#);
    sub.write(r#"{"subscribe":{"hex":"ff"}}"#);
    assert_eq!(xpub.line(), r#"[{"hex":"01ff"}]"#);
    sub.write(r#"{"unsubscribe":"a"}"#);
    assert_eq!(xpub.line(), r#"["\u0000a"]"#);
    xpub.write(r#"["ab","2"]"#);
    xpub.write(r#"[{"hex":"ff"},"3"]"#);
    assert_eq!(sub.line(), r#"[{"hex":"ff"},"3"]"#);
    // everything, for which there is no octet
    sub.write(r#"{"subscribe":""}"#);
    assert_eq!(xpub.line(), r#"["\u0001"]"#);
    xpub.finish();
}

#[test]
fn xpub_reports_a_topic_once_or_with_verbose_each_time() {
    for (options, reports) in [("", 1), ("--verbose", 2)] {
        let mut xpub = Dragonwire::start(&format!("xpub --bind tcp://127.0.0.1:0 {options}"));
        let endpoint = xpub.bound();
        let line = format!("sub --connect {endpoint} --subscribe a");
        let mut subs = [Dragonwire::start(&line), Dragonwire::start(&line)];
        for sub in &mut subs {
            sub.connected();
        }
        for _ in 0..reports {
            assert_eq!(xpub.line(), r#"["\u0001a"]"#);
        }
        // the next thing that is reported
        subs[0].write(r#"{"subscribe":"b"}"#);
        assert_eq!(xpub.line(), r#"["\u0001b"]"#);
        xpub.finish();
    }
}

#[test]
fn xsub_subscribes_by_option_by_line_and_by_frame() {
    let mut xpub = Dragonwire::start("xpub --bind tcp://127.0.0.1:0");
    let endpoint = xpub.bound();
    let mut xsub = Dragonwire::start(&format!("xsub --connect {endpoint} --subscribe a"));
    assert_eq!(xpub.line(), r#"["\u0001a"]"#);
    xsub.write(r#"["\u0001b"]"#);
    assert_eq!(xpub.line(), r#"["\u0001b"]"#);
    xsub.write(r#"{"subscribe":"c"}"#);
    assert_eq!(xpub.line(), r#"["\u0001c"]"#);
    for topic in ["a", "b", "c", "d"] {
        xpub.write(&format!("[\"{topic}\"]"));
    }
    for topic in ["a", "b", "c"] {
        assert_eq!(xsub.line(), format!("[\"{topic}\"]"));
    }
    xsub.write(r#"[{"hex":"0062"}]"#);
    assert_eq!(xpub.line(), r#"["\u0000b"]"#);
    // other messages go upstream as they are
    xsub.write(r#"["to the","publisher"]"#);
    assert_eq!(xpub.line(), r#"["to the","publisher"]"#);
    let ended = xsub.finish();
    assert_eq!(ended.output, Vec::<String>::new());
    xpub.finish();
}

#[test]
fn xpub_and_xsub_outlive_their_input_when_they_count() {
    let mut xpub = Dragonwire::start("xpub --bind tcp://127.0.0.1:0 --count 2");
    let endpoint = xpub.bound();
    xpub.end_input();
    let mut xsub = Dragonwire::start(&format!("xsub --connect {endpoint} --subscribe a --count 1"));
    assert_eq!(xpub.line(), r#"["\u0001a"]"#);
    xsub.write(r#"["\u0001b"]"#);
    assert_eq!(xpub.line(), r#"["\u0001b"]"#);
    assert_eq!(xpub.ended().status, Some(0));
    // xsub goes on waiting for its message
    xsub.end_input();
    let mut other = Dragonwire::start(&format!("xpub --bind {endpoint}"));
    assert_eq!(other.line(), r#"["\u0001a"]"#);
    assert_eq!(other.line(), r#"["\u0001b"]"#);
    other.write(r#"["ab"]"#);
    assert_eq!(xsub.line(), r#"["ab"]"#);
    assert_eq!(xsub.ended().status, Some(0));
    other.finish();
}

#[test]
fn connections_are_told_as_they_come_and_go() {
    let mut pull = Dragonwire::start("pull --bind tcp://127.0.0.1:0");
    let endpoint = pull.bound();
    let mut push = Dragonwire::start(&format!("push --connect {endpoint} --reconnect-ivl 10"));
    push.connected();
    pull.end_by(rustix::process::Signal::TERM);
    push.told(&format!("disconnected {endpoint}: "));
    let mut pull = Dragonwire::start(&format!("pull --bind {endpoint}"));
    pull.bound();
    assert_eq!(push.connected(), endpoint);
    push.finish();
}

#[test]
fn a_peer_that_does_not_fit_is_named() {
    let mut publisher = Dragonwire::start("pub --bind tcp://127.0.0.1:0");
    let endpoint = publisher.bound();
    let mut pull = Dragonwire::start(&format!("pull --connect {endpoint}"));
    let reason = pull.told(&format!("refused {endpoint}: "));
    assert!(reason.contains("PUB") && reason.contains("PULL"), "{reason}");
    publisher.told("refused 127.0.0.1:");
}
