//! `publish` and `subscribe`: events of the driver layer between two commands.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Dragonwire, Ended, Place};

pub(crate) const READY: &str = r#"{"ready":true}"#;

fn run(arguments: &[&str]) -> Ended {
    let mut command = Dragonwire::start_with(arguments, |_| {});
    command.end_input();
    command.ended()
}

/// A publisher that reads its events from the standard input, and where it listens.
pub(crate) fn publisher(options: &str) -> (Dragonwire, String) {
    let arguments = format!("publish --stdin --bind-address 127.0.0.1 --port 0 {options}");
    let mut publisher = Dragonwire::start(&arguments);
    let uri = publisher.bound();
    assert_eq!(publisher.line(), READY);
    (publisher, uri)
}

pub(crate) fn subscriber(options: &str) -> Dragonwire {
    let mut subscriber = Dragonwire::start(&format!("subscribe {options}"));
    assert_eq!(subscriber.line(), READY);
    subscriber
}

pub(crate) fn set(key: &str) -> String {
    json!({"table": "lport", "key": key, "action": "set"}).to_string()
}

#[track_caller]
fn assert_set(line: &str, key: &str) {
    let expected =
        json!({"table": "lport", "key": key, "action": "set", "value": null, "topic": "D"});
    assert_eq!(serde_json::from_str::<Value>(line).unwrap(), expected);
}

#[test]
fn one_event_waits_for_its_subscriber() {
    let mut publish = Dragonwire::start(
        "publish lport 7e4a create {\"a\":1} --topic tenant-1 --port 0 --wait 60000",
    );
    let bound = publish.bound();
    assert_eq!(publish.line(), READY);
    let port = bound.rsplit_once(':').unwrap().1;
    let mut subscribe = Dragonwire::start(&format!(
        "subscribe --uri tcp://127.0.0.1:{port} --topic tenant-1 --count 1"
    ));
    assert_eq!(subscribe.line(), READY);
    assert_eq!(
        subscribe.line(),
        r#"{"table":"lport","key":"7e4a","action":"create","value":"{\"a\":1}","topic":"tenant-1"}"#
    );
    for command in [&mut publish, &mut subscribe] {
        let ended = command.ended();
        assert_eq!((ended.status, ended.output.len()), (Some(0), 0), "{ended:?}");
        assert!(ended.errors.is_empty(), "{ended:?}");
    }
}

#[test]
fn whoever_has_its_events_waits_for_no_other_publisher() {
    let mut publish = Dragonwire::start("publish lport 1 set --port 0 --wait 60000");
    let uri = publish.bound();
    assert_eq!(publish.line(), READY);
    let place = Place::new();
    let nobody = place.path().join("nobody").display().to_string();
    let mut subscribe =
        Dragonwire::start(&format!("subscribe --uri {uri} --uri ipc://{nobody} --count 1"));
    assert_eq!(subscribe.line(), READY);
    assert_set(&subscribe.line(), "1");
    let ended = subscribe.ended();
    assert!(ended.status == Some(0) && ended.errors.is_empty(), "{ended:?}");
    assert_eq!(publish.ended().status, Some(0));
}

#[test]
fn an_event_that_nobody_hears_is_told() {
    let ended = run(&["publish", "lport", "1", "delete", "--port", "0", "--wait", "50"]);
    assert_eq!((ended.status, ended.output), (Some(0), vec![READY.to_owned()]));
    let told = "1 event reached nobody: no subscriber of the topic was connected";
    assert_eq!(ended.errors[1..], [told]);
    let (mut publisher, _) = publisher("");
    publisher.write(&set("1"));
    publisher.write(&set("2"));
    let ended = publisher.finish();
    assert!(ended.errors[0].starts_with("2 events reached nobody"), "{ended:?}");
}

#[test]
fn an_event_that_no_service_takes_is_a_failure() {
    let place = Place::new();
    let socket = place.path().join("nobody").display().to_string();
    let ended = run(&["publish", "lport", "1", "delete", "--socket", &socket]);
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(ended.errors.last().unwrap().contains("is the publisher service running"), "{ended:?}");
    // and whoever does not want to wait for that need not
    let mut publish = Dragonwire::start(&format!("publish lport 1 delete --socket {socket}"));
    publish.told("not all is sent yet: waiting; Ctrl-C gives up");
    assert_eq!(publish.end_by(Signal::INT).status, Some(130));
}

