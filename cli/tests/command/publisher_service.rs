//! `publisher-service` and `status`: a service as its operator and its service manager meet it.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::events::{READY, set, subscriber};
use crate::harness::{DEADLINE, Dragonwire, Ended, Place};

/// A folder with an option file that a service runs by.
struct Host {
    place: Place,
}

impl Host {
    fn new() -> Self {
        let host = Self { place: Place::new() };
        host.configure("");
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn socket(&self) -> String {
        self.path("socket").display().to_string()
    }

    fn file(&self) -> String {
        self.path("dragonflow.ini").display().to_string()
    }

    /// Writes the option file anew, with these lines at its end.
    fn configure(&self, more: &str) {
        let text = format!(
            "[df]\npublisher_port = 0\npublisher_bind_address = 127.0.0.1\n\
             publisher_multiproc_socket = {}\n{more}\n",
            self.socket()
        );
        std::fs::write(self.file(), text).unwrap();
    }

    fn start(&self, options: &str) -> Service {
        Service::up(Dragonwire::start(&format!(
            "publisher-service --config {} {options}",
            self.file()
        )))
    }

    /// A producer that publishes the lines it is given.
    fn producer(&self) -> Dragonwire {
        let mut producer = Dragonwire::start(&format!("publish --stdin --config {}", self.file()));
        assert_eq!(producer.line(), READY);
        producer
    }

    fn status(&self) -> Value {
        let ended = Dragonwire::start(&format!("status --config {}", self.file())).finish();
        assert_eq!((ended.output.len(), ended.errors.len()), (1, 0), "{ended:?}");
        serde_json::from_str(&ended.output[0]).unwrap()
    }
}

struct Service {
    process: Dragonwire,
    /// What it said when it was up.
    up: String,
}

impl Service {
    fn up(mut process: Dragonwire) -> Self {
        let up = process.told("publisher service up: ");
        Self { process, up }
    }

    /// Where subscribers connect to.
    fn network(&self) -> String {
        let (_, rest) = self.up.split_once("network ").unwrap();
        rest.split_once(',').unwrap().0.to_owned()
    }

    fn subscriber(&self) -> Dragonwire {
        subscriber(&format!("--uri {}", self.network()))
    }

