//! The programs that stand for libzmq elsewhere do what they say.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use dragonwire::{PubSocket, PushSocket, SocketOptions};
use dragonwire_interop::libzmq::{Context, SocketType};
use dragonwire_interop::place::{Place, Transport};
use dragonwire_interop::process::Process;
use dragonwire_interop::side::texts;
use dragonwire_interop::within;

const LINES: &str = env!("CARGO_BIN_EXE_libzmq_lines");
const PEER: &str = env!("CARGO_BIN_EXE_libzmq_peer");

/// A throughput peer that is killed if the test ends early.
struct Peer(Child);

impl Peer {
    fn start(arguments: &[&str]) -> Self {
        let command = &mut Command::new(PEER);
        let command = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(command.spawn().expect("the peer's process"))
    }

    /// Where it listens or connects to.
    fn endpoint(&mut self) -> String {
        let mut line = String::new();
        let stderr = self.0.stderr.as_mut().expect("it is piped");
        BufReader::new(stderr).read_line(&mut line).unwrap();
        line.trim().split(' ').nth(1).expect("listening ENDPOINT").to_owned()
    }

    /// How many messages it says it has sent or received.
    fn messages(mut self) -> u64 {
        let mut line = String::new();
        let stdout = self.0.stdout.as_mut().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let rest = line.strip_prefix("{\"messages\":").expect(&line);
        let (messages, rest) = rest.split_once(",\"seconds\":").expect(&line);
        let (seconds, cpu) = rest.split_once(",\"cpu_seconds\":").expect(&line);
        assert!(seconds.parse::<f64>().unwrap() > 0.0, "{line}");
        assert!(cpu.trim_end_matches("}\n").parse::<f64>().unwrap() > 0.0, "{line}");
        messages.parse().unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // both fail only when it has ended
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_throughput_peers_count() {
    for (receiver, sender) in [("pull", "push"), ("sub", "pub")] {
        for transport in [Transport::Tcp, Transport::Ipc] {
            let place = Place::new(transport);
            let mut arguments =
                vec![receiver, "--endpoint", place.endpoint(), "--bind", "--count", "5000"];
            let mut receiver = Peer::start(&arguments);
            let endpoint = receiver.endpoint();
            arguments = vec![sender, "--endpoint", &endpoint, "--connect", "--count", "5000"];
            if sender == "pub" {
                arguments.extend(["--topic", "t", "--no-drop"]);
            }
            arguments.extend(["--size", "100"]);
            let sender = Peer::start(&arguments);
            assert_eq!(receiver.messages(), 5000);
            assert_eq!(sender.messages(), 5000);
        }
    }
}

#[test]
fn a_throughput_peer_gives_up() {
    let arguments =
        ["pull", "--endpoint", "tcp://127.0.0.1:*", "--bind", "--count", "10", "--idle", "200"];
    let mut pull = Peer::start(&arguments);
    let push = Context::new().socket(SocketType::Push);
    push.connect(&pull.endpoint()).unwrap();
    for _ in 0..3 {
        push.send(["x"]).unwrap();
    }
    assert_eq!(pull.messages(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_throughput_peers_work_with_dragonwire() {
    let arguments = ["pull", "--endpoint", "tcp://127.0.0.1:*", "--bind", "--count", "5000"];
    let mut pull = Peer::start(&arguments);
    let push = PushSocket::new();
    push.connect(pull.endpoint()).await.unwrap();
    for _ in 0..5000 {
        push.send("x").await.unwrap();
    }
    assert_eq!(pull.messages(), 5000);

    let publisher = PubSocket::with_options(SocketOptions::new().send_hwm(0)).unwrap();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap().to_string();
    let arguments = ["sub", "--endpoint", &endpoint, "--connect", "--count", "5000"];
    let sub = Peer::start(&arguments);
    within("a subscriber", publisher.wait_for_subscribers("", 1)).await.unwrap();
    for _ in 0..5000 {
        publisher.publish("t", "x").await.unwrap();
    }
    assert_eq!(sub.messages(), 5000);
}

#[test]
fn the_peer_of_lines_obeys() {
    let mut pull = Process::start(LINES, &["pull", "--bind", "tcp://127.0.0.1:*"]);
    let mut push = Process::start(LINES, &["push", "--connect", pull.endpoint()]);
    assert!(push.send(&["a", "", "\u{0}\n"]));
    assert_eq!(pull.recv(), texts(&["a", "", "\u{0}\n"]));
    pull.stop();
    assert!(push.send(&["b"]));
    pull.go_on();
    assert_eq!(pull.recv(), texts(&["b"]));
    push.finish();
    pull.kill();

    let mut publisher = Process::start(LINES, &["xpub", "--bind", "tcp://127.0.0.1:*"]);
    let mut sub = Process::start(LINES, &["sub", "--connect", publisher.endpoint()]);
    sub.subscribe("t");
    assert_eq!(publisher.recv(), texts(&["\u{1}t"]));
    assert!(publisher.send(&["t", "x"]));
    assert_eq!(sub.recv(), texts(&["t", "x"]));
}