#[test]
fn events_arrive_as_they_are_whatever_the_codec_and_the_driver() {
    let place = Place::new();
    for codec in ["protobuf", "pb", "msgpack", "map", "json", "json_string"] {
        let (publisher, uri) = publisher(&format!("--driver zmq --codec {codec}"));
        let subscriber = subscriber(&format!("--driver zmq --uri {uri}"));
        exchange(publisher, subscriber);
        let socket = place.path().join("socket").display().to_string();
        let subscriber =
            self::subscriber(&format!("--driver zmq-multiproc --socket {socket} --codec {codec}"));
        let mut publisher = Dragonwire::start(&format!(
            "publish --stdin --driver zmq-multiproc --socket {socket} --codec {codec}"
        ));
        assert_eq!(publisher.line(), READY);
        exchange(publisher, subscriber);
    }
}

fn exchange(mut publisher: Dragonwire, mut subscriber: Dragonwire) {
    let events = [
        json!({"table": "lport", "key": "1", "action": "create", "value": "{\"id\": 1}", "topic": "D"}),
        json!({"table": "", "key": "ü\n", "action": "log", "value": "line", "topic": "D"}),
        json!({"table": "t", "key": "k", "action": "dbrestart", "value": "", "topic": "D"}),
        json!({"table": null, "key": null, "action": null, "value": null, "topic": "D"}),
        json!({"table": "t", "key": "k", "action": "set", "value": {"a": [1, -2, "x", null]}, "topic": "D"}),
        json!({"table": "t", "key": "k", "action": "set", "value": 0.5, "topic": "D"}),
        json!({"table": "t", "key": "k", "action": "set", "value": true, "topic": "Dx"}),
    ];
    for event in &events {
        publisher.write(&event.to_string());
    }
    for event in &events {
        assert_eq!(serde_json::from_str::<Value>(&subscriber.line()).unwrap(), *event);
    }
    publisher.finish();
    assert_eq!(subscriber.end_by(Signal::TERM).status, Some(143));
}

#[test]
fn topics_decide_who_gets_an_event() {
    let (mut publisher, uri) = publisher("--codec msgpack");
    let mut one = subscriber(&format!("--uri {uri} --topic a --topic b"));
    let mut all = subscriber(&format!("--uri {uri}"));
    for line in [
        r#"{"key":"1","topic":"a1"}"#,
        r#"{"key":"2","topic":"c"}"#,
        r#"{"key":"3"}"#,
        r#"{"key":"4","topic":"c","topic_argument":"b"}"#,
        r#"{"key":"5","topic":null}"#,
        r#"{"key":"6","topic":"a","topic_argument":null}"#,
        r#"{"key":"7","topic":"c","topic_argument":"D"}"#,
    ] {
        publisher.write(line);
    }
    let next = |subscriber: &mut Dragonwire| {
        let event: Value = serde_json::from_str(&subscriber.line()).unwrap();
        (event["key"].as_str().unwrap().to_owned(), event["topic"].clone())
    };
    for (key, topic) in [("1", "a1"), ("4", "c"), ("6", "a")] {
        assert_eq!(next(&mut one), (key.to_owned(), json!(topic)));
    }
    for (key, topic) in [("3", json!("D")), ("5", json!(null)), ("7", json!("c"))] {
        assert_eq!(next(&mut all), (key.to_owned(), topic));
    }
    publisher.finish();
}

#[test]
fn lines_that_are_no_events_are_told_and_the_others_published() {
    let (mut publisher, uri) = publisher("");
    let mut subscriber = subscriber(&format!("--uri {uri} --count 2"));
    publisher.write(&set("1"));
    for line in ["nonsense", "", r#"{"table":1}"#, r#"{"tabel":"x"}"#, "[]"] {
        publisher.write(line);
    }
    publisher.write_octets(b"{\"table\":\"\xff\"}\n");
    // a last line needs no end
    publisher.write_octets(set("2").as_bytes());
    publisher.end_input();
    let ended = publisher.ended();
    assert_eq!(ended.status, Some(2), "{ended:?}");
    let told: Vec<_> = ended.errors.iter().filter(|line| line.contains(" is ignored: ")).collect();
    assert_eq!(told.len(), 5, "{ended:?}");
    for (line, part) in [
        (2, "an event is an object"),
        (4, "invalid type: integer `1`, expected a string"),
        (5, "unknown field `tabel`, expected one of `table`, `key`"),
        (6, "an event is an object"),
        (7, "invalid unicode"),
    ] {
        let beginning = format!("dragonwire: line {line} of the standard input is ignored: ");
        assert!(
            told.iter().any(|told| told.starts_with(&beginning) && told.contains(part)),
            "{line}: {ended:?}"
        );
    }
    assert_eq!(
        ended.errors.last().unwrap(),
        "dragonwire: 5 lines of the standard input not published"
    );
    assert_set(&subscriber.line(), "1");
    assert_set(&subscriber.line(), "2");
    assert_eq!(subscriber.ended().status, Some(0));
}