    /// Stops it as a service manager does.
    fn stop(&mut self) -> Ended {
        let ended = self.process.end_by(Signal::TERM);
        assert_eq!((ended.status, ended.output.len()), (Some(0), 0), "{ended:?}");
        ended
    }
}

fn key_of(line: &str) -> String {
    let event: Value = serde_json::from_str(line).unwrap();
    event["key"].as_str().unwrap_or_else(|| panic!("{line}")).to_owned()
}

#[test]
fn events_of_many_processes_reach_the_subscribers_and_a_stop_loses_none() {
    const EVENTS: usize = 2000;
    let host = Host::new();
    let mut service = host.start("");
    let mut subscriber = service.subscriber();
    let mut producers = [host.producer(), host.producer(), host.producer()];
    for (number, producer) in producers.iter_mut().enumerate() {
        let lines: Vec<_> = (0..EVENTS).map(|i| set(&format!("{number} {i}"))).collect();
        producer.write_octets((lines.join("\n") + "\n").as_bytes());
        producer.finish();
    }
    let status = host.status();
    assert_eq!(status["network"], json!(service.network()));
    assert_eq!(status["local"], json!(format!("ipc://{}", host.socket())));
    let ended = service.stop();
    let summary = ended.errors.last().unwrap();
    assert!(
        summary.starts_with("publisher service ended: received 6000, forwarded 6000"),
        "{ended:?}"
    );
    let mut next = [0; 3];
    let (mut delivered, mut syncs) = (0, 0);
    while delivered < 3 * EVENTS {
        let line = subscriber.line();
        if line.contains("\"action\":\"sync\"") {
            syncs += 1;
            continue;
        }
        let key = key_of(&line);
        let (producer, event) = key.split_once(' ').unwrap();
        let next = &mut next[producer.parse::<usize>().unwrap()];
        assert_eq!(event, next.to_string());
        *next += 1;
        delivered += 1;
    }
    println!("{syncs} syncs");
    // nothing of it is left
    assert!(!host.path("socket").exists() && !host.path("socket.status").exists());
}

#[test]
fn sigint_stops_it_as_well() {
    let host = Host::new();
    let mut service = host.start("");
    assert_eq!(service.process.end_by(Signal::INT).status, Some(0));
}

#[test]
fn it_does_not_run_twice() {
    let host = Host::new();
    let mut service = host.start("");
    let again = Dragonwire::start(&format!("publisher-service --config {}", host.file())).ended();
    assert_eq!((again.status, again.errors.len()), (Some(1), 1), "{again:?}");
    let line = &again.errors[0];
    assert!(line.starts_with("dragonwire: ") && line.contains(&host.socket()), "{line}");
    assert!(line.contains("another socket listens there"), "{line}");
    // nor on one port
    let port = service.network().rsplit_once(':').unwrap().1.to_owned();
    let other = host.path("other").display().to_string();
    let again = Dragonwire::start(&format!(
        "publisher-service --config {} --socket {other} --port {port}",
        host.file()
    ))
    .ended();
    assert_eq!((again.status, again.errors.len()), (Some(1), 1), "{again:?}");
    assert!(again.errors[0].contains(&format!(":{port}: ")), "{again:?}");
    assert!(!host.path("other").exists(), "what it had bound is gone with it");
    // the first one is none the worse
    let mut subscriber = service.subscriber();
    let mut producer = host.producer();
    producer.write(&set("1"));
    assert_eq!(key_of(&subscriber.line()), "1");
    assert_eq!(host.status()["forwarded"], 1);
    producer.finish();
    service.stop();
}

#[test]
fn a_service_that_was_killed_is_no_obstacle_for_its_successor() {
    let host = Host::new();
    let mut service = host.start("");
    service.process.signal(Signal::KILL);
    service.process.wait_killed();
    assert!(host.path("socket").exists() && host.path("socket.status").exists());
    let mut service = host.start("");
    assert_eq!(host.status()["received"], 0);
    service.stop();
}

#[test]
fn a_missing_folder_is_named() {
    let host = Host::new();
    let socket = host.path("none/socket").display().to_string();
    let ended = Dragonwire::start(&format!("publisher-service --socket {socket} --port 0")).ended();
    assert_eq!((ended.status, ended.errors.len()), (Some(1), 1), "{ended:?}");
    let folder = host.path("none").display().to_string();
    assert!(ended.errors[0].contains(&format!("create {folder}, with systemd by")), "{ended:?}");
}

#[test]
fn wrong_option_files_are_told_by_line() {
    let host = Host::new();
    host.configure("publisher_timeout = soon");
    let ended = Dragonwire::start(&format!("publisher-service --config {}", host.file())).ended();
    assert_eq!((ended.status, ended.errors.len()), (Some(2), 1), "{ended:?}");
    assert!(ended.errors[0].contains("dragonflow.ini:5: [df] publisher_timeout"), "{ended:?}");
    let transport = "publisher_transport = udp";
    host.configure(transport);
    let ended = Dragonwire::start(&format!("publisher-service --config {}", host.file())).ended();
    assert_eq!((ended.status, ended.errors.len()), (Some(2), 1), "{ended:?}");
    assert!(ended.errors[0].contains("use one of tcp, epgm"), "{ended:?}");
}

#[test]
fn a_service_and_a_controller_that_publishes_share_a_host_and_its_option_file() {
    let host = Host::new();
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (one, two) = (free(), free());
    let other = host.path("controller").display().to_string();
    host.configure(&format!(
        "[neutron]\npublisher_port = {one}\n[controller]\npublisher_port = {two}\n\
         publisher_multiproc_socket = {other}"
    ));
    let mut server = host.start("");
    let mut controller = host.start("--role df-local-controller");
    assert!(server.network().ends_with(&format!(":{one}")), "{}", server.up);
    assert!(controller.network().ends_with(&format!(":{two}")), "{}", controller.up);
    assert_eq!(host.status()["role"], "neutron-server");
    let status =
        Dragonwire::start(&format!("status --role controller --config {}", host.file())).finish();
    assert!(status.output[0].contains("\"df-local-controller\""), "{status:?}");
    server.stop();
    controller.stop();
}

#[test]
fn sighup_applies_what_it_can_and_names_what_needs_a_restart() {
    let host = Host::new();
    let mut service = host.start("");
    let mut reload = || {
        service.process.signal(Signal::HUP);
        service.process.told("reloaded: ")
    };
    assert_eq!(reload(), "nothing has changed");
    host.configure("publisher_timeout = 7\n[dragonwire]\nmonitor_tables = lport");
    assert_eq!(reload(), "applied monitor_tables, publisher_timeout");
    assert_eq!(reload(), "nothing has changed");
    host.configure(
        "publisher_timeout = 8\npublisher_rate_limit_count = 3\nmanagement_ip = 10.0.0.1\n\
         [dragonwire]\nmonitor_tables = lport",
    );
    assert_eq!(
        reload(),
        "applied publisher_timeout; needs a restart: management_ip, publisher_rate_limit_count"
    );
    // what is wrong changes nothing
    host.configure("publisher_timeout = soon");
    service.process.signal(Signal::HUP);
    let told = service.process.told("not reloaded, the options stay as they are: ");
    assert!(told.contains("dragonflow.ini:5: [df] publisher_timeout"), "{told}");
    std::fs::remove_file(host.file()).unwrap();
    service.process.signal(Signal::HUP);
    let told = service.process.told("not reloaded, the options stay as they are: ");
    assert!(told.contains("cannot be read"), "{told}");
    // and it goes on
    host.configure("");
    let mut subscriber = service.subscriber();
    let mut producer = host.producer();
    producer.write(&set("1"));
    assert_eq!(key_of(&subscriber.line()), "1");
    producer.finish();
    service.stop();
}

#[test]
fn its_row_is_in_the_directory_while_it_runs_and_its_monitors_tell_of_tables() {
    let mut directory = Dragonwire::start("directory --bind tcp://127.0.0.1:*");
    let at = directory.bound();
    let host = Host::new();
    host.configure(&format!(
        "monitor_table_poll_time = 0.05\n[dragonwire]\ndirectory = {at}\n\
         monitor_tables = chassis"
    ));
    let mut service = host.start("");
    assert!(service.up.ends_with(&format!("directory {at}")), "{}", service.up);
    let list = || {
        let list = format!("directory list publisher --directory {at}");
        Dragonwire::start(&list).finish().output
    };
    let rows = list();
    let status = host.status();
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert!(rows[0].contains(status["id"].as_str().unwrap()), "{rows:?}");
    assert_eq!((&status["directory"], &status["codec"]), (&json!([at]), &json!("msgpack")));

    let mut subscriber = service.subscriber();
    let put = format!("directory put chassis one {{}} --directory {at}");
    Dragonwire::start(&put).finish();
    let event: Value = serde_json::from_str(&subscriber.line()).unwrap();
    let created =
        json!({"table": "chassis", "key": "one", "action": "create", "value": "{}", "topic": "D"});
    assert_eq!(event, created);
    // other tables from now on
    host.configure(&format!(
        "monitor_table_poll_time = 0.05\n[dragonwire]\ndirectory = {at}\nmonitor_tables = lport"
    ));
    service.process.signal(Signal::HUP);
    assert_eq!(service.process.told("reloaded: "), "applied monitor_tables");
    for table in ["chassis", "lport"] {
        let put = format!("directory put {table} two {{}} --directory {at}");
        Dragonwire::start(&put).finish();
    }
    let event: Value = serde_json::from_str(&subscriber.line()).unwrap();
    assert_eq!((&event["table"], &event["key"]), (&json!("lport"), &json!("two")));
    service.stop();
    assert!(list().is_empty());
    assert_eq!(directory.end_by(Signal::TERM).status, Some(0));

    // without its directory it works and says what is missing
    let mut service = host.start("");
    service.process.told("dragonwire: the publisher's row was not written");
    let mut subscriber = service.subscriber();
    let mut producer = host.producer();
    producer.write(&set("1"));
    assert_eq!(key_of(&subscriber.line()), "1");
    producer.finish();
    let ended = service.stop();
    let row = "dragonwire: its row stays in the directory: ";
    assert!(ended.errors.iter().any(|line| line.starts_with(row)), "{ended:?}");
}

#[test]
fn the_status_is_one_json_object() {
    let host = Host::new();
    let mut service = host.start("--codec protobuf");
    let mut producer = host.producer();
    producer.write(&set("1"));
    producer.finish();
    let began = Instant::now();
    let status = loop {
        let status = host.status();
        if (&status["processes"], &status["received"]) == (&json!(0), &json!(1)) {
            break status;
        }
        assert!(began.elapsed() < DEADLINE, "{status}");
    };
    let id = status["id"].as_str().unwrap();
    assert!(service.up.contains(&format!("id {id}")), "{}", service.up);
    for (name, value) in [
        ("version", json!(env!("CARGO_PKG_VERSION"))),
        ("role", json!("neutron-server")),
        ("codec", json!("protobuf")),
        ("directory", json!([])),
        ("received", json!(1)),
        ("forwarded", json!(1)),
        ("unheard", json!(1)),
        ("dropped", json!(0)),
        ("malformed", json!(0)),
        ("published", json!(0)),
    ] {
        assert_eq!(status[name], value, "{name}: {status}");
    }
    assert!(status["uptime_seconds"].is_u64(), "{status}");
    // by the paths of either socket
    for socket in [host.socket(), format!("{}.status", host.socket())] {
        let ended = Dragonwire::start(&format!("status --socket {socket}")).finish();
        assert!(ended.output[0].contains(id), "{ended:?}");
    }
    service.stop();
}

#[test]
fn without_a_service_there_is_no_status() {
    let host = Host::new();
    let stale = host.path("socket.status");
    for there in [false, true] {
        if there {
            drop(UnixListener::bind(&stale).unwrap());
        }
        let ended = Dragonwire::start(&format!("status --config {}", host.file())).ended();
        assert_eq!((ended.status, ended.errors.len()), (Some(1), 1), "{ended:?}");
        let line = format!("dragonwire: no publisher service answers at {}", stale.display());
        assert!(ended.errors[0].starts_with(&line), "{ended:?}");
    }
    // what answers there is something else
    let other = host.path("other");
    let listener = UnixListener::bind(&other).unwrap();
    let answering = std::thread::spawn(move || {
        listener.accept().unwrap().0.write_all(b"SSH-2.0\r\n").unwrap();
    });
    let ended = Dragonwire::start(&format!("status --socket {}", other.display())).ended();
    answering.join().unwrap();
    assert_eq!((ended.status, ended.errors.len()), (Some(1), 1), "{ended:?}");
    assert!(ended.errors[0].contains("another program"), "{ended:?}");
}

#[test]
fn who_asks_and_does_not_listen_disturbs_nobody() {
    let host = Host::new();
    let mut service = host.start("");
    let path = host.path("socket.status");
    let asking: Vec<_> = (0..100).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let mut subscriber = service.subscriber();
    let mut producer = host.producer();
    producer.write(&set("1"));
    assert_eq!(key_of(&subscriber.line()), "1");
    assert_eq!(host.status()["forwarded"], 1);
    for mut stream in asking {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.ends_with("}\n") && text.matches('\n').count() == 1, "{text}");
    }
    producer.finish();
    service.stop();
}