#[test]
fn topics_and_publishers_come_and_go_while_it_runs() {
    let (mut one, uri_one) = publisher("");
    let (mut two, uri_two) = publisher("");
    let mut subscriber = subscriber("--stdin --topic t");
    let ask = |subscriber: &mut Dragonwire, line: Value| {
        subscriber.write(&line.to_string());
        serde_json::from_str::<Value>(&subscriber.line()).unwrap()
    };
    let event = |topic: &str, key: &str| json!({"key": key, "topic": topic}).to_string();

    let line = json!({"register_listen_address": uri_one});
    subscriber.write(&line.to_string());
    assert_eq!(
        subscriber.line(),
        format!("{{\"register_listen_address\":\"{uri_one}\",\"result\":true}}")
    );
    let answer = ask(&mut subscriber, json!({"register_listen_address": uri_one}));
    assert_eq!(answer["result"], false);
    let answer = ask(&mut subscriber, json!({"register_topic": "u"}));
    assert_eq!(answer, json!({"register_topic": "u", "result": true}));
    assert_eq!(ask(&mut subscriber, json!({"register_topic": "t"}))["result"], false);
    // until the publisher has heard of it
    let get = |publisher: &mut Dragonwire, subscriber: &mut Dragonwire, topic: &str| loop {
        publisher.write(&event(topic, "meet"));
        if subscriber.line_within(Duration::from_millis(20)).is_some() {
            publisher.write(&event(topic, "met"));
            while !subscriber.line().contains("\"met\"") {}
            break;
        }
    };
    get(&mut one, &mut subscriber, "t");
    get(&mut one, &mut subscriber, "u");
    let answer = ask(&mut subscriber, json!({"register_listen_address": uri_two}));
    assert_eq!(answer["result"], true);
    get(&mut two, &mut subscriber, "u");

    let answer = ask(&mut subscriber, json!({"unregister_topic": "u"}));
    assert_eq!(answer, json!({"unregister_topic": "u", "result": null}));
    let answer = ask(&mut subscriber, json!({"unregister_topic": "u"}));
    assert_eq!(answer["error"], "\"u\" is not registered as a topic");
    let answer = ask(&mut subscriber, json!({"unregister_listen_address": uri_two}));
    assert_eq!(answer, json!({"unregister_listen_address": uri_two, "result": null}));
    let answer = ask(&mut subscriber, json!({"unregister_listen_address": uri_two}));
    assert!(answer["error"].as_str().unwrap().contains("is not registered"), "{answer}");
    let answer = ask(&mut subscriber, json!({"register_listen_address": "tcp://x"}));
    assert!(answer["error"].as_str().unwrap().contains("the port is missing"), "{answer}");

    // what is no command is answered, too
    for (line, part) in [
        (json!({"register_topic": 1}), "expected a string"),
        (json!({"subscribe": "t"}), "unknown variant `subscribe`, expected one of"),
        (json!({}), "expected"),
        (json!(["register_topic"]), "expected"),
    ] {
        let answer = ask(&mut subscriber, line);
        assert!(answer["line"].is_u64(), "{answer}");
        assert!(answer["error"].as_str().unwrap().contains(part), "{answer}");
        subscriber.told("dragonwire: line ");
    }

    // and goes on when there are no more
    subscriber.end_input();
    get(&mut one, &mut subscriber, "t");
    one.finish();
    two.finish();
}