#[test]
fn a_status_socket_that_is_in_use_is_left_alone() {
    let host = Host::new();
    let path = host.path("socket.status");
    let _live = UnixListener::bind(&path).unwrap();
    let start =
        || Dragonwire::start(&format!("publisher-service --config {}", host.file())).ended();
    let ended = start();
    assert_eq!(ended.status, Some(1), "{ended:?}");
    let line = ended.errors.last().unwrap();
    let beginning = format!("dragonwire: cannot listen on {}: ", path.display());
    assert!(line.starts_with(&beginning) && line.ends_with("another program listens there"));
    assert!(path.exists());
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    let ended = start();
    assert!(ended.errors.last().unwrap().ends_with("is not a socket"), "{ended:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    // another place is chosen in the option file
    let other = host.path("health").display().to_string();
    host.configure(&format!("[dragonwire]\nstatus_socket = {other}"));
    let mut service = host.start("");
    assert_eq!(host.status()["received"], 0);
    let ended = Dragonwire::start(&format!("status --socket {other}")).finish();
    assert_eq!(ended.output.len(), 1, "{ended:?}");
    service.stop();
    assert!(!host.path("health").exists());
}

/// The service with a socket handed over as systemd does it: file descriptor 3, and the two variables.
fn start_with_socket(socket: impl Into<OwnedFd>, count: u32, arguments: &str) -> Dragonwire {
    let binary = env!("CARGO_BIN_EXE_dragonwire");
    let mut shell = Command::new("sh");
    let script = format!(
        "exec 3<&0 4<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS={count} exec {binary} {arguments}"
    );
    shell.args(["-c", &script]).stdin(socket.into());
    Dragonwire::spawn(shell)
}

#[test]
fn a_socket_that_systemd_hands_over_is_taken_and_left_in_its_place() {
    let host = Host::new();
    let path = host.path("activated");
    let listener = UnixListener::bind(&path).unwrap();
    let arguments = format!("publisher-service --config {}", host.file());
    let producer = |key: &str| {
        let publish = format!("publish lport {key} set --socket {}", path.display());
        Dragonwire::start(&publish)
    };
    // a process that comes before the service waits for it
    let mut early = producer("early");
    let mut ids = Vec::new();
    for key in ["1", "2"] {
        let handed = listener.try_clone().unwrap();
        let mut service = Service::up(start_with_socket(handed, 1, &arguments));
        let beginning = format!("local ipc://{},", path.display());
        assert!(service.up.starts_with(&beginning), "{}", service.up);
        let mut subscriber = service.subscriber();
        ids.push(service.up.split_once("id ").unwrap().1.to_owned());
        let mut publish = producer(key);
        while key_of(&subscriber.line()) != key {}
        assert_eq!(publish.ended().status, Some(0));
        let status = format!("status --socket {}", path.display());
        assert_eq!(Dragonwire::start(&status).finish().output.len(), 1);
        service.stop();
        assert!(path.exists(), "the socket is systemd's");
    }
    assert_eq!(early.ended().status, Some(0));
    assert_eq!(ids[0], ids[1], "it stays the same over restarts");
    let other = UnixListener::bind(host.path("other")).unwrap();
    let mut other = Service::up(start_with_socket(other, 1, &arguments));
    assert!(!other.up.ends_with(&ids[0]), "and belongs to the socket");
    other.stop();
}

#[test]
fn an_abstract_socket_has_no_status_beside_it() {
    let host = Host::new();
    let name = format!("dragonwire-test-{}", host.place.path().display());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    let arguments = format!("publisher-service --config {}", host.file());
    let mut service = Service::up(start_with_socket(listener, 1, &arguments));
    assert!(service.up.starts_with(&format!("local ipc://@{name},")), "{}", service.up);
    let files = std::fs::read_dir(host.place.path()).unwrap().count();
    assert_eq!(files, 1, "the option file alone");
    service.stop();
}

#[test]
fn sockets_that_cannot_be_used_are_refused_when_handed_over() {
    let host = Host::new();
    let arguments = format!("publisher-service --config {}", host.file());
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let two = UnixListener::bind(host.path("two")).unwrap();
    let file = std::fs::File::open(host.file()).unwrap();
    for (socket, count, part) in [
        (OwnedFd::from(tcp), 1, "not a valid unix stream socket"),
        (OwnedFd::from(two), 2, "2 sockets are handed over"),
        (OwnedFd::from(file), 1, "is not a socket"),
    ] {
        let ended = start_with_socket(socket, count, &arguments).ended();
        assert_eq!((ended.status, ended.errors.len()), (Some(1), 1), "{ended:?}");
        assert!(ended.errors[0].contains(part), "{ended:?}");
    }
}

#[test]
fn systemd_is_told_how_the_service_is() {
    let host = Host::new();
    let abstract_name = format!("notify-{}", host.place.path().display());
    let path = host.path("notify");
    for at in [path.display().to_string(), format!("@{abstract_name}")] {
        let manager = match at.strip_prefix('@') {
            Some(name) => {
                UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap()
            }
            None => UnixDatagram::bind(&path).unwrap(),
        };
        manager.set_read_timeout(Some(DEADLINE)).unwrap();
        let next = || {
            let mut text = [0; 200];
            let octets = manager.recv(&mut text).unwrap();
            String::from_utf8(text[..octets].to_vec()).unwrap()
        };
        let file = host.file();
        let process =
            Dragonwire::start_with(&["publisher-service", "--config", &file], |command| {
                command.env("NOTIFY_SOCKET", &at);
            });
        assert_eq!(next(), "READY=1");
        let mut service = Service::up(process);
        service.process.signal(Signal::HUP);
        let reloading = next();
        let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(time.parse::<u64>().unwrap() > 0, "{reloading}");
        assert_eq!(next(), "READY=1");
        service.process.told("reloaded: ");
        service.stop();
        assert_eq!(next(), "STOPPING=1");
    }
    // nobody there is no fault of the service
    let file = host.file();
    for at in ["/no/such/socket", "vsock:2:1"] {
        let process =
            Dragonwire::start_with(&["publisher-service", "--config", &file], |command| {
                command.env("NOTIFY_SOCKET", at);
            });
        let mut service = Service::up(process);
        service.stop();
    }
}

#[test]
fn processes_keep_their_events_while_the_service_is_away() {
    let host = Host::new();
    let mut producer = host.producer();
    producer.write(&set("1"));
    let mut service = host.start("");
    let mut received = 0;
    let began = Instant::now();
    while received == 0 {
        received = host.status()["received"].as_u64().unwrap();
        assert!(began.elapsed() < DEADLINE);
    }
    service.stop();
    for key in ["2", "3"] {
        producer.write(&set(key));
    }
    let mut service = host.start("");
    let mut subscriber = service.subscriber();
    producer.write(&set("4"));
    let keys: Vec<_> = std::iter::from_fn(|| {
        let key = key_of(&subscriber.line());
        (key != "4").then_some(key)
    })
    .collect();
    println!("before the last: {keys:?}");
    producer.finish();
    service.stop();
    assert!(subscriber.line_within(Duration::ZERO).is_none_or(|line| line.contains("sync")));
}