#[test]
fn what_cannot_be_read_is_a_sync() {
    let mut publisher = Dragonwire::start("xpub --bind tcp://127.0.0.1:0 --format json");
    let uri = publisher.bound();
    let mut subscriber = subscriber(&format!("--uri {uri}"));
    publisher.write(r#"["D",{"hex":"ff00"}]"#);
    let sync: Value = serde_json::from_str(&subscriber.line()).unwrap();
    assert_eq!(
        sync,
        json!({"table": null, "key": null, "action": "sync", "value": null, "topic": null,
               "cause": "undecodable", "missing": null})
    );
    let told = subscriber.told("dragonwire: an event cannot be read (");
    assert!(told.contains("topic D"), "{told}");
    // a person who stops it is told in numbers
    let ended = subscriber.end_by(Signal::INT);
    assert_eq!(ended.status, Some(130), "{ended:?}");
    assert_eq!(ended.errors.last().unwrap(), "received 0, missing 0, sync 1");
}

#[test]
fn a_reader_that_is_too_slow_is_told_what_is_missing_to_the_unit() {
    const EVENTS: u64 = 60_000;
    // the first event waits for the subscriber
    let (mut publisher, uri) = publisher("--wait 60000");
    let mut subscriber = Dragonwire::start_unread(&["subscribe", "--uri", &uri], |_| {});
    let filling = "x".repeat(500);
    let line = json!({"table": "t", "key": "k", "action": "set", "value": filling}).to_string();
    let lines = format!("{line}\n").repeat(1000);
    for _ in 0..EVENTS / 1000 {
        publisher.write_octets(lines.as_bytes());
    }
    subscriber.read();
    assert_eq!(subscriber.line(), READY);
    let (mut delivered, mut missing) = (0, 0);
    while delivered + missing < EVENTS {
        let event: Value = serde_json::from_str(&subscriber.line()).unwrap();
        if event["action"] == "sync" {
            let range = &event["missing"];
            assert_eq!((&event["cause"], &range["topic"]), (&json!("gap"), &json!("D")), "{event}");
            missing += range["to"].as_u64().unwrap() - range["from"].as_u64().unwrap() + 1;
        } else {
            delivered += 1;
        }
    }
    assert_eq!(delivered + missing, EVENTS);
    assert!(missing > 0, "a reader that does not read was too slow for nothing");
    let ended = publisher.finish();
    assert!(ended.errors.iter().any(|line| line.contains("too slow")), "{ended:?}");
}

#[test]
fn a_reader_that_goes_ends_it() {
    let (mut publisher, uri) = publisher("");
    let mut subscriber = Dragonwire::start_unread(&["subscribe", "--uri", &uri], |_| {});
    subscriber.close_output();
    // it learns so when it writes
    let ended = subscriber.ended();
    assert_eq!((ended.status, ended.errors.len()), (Some(141), 0), "{ended:?}");
    publisher.write(&set("1"));
    publisher.finish();
}

#[test]
fn an_input_that_cannot_be_read_is_a_failure() {
    for arguments in ["publish --stdin --port 0", "subscribe --stdin"] {
        let folder = std::fs::File::open("/").unwrap();
        let words: Vec<_> = arguments.split(' ').collect();
        let mut command = Dragonwire::start_with(&words, |command| {
            command.stdin(folder);
        });
        let ended = command.ended();
        assert_eq!(ended.status, Some(1), "{ended:?}");
        let line = ended.errors.last().unwrap();
        assert!(line.starts_with("dragonwire: cannot read the standard input: "), "{line}");
    }
}

#[test]
fn sigterm_ends_both() {
    let (mut publisher, uri) = publisher("");
    let mut subscriber = subscriber(&format!("--uri {uri} --stdin"));
    publisher.write(&set("1"));
    assert_set(&subscriber.line(), "1");
    let ended = publisher.end_by(Signal::TERM);
    assert_eq!(ended.status, Some(143), "{ended:?}");
    assert_eq!(subscriber.end_by(Signal::TERM).status, Some(143));
}

#[test]
fn publishers_that_are_not_there_do_not_hold_up_the_others() {
    let (mut publisher, uri) = publisher("");
    let place = Place::new();
    let nobody = place.ipc("nobody");
    let mut subscriber = subscriber(&format!("--uri {nobody} --uri {uri}"));
    subscriber.told("not every publisher is connected yet");
    publisher.write(&set("1"));
    assert_set(&subscriber.line(), "1");
    publisher.finish();
}

#[test]
fn option_files_hold_what_flags_do_and_flags_win() {
    let place = Place::new();
    let file = |name: &str, text: &str| {
        let path = place.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let socket = place.path().join("socket").display().to_string();
    let local = file(
        "local.conf",
        &format!("[df]\npublisher_multiproc_socket = {socket}\n[dragonwire]\ncodec = json\n"),
    );
    // the files' publishers go by the publisher service
    let mut reader = subscriber(&format!("--driver zmq-multiproc --config {local}"));
    let ended = run(&["publish", "lport", "1", "set", "--config", &local]);
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert_set(&reader.line(), "1");
    reader.end_by(Signal::TERM);

    // or not
    let (mut publisher, uri) = publisher("");
    let port = uri.rsplit_once(':').unwrap().1;
    publisher.finish();
    let neutron = file(
        "neutron.toml",
        &format!(
            "[df]\npub_sub_use_multiproc = false\npublisher_port = {port}\n\
             publisher_bind_address = \"127.0.0.1\"\nlocal_ip = \"127.0.0.1\"\n"
        ),
    );
    let mut publish = Dragonwire::start(&format!(
        "publish lport 1 set --config {neutron} --wait 60000 --codec msgpack"
    ));
    assert_eq!(publish.bound(), uri);
    // a controller finds it by publishers_ips, which an INI file gives the default of
    let folder = place.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("a.conf"), "[df]\npublisher_port = 1\n").unwrap();
    std::fs::write(folder.join("b.conf"), format!("[df]\npublisher_port = {port}\n")).unwrap();
    let folder = folder.display().to_string();
    let mut subscriber = subscriber(&format!("--config-dir {folder} --count 1"));
    assert_set(&subscriber.line(), "1");
    assert_eq!(publish.ended().status, Some(0));

    // flags win
    let ended =
        run(&["publish", "lport", "1", "set", "--config", &neutron, "--port", "0", "--wait", "0"]);
    assert!(!ended.errors[0].ends_with(port), "{ended:?}");

    // what is wrong is told by file and line
    let wrong = file("wrong.conf", "[df]\n\npublisher_port = 88o6\n");
    for verb in [&["publish", "a", "b", "c"][..], &["subscribe"]] {
        let ended = run(&[verb, &["--config", &wrong]].concat());
        assert_eq!((ended.status, ended.errors.len()), (Some(2), 1), "{ended:?}");
        assert!(ended.errors[0].contains("wrong.conf:3: [df] publisher_port"), "{ended:?}");
    }
    let doubtful = file("doubtful.conf", "[dragonwire]\nkodec = json\n");
    let ended = run(&[
        "publish", "a", "b", "c", "--driver", "zmq", "--port", "0", "--wait", "0", "--config",
        &doubtful,
    ]);
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(ended.errors[0].starts_with("dragonwire: warning: "), "{ended:?}");
    assert!(ended.errors[0].ends_with("did you mean [dragonwire] codec?"), "{ended:?}");
}

#[test]
fn a_uri_says_where_a_publisher_listens() {
    let mut publish =
        Dragonwire::start("publish t k set --uri tcp://127.0.0.1:0 --wait 60000 --driver zmq");
    let uri = publish.bound();
    let mut subscriber = subscriber(&format!("--uri {uri} --count 1"));
    assert!(subscriber.line().contains("\"k\""));
    assert_eq!(publish.ended().status, Some(0));
    let place = Place::new();
    let uri = place.ipc("socket");
    let mut reader = self::subscriber(&format!("--driver zmq-multiproc --uri {uri} --count 1"));
    assert_eq!(run(&["publish", "t", "k", "set", "--uri", &uri]).status, Some(0));
    assert!(reader.line().contains("\"k\""));
}

#[test]
fn subscribers_follow_the_publishers_of_the_other_role() {
    let mut directory = Dragonwire::start("directory --bind tcp://127.0.0.1:*");
    let at = directory.bound();
    // a row has the port of the options: it has to be one that is known
    let listed = |role: &str| {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let arguments =
            format!("publish --stdin --driver zmq --port {port} --directory {at} --role {role}");
        let mut publisher = Dragonwire::start(&arguments);
        assert_eq!(publisher.line(), READY);
        publisher
    };
    let mut server = listed("neutron-server");
    let mut controllers = subscriber(&format!("--directory {at}"));
    let mut servers = subscriber(&format!("--directory {at} --role neutron-server"));
    server.write(&set("from a server"));
    assert_set(&controllers.line(), "from a server");
    // one that comes later is followed as well
    let mut controller = listed("df-local-controller");
    loop {
        controller.write(&set("from a controller"));
        if let Some(line) = servers.line_within(Duration::from_millis(20)) {
            assert_set(&line, "from a controller");
            break;
        }
    }
    server.write(&set("again"));
    assert_set(&controllers.line(), "again");
    server.finish();
    controller.finish();
    let rows = run(&["directory", "list", "publisher", "--directory", &at]);
    assert!(rows.output.is_empty(), "their rows are gone with them: {rows:?}");
}

#[test]
fn bad_arguments_are_told_in_one_line() {
    for (arguments, part) in [
        (&["publish"][..], "<TABLE> <KEY> <ACTION>"),
        (&["publish", "t", "k"], "<ACTION>"),
        (&["publish", "t", "k", "set", "--stdin"], "cannot be used with '--stdin'"),
        (&["publish", "t", "k", "set", "--driver", "kafka"], "zmq, zmq-multiproc"),
        (&["publish", "t", "k", "set", "--codec", "xml"], "is no codec: protobuf, msgpack or json"),
        (&["publish", "t", "k", "set", "--role", "king"], "neutron-server or df-local-controller"),
        (&["publish", "t", "k", "set", "--port", "65536"], "'65536'"),
        (&["publish", "t", "k", "set", "--uri", "x"], "write tcp://ADDRESS:PORT or ipc://PATH"),
        (
            &["publish", "t", "k", "set", "--uri", "udp://a:1"],
            "Transport protocol is not supported",
        ),
        (&["publish", "t", "k", "set", "--uri", "epgm://a:1"], "known but not built"),
        (&["publish", "t", "k", "set", "--uri", "tcp://a:1", "--uri", "tcp://b:1"], "one --uri"),
        (&["publish", "t", "k", "set", "--bind-address", "a b"], "publisher_bind_address"),
        (&["publish", "t", "k", "set", "--config", "/no/such"], "/no/such: cannot be read"),
        (&["publish", "t", "k", "set", "--directory", "x"], "no address of a directory"),
        (&["subscribe", "--uri", "tcp://127.0.0.1"], "the port is missing"),
        (&["subscribe", "--count", "0"], "'0'"),
        (&["subscribe", "extra"], "'extra'"),
        (&["status", "--bind", "x"], "'--bind'"),
        (&["directory"], "--bind tcp://HOST:PORT"),
        (&["directory", "--bind", "x"], "no address of a directory"),
        (&["directory", "list", "publisher"], "--directory"),
        (&["publisher-service", "--port", "x"], "'x'"),
    ] {
        let ended = run(arguments);
        assert_eq!(ended.status, Some(2), "{arguments:?}: {ended:?}");
        assert_eq!((ended.output.len(), ended.errors.len()), (0, 1), "{arguments:?}: {ended:?}");
        assert!(ended.errors[0].starts_with("dragonwire: "), "{ended:?}");
        assert!(ended.errors[0].contains(part), "{arguments:?}: {ended:?}");
    }
}

#[cfg(not(feature = "redis"))]
#[test]
fn a_build_without_redis_says_so() {
    for driver in ["redis", "redis_db_pubsub_driver"] {
        let ended = run(&["publish", "t", "k", "set", "--driver", driver]);
        assert_eq!((ended.status, ended.errors.len()), (Some(2), 1), "{ended:?}");
        assert!(ended.errors[0].contains("build it with --features redis"), "{ended:?}");
    }
}

#[cfg(feature = "redis")]
#[test]
fn events_go_by_redis() {
    let place = Place::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server = std::process::Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
        .current_dir(place.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let began = std::time::Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(began.elapsed() < crate::harness::DEADLINE);
        std::thread::yield_now();
    }
    let at = format!("--driver redis --uri redis://127.0.0.1:{port}");
    let mut subscriber = subscriber(&format!("{at} --count 1"));
    let ended = Dragonwire::start(&format!("publish lport 1 set {at}")).finish();
    assert_eq!(ended.output, [READY], "{ended:?}");
    assert_set(&subscriber.line(), "1");
    assert_eq!(subscriber.ended().status, Some(0));
    server.kill().unwrap();
    server.wait().unwrap();
}
