//! Peers that break the protocol: each is closed with a typed cause that names it, and nobody else
//! notices. The oracle of every test is a good peer beside it, of which every message arrives.

#[allow(dead_code, reason = "not every test needs all of it")]
mod peer;

use std::time::Instant;

use dragonwire::{
    DisconnectCause, Endpoint, EndpointState, Event, Message, Monitor, ProtocolError, PubSocket,
    PullSocket, PushSocket, SocketOptions, SocketType, SubSocket, Version,
};
use futures::StreamExt;
use peer::{
    Listener, MS, Peer, SIGNATURE, command, encode, ended, event, greeting, ping, property, ready,
    within,
};

/// A PULL socket with a good PUSH peer, and the bad ones that come.
struct Scene {
    pull: PullSocket,
    endpoint: Endpoint,
    monitor: Monitor,
    good: PushSocket,
    sent: u32,
    failed_handshakes: u64,
}

/// What became of a bad peer.
struct Attack {
    before_ready: bool,
    cause: DisconnectCause,
    /// What it was sent from the end of its script on.
    answer: Vec<u8>,
}

impl Attack {
    #[track_caller]
    fn violation(&self) -> &ProtocolError {
        match &self.cause {
            DisconnectCause::Protocol(error) => error,
            other => panic!("not a violation: {other:?}"),
        }
    }

    /// Whether an ERROR command stands at the end of what it was sent.
    fn was_told(&self) -> bool {
        let Some(at) = self.answer.windows(6).position(|octets| octets == b"\x05ERROR") else {
            return false;
        };
        let reason = &self.answer[at + 6..];
        let header = &self.answer[..at];
        assert_eq!(reason.len(), 1 + usize::from(reason[0]), "the reason's length");
        assert!(reason.len() > 1, "a reason");
        assert!(header.ends_with(&[4, reason.len() as u8 + 6]) || reason.len() > 249);
        true
    }
}

impl Scene {
    async fn new(options: SocketOptions) -> Self {
        let pull = PullSocket::with_options(options).unwrap();
        let monitor = pull.monitor();
        let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
        let good = PushSocket::new();
        good.connect(&endpoint).await.unwrap();
        let mut scene = Self { pull, endpoint, monitor, good, sent: 0, failed_handshakes: 0 };
        scene.good_goes_on().await;
        scene
    }

    /// The good peer sends messages; each arrives, in order. What bad ones that turned out to speak
    /// ZMTP 1.0 may have sent is passed over.
    async fn good_goes_on(&mut self) {
        for i in self.sent..self.sent + 50 {
            within("room", self.good.send(["good", i.to_string().as_str()])).await.unwrap();
        }
        for i in self.sent..self.sent + 50 {
            loop {
                let received = within("a good message", self.pull.recv()).await;
                let received = received.expect("recv gives no error");
                if received.topic() == b"good" {
                    assert_eq!(received, ["good", i.to_string().as_str()].into());
                    break;
                }
            }
        }
        self.sent += 50;
    }

    /// A bad peer says all of `script`, as far as it is let, while the good one goes on.
    async fn attack(&mut self, what: &str, mut peer: Peer, script: &[u8]) -> Attack {
        let address = peer.remote();
        let (answer, ()) = tokio::join!(
            async {
                drop(peer.try_write(script).await);
                peer.read_to_end().await
            },
            self.good_goes_on()
        );
        let (before_ready, cause) = ended(&mut self.monitor, address).await;
        self.failed_handshakes += u64::from(before_ready);
        assert_eq!(self.pull.stats().failed_handshakes, self.failed_handshakes, "{what}");
        self.good_goes_on().await;
        assert_eq!(self.pull.stats().incoming.received, u64::from(self.sent), "{what}");
        Attack { before_ready, cause, answer }
    }

    async fn attack_before_ready(&mut self, what: &str, script: &[u8]) -> Attack {
        let peer = Peer::connect(&self.endpoint).await;
        let attack = self.attack(what, peer, script).await;
        assert!(attack.before_ready, "{what}: before READY");
        attack
    }

    async fn attack_after_ready(&mut self, what: &str, script: &[u8]) -> Attack {
        let peer = Peer::join(&self.endpoint, Version::V3_1, "PUSH").await;
        let attack = self.attack(what, peer, script).await;
        assert!(!attack.before_ready, "{what}: after READY");
        assert_eq!(attack.answer, b"", "{what}");
        attack
    }

    /// The books at the end.
    async fn end(self) {
        let stats = self.pull.stats();
        assert_eq!(stats.incoming.delivered, u64::from(self.sent));
        assert_eq!(stats.failed_handshakes, self.failed_handshakes);
        let good = stats.peers.iter().filter(|peer| peer.peer.is_some()).count();
        assert_eq!(good, 1, "the good peer is still there, and nobody else");
    }
}

/// A frame header of the long form, with that flags octet.
fn header(flags: u8, length: u64) -> Vec<u8> {
    [&[flags | 2][..], &length.to_be_bytes()].concat()
}

const HUGE: [u64; 3] = [1 << 40, 1 << 63, u64::MAX];

#[tokio::test]
async fn frames_beyond_any_size_after_ready() {
    let mut scene = Scene::new(SocketOptions::new()).await;
    for announced in HUGE {
        for flags in [0, 1, 4] {
            let what = format!("{announced} octets, flags {flags}");
            let script = [header(flags, announced), vec![7; 1000]].concat();
            let attack = scene.attack_after_ready(&what, &script).await;
            let limit = 64 << 20;
            assert_eq!(attack.violation(), &ProtocolError::FrameTooLarge { announced, limit });
        }
    }
    scene.end().await;
}

#[tokio::test]
async fn frames_beyond_any_size_before_ready() {
    for (options, expected) in [
        (SocketOptions::new(), None),
        (SocketOptions::new().max_message_size(None), None),
        (SocketOptions::new().max_message_size(Some(1000)), Some(1000)),
    ] {
        let mut scene = Scene::new(options).await;
        for announced in HUGE {
            for flags in [4, 0] {
                let what = format!("{announced} octets, flags {flags}");
                let script = [greeting(1, "NULL"), header(flags, announced)].concat();
                let attack = scene.attack_before_ready(&what, &script).await;
                let expected = match expected {
                    None => ProtocolError::HandshakeTooLarge { limit: 8192 },
                    Some(limit) => ProtocolError::FrameTooLarge { announced, limit },
                };
                assert_eq!(attack.violation(), &expected);
                assert!(attack.was_told(), "{what}");
            }
        }
        scene.end().await;
    }
}

#[tokio::test]
async fn frames_beyond_any_size_from_old_peers() {
    let mut scene = Scene::new(SocketOptions::new()).await;
    for announced in HUGE {
        // 1.0 counts the flags octet
        let long = |flags: u8| [&[0xff][..], &announced.to_be_bytes(), &[flags]].concat();
        let peer = Peer::join(&scene.endpoint, Version::V1_0, "PUSH").await;
        let attack = scene.attack("a frame of 1.0", peer, &long(0)).await;
        let limit = 64 << 20;
        let expected = ProtocolError::FrameTooLarge { announced: announced - 1, limit };
        assert_eq!(attack.violation(), &expected);
        let attack = scene.attack_before_ready("an identity of 1.0", &long(0)).await;
        assert_eq!(attack.violation(), &ProtocolError::HandshakeTooLarge { limit: 8192 });
        let peer = Peer::join(&scene.endpoint, Version::V2_0, "PUSH").await;
        let attack = scene.attack("a frame of 2.0", peer, &header(0, announced)).await;
        assert_eq!(attack.violation(), &ProtocolError::FrameTooLarge { announced, limit });
        let identity = [&SIGNATURE[..], &[1, 8], &header(0, announced)].concat();
        let attack = scene.attack_before_ready("an identity of 2.0", &identity).await;
        assert_eq!(attack.violation(), &ProtocolError::HandshakeTooLarge { limit: 8192 });
    }
    let peer = Peer::join(&scene.endpoint, Version::V1_0, "PUSH").await;
    let attack = scene.attack("a frame of 1.0 without flags", peer, &[0, 0]).await;
    assert_eq!(attack.violation(), &ProtocolError::EmptyOldFrame);
    scene.end().await;
}

/// Without a limit a frame of a terabyte may come, but costs nothing until it does.
#[tokio::test]
async fn an_unlimited_size_is_not_allocated() {
    let mut scene = Scene::new(SocketOptions::new().max_message_size(None)).await;
    let _alone = MEMORY.lock().await;
    let before = resident();
    let mut peers = Vec::new();
    for _ in 0..20 {
        let mut peer = Peer::join(&scene.endpoint, Version::V3_1, "PUSH").await;
        peer.write(&header(0, 1 << 40)).await;
        peer.write(&[7; 1000]).await;
        peers.push(peer);
        scene.good_goes_on().await;
    }
    assert!(resident() < before + (100 << 20));
    for peer in peers {
        let address = peer.remote();
        drop(peer);
        assert_eq!(ended(&mut scene.monitor, address).await, (false, DisconnectCause::PeerClosed));
    }
    for announced in [1 << 63, u64::MAX] {
        let attack = scene.attack_after_ready("no limit", &header(0, announced)).await;
        let error = attack.violation();
        let expected =
            matches!(error, ProtocolError::FrameTooLarge { announced: a, .. } if *a == announced);
        assert!(expected, "{error}");
    }
    scene.end().await;
}

/// For tests that look at the process's memory: one at a time.
static MEMORY: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Octets of memory that this process has.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test]
async fn ready_with_a_socket_type_that_does_not_fit() {
    let mut scene = Scene::new(SocketOptions::new()).await;
    for kind in ["PUB", "PULL", "XYZ", "push", "", &"X".repeat(255)] {
        let script = [greeting(1, "NULL"), ready(kind)].concat();
        let attack = scene.attack_before_ready(kind, &script).await;
        let ProtocolError::SocketTypeMismatch { ours, theirs } = attack.violation() else {
            panic!("{:?}", attack.violation());
        };
        assert_eq!(*ours, SocketType::Pull);
        assert!(theirs.len() <= 32 && kind.starts_with(theirs.as_str()), "{theirs}");
        assert!(attack.was_told(), "{kind}");
    }
    // without one it is accepted, as by libzmq
    let mut peer = Peer::connect(&scene.endpoint).await;
    peer.write(&[greeting(1, "NULL"), command("READY", b"")].concat()).await;
    peer.send(&["x"]).await;
    assert_eq!(within("a message", scene.pull.recv()).await.unwrap(), "x".into());
}

#[tokio::test]
async fn another_mechanism_in_the_greeting() {
    let mut scene = Scene::new(SocketOptions::new()).await;
    for name in ["PLAIN", "CURVE", "GSSAPI", "null", "NULLX", "", "NULL\0X", "\u{7f}\n"] {
        // as PLAIN would go on, and as NULL would
        for next in [command("HELLO", b"\x05admin\x06secret"), ready("PUSH"), Vec::new()] {
            let script = [greeting(1, name), next].concat();
            let attack = scene.attack_before_ready(name, &script).await;
            let theirs = name.escape_default().to_string().replace("\\u{0}", "\\x00");
            let theirs = theirs.replace("\\u{7f}", "\\x7f");
            let expected = ProtocolError::MechanismMismatch { ours: "NULL", theirs };
            assert_eq!(attack.violation(), &expected);
        }
    }
    scene.end().await;
}

#[tokio::test]
async fn other_commands_and_messages_where_ready_should_be() {
    let mut scene = Scene::new(SocketOptions::new()).await;
    let wrong: [(&str, Vec<u8>); 9] = [
        ("HELLO", command("HELLO", b"\x05admin\x06secret")),
        ("PING", ping(0, b"")),
        ("SUBSCRIBE", command("SUBSCRIBE", b"")),
        ("ready", command("ready", &property("Socket-Type", b"PUSH"))),
        ("a message", encode(Version::V3_1, &["hello"])),
        ("an empty message", encode(Version::V3_1, &[""])),
        ("frames of a message", encode(Version::V3_1, &["a", "b", "c"])),
        ("an empty command", vec![4, 0]),
        ("a name beyond the body", vec![4, 1, 5]),
    ];
    for (what, octets) in wrong {
        let script = [greeting(1, "NULL"), octets, ready("PUSH")].concat();
        let attack = scene.attack_before_ready(what, &script).await;
        let error = attack.violation();
        let expected = matches!(error, ProtocolError::UnexpectedCommand { expected: "READY", .. });
        assert!(expected, "{what}: {error}");
        assert!(attack.was_told(), "{what}");
    }
    scene.end().await;
}

#[tokio::test]
async fn malformed_ready() {
    let mut scene = Scene::new(SocketOptions::new()).await;
    let kind = property("Socket-Type", b"PUSH");
    let bad: [(&str, Vec<u8>); 4] = [
        ("a name cut off", [&kind[..], b"\x09X-a"].concat()),
        ("a length cut off", [&kind[..], b"\x03X-a\0\0"].concat()),
        ("a value cut off", [&kind[..], b"\x03X-a\0\0\0\x05abcd"].concat()),
        ("a value of 4 GiB", [&kind[..], b"\x03X-a\xff\xff\xff\xffabcd"].concat()),
    ];
    for (what, properties) in bad {
        let script = [greeting(1, "NULL"), command("READY", &properties)].concat();
        let attack = scene.attack_before_ready(what, &script).await;
        let error = attack.violation();
        let expected = matches!(error, ProtocolError::MalformedCommand { command: "READY", .. });
        assert!(expected, "{what}: {error}");
        assert!(attack.was_told(), "{what}");
    }
    scene.end().await;
}

#[tokio::test]
async fn ready_beyond_8_kib() {
    let mut scene = Scene::new(SocketOptions::new()).await;
    let with_padding = |padding: usize| {
        let padding = property("X-padding", &vec![b'x'; padding]);
        command("READY", &[property("Socket-Type", b"PUSH"), padding].concat())
    };
    for padding in [8192, 9000, 1 << 20] {
        let script = [greeting(1, "NULL"), with_padding(padding)].concat();
        let attack = scene.attack_before_ready("a large READY", &script).await;
        assert_eq!(attack.violation(), &ProtocolError::HandshakeTooLarge { limit: 8192 });
        assert!(attack.was_told());
    }
    let mut peer = Peer::connect(&scene.endpoint).await;
    peer.write(&[greeting(1, "NULL"), with_padding(8000)].concat()).await;
    peer.send(&["x"]).await;
    assert_eq!(within("a message", scene.pull.recv()).await.unwrap(), "x".into());
}

#[tokio::test]
async fn malformed_ping_and_error() {
    let mut scene = Scene::new(SocketOptions::new()).await;
    for (command_name, data) in
        [("PING", &b""[..]), ("PING", b"\0"), ("ERROR", b""), ("ERROR", b"\x05abc")]
    {
        let attack = scene.attack_after_ready(command_name, &command(command_name, data)).await;
        let error = attack.violation();
        let expected = matches!(error, ProtocolError::MalformedCommand { command, .. } if *command == command_name);
        assert!(expected, "{error}");
    }
    scene.end().await;
}

#[tokio::test]
async fn an_error_command_is_understood() {
    let mut scene = Scene::new(SocketOptions::new()).await;
    let error = command("ERROR", b"\x0aI quit: \xffz");
    let expected = ProtocolError::PeerError { reason: "I quit: \\xffz".to_owned() };
    let script = [greeting(1, "NULL"), error.clone()].concat();
    let attack = scene.attack_before_ready("ERROR for READY", &script).await;
    assert_eq!(attack.violation(), &expected);
    assert!(!attack.was_told(), "an ERROR is not answered with another one");
    let attack = scene.attack_after_ready("ERROR", &error).await;
    assert_eq!(attack.violation(), &expected);
    scene.end().await;
}

#[tokio::test]
async fn messages_larger_than_allowed() {
    let mut scene = Scene::new(SocketOptions::new().max_message_size(Some(1000))).await;
    let message = |sizes: &[usize]| {
        let frames: Vec<_> = sizes.iter().map(|size| vec![7; *size]).collect();
        encode(Version::V3_1, &frames)
    };
    let attack = scene.attack_after_ready("one frame", &message(&[1001])).await;
    let expected = ProtocolError::FrameTooLarge { announced: 1001, limit: 1000 };
    assert_eq!(attack.violation(), &expected);
    for (sizes, frames) in [(&[600, 401][..], 2), (&[400, 300, 0, 300, 1], 5), (&[1000, 1], 2)] {
        let attack = scene.attack_after_ready("several frames", &message(sizes)).await;
        let expected = ProtocolError::MessageTooLarge { frames, limit: 1000 };
        assert_eq!(attack.violation(), &expected);
    }
    let mut peer = Peer::join(&scene.endpoint, Version::V3_1, "PUSH").await;
    for sizes in [&[1000][..], &[600, 400], &[0, 999, 1, 0]] {
        peer.write(&message(sizes)).await;
        let received = within("a message", scene.pull.recv()).await.unwrap();
        let lengths: Vec<_> = received.frames().map(<[u8]>::len).collect();
        assert_eq!(lengths, sizes, "just as large as allowed");
    }
}

/// Commands are no part of the message that they come in the middle of.
#[tokio::test]
async fn commands_inside_a_message_do_not_count_for_its_size() {
    let mut scene = Scene::new(SocketOptions::new().max_message_size(Some(1000))).await;
    let mut peer = Peer::join(&scene.endpoint, Version::V3_1, "PUSH").await;
    let frames = [vec![7; 990], vec![7; 10]];
    let octets = encode(Version::V3_1, &frames);
    let (first, last) = octets.split_at(9 + 990);
    for _ in 0..2 {
        peer.write(first).await;
        for _ in 0..100 {
            peer.write(&ping(0, b"0123456789")).await;
        }
        peer.write(last).await;
        tokio::select! {
            received = within("a message", scene.pull.recv()) => {
                assert_eq!(received.unwrap(), Message::from_frames(frames.clone()));
            }
            (_, cause) = ended(&mut scene.monitor, peer.remote()) => panic!("{cause}"),
        }
    }
}

#[tokio::test]
async fn millions_of_empty_frames_in_one_message() {
    let mut scene = Scene::new(SocketOptions::new()).await;
    let script = [1, 0].repeat(5_000_000);
    let attack = scene.attack_after_ready("empty MORE frames", &script).await;
    assert_eq!(attack.violation(), &ProtocolError::TooManyFrames { limit: 65_536 });
    scene.end().await;

    let mut scene = Scene::new(SocketOptions::new().max_frames(10)).await;
    let attack = scene.attack_after_ready("11 frames", &[1, 0].repeat(11)).await;
    assert_eq!(attack.violation(), &ProtocolError::TooManyFrames { limit: 10 });
    let mut peer = Peer::join(&scene.endpoint, Version::V3_1, "PUSH").await;
    peer.write(&[[1, 0].repeat(9), vec![0, 0]].concat()).await;
    let received = within("a message", scene.pull.recv()).await.unwrap();
    assert_eq!(received.frames().count(), 10, "just as many as allowed");
}

/// A message that never ends with commands in the middle of it: they must not pile up.
#[tokio::test]
async fn commands_without_end_inside_a_message_are_not_kept() {
    const FLOOD: usize = 256 << 20;
    let options = SocketOptions::new().max_message_size(Some(1 << 20));
    let mut scene = Scene::new(options).await;
    let _alone = MEMORY.lock().await;
    let before = resident();
    let mut peer = Peer::join(&scene.endpoint, Version::V3_1, "PUSH").await;
    peer.write(&encode(Version::V3_1, &["begun", ""])[..7]).await;
    let commands = command("NOBODY", &vec![7; 60_000]).repeat(64);
    for _ in 0..FLOOD / commands.len() {
        // to be closed for it is fine as well
        if peer.try_write(&commands).await.is_err() {
            break;
        }
    }
    scene.good_goes_on().await;
    let grown = resident().saturating_sub(before) >> 20;
    assert!(grown < 150, "{grown} MiB more of memory for a message of 5 octets");
}

/// Whatever they are taken for, and be it ZMTP 1.0: no harm is done.
#[tokio::test]
async fn garbage() {
    let options = SocketOptions::new().handshake_timeout(Some(MS(300)));
    let mut scene = Scene::new(options).await;
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    for round in 0..60 {
        let mut octets: Vec<u8> = (0..4096).map(|_| random()).collect();
        match round % 4 {
            0 => octets[..10].copy_from_slice(&SIGNATURE),
            1 => octets[..64].copy_from_slice(&greeting(1, "NULL")),
            2 => {
                let whole = [greeting(1, "NULL"), ready("PUSH")].concat();
                octets[..whole.len()].copy_from_slice(&whole);
            }
            _ => {}
        }
        let mut peer = Peer::connect(&scene.endpoint).await;
        drop(peer.try_write(&octets).await);
        let address = peer.remote();
        drop(peer);
        scene.good_goes_on().await;
        let (before_ready, _) = ended(&mut scene.monitor, address).await;
        scene.failed_handshakes += u64::from(before_ready);
    }
    let stats = scene.pull.stats();
    assert_eq!(stats.failed_handshakes, scene.failed_handshakes);
    assert_eq!(stats.connections - 1, 60 - scene.failed_handshakes, "all others had a handshake");
}

#[tokio::test]
async fn another_protocol() {
    let options = SocketOptions::new().handshake_timeout(Some(MS(200)));
    let mut scene = Scene::new(options).await;
    // its first octet is the length of an identity of 1.0, longer than the request
    let request = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
    let attack = scene.attack_before_ready("a request of HTTP", request).await;
    assert_eq!(attack.cause, DisconnectCause::HandshakeTimeout(MS(200)));
    let banner = b"\xff\xfb\x01\xff\xfb\x03\xff\xfd\x18\xff\xfd\x1f";
    let attack = scene.attack_before_ready("options of telnet", banner).await;
    assert_ne!(attack.cause, DisconnectCause::PeerClosed);
    scene.end().await;
}

#[tokio::test]
async fn silence_at_any_point_of_the_handshake() {
    let options = SocketOptions::new().handshake_timeout(Some(MS(200)));
    let mut scene = Scene::new(options).await;
    let whole = [greeting(1, "NULL"), ready("PUSH")].concat();
    let begun = Instant::now();
    let mut peers = Vec::new();
    for octets in [0, 1, 9, 10, 11, 12, 63, 64, 65, 66, 70, whole.len() - 1] {
        let mut peer = Peer::connect(&scene.endpoint).await;
        peer.write(&whole[..octets]).await;
        peers.push((octets, peer));
    }
    let mut ends = peers.len();
    event("all timeouts", &mut scene.monitor, |event| match event {
        Event::HandshakeFailed { peer, cause } => {
            let (octets, _) = peers.iter().find(|(_, other)| other.address == peer.remote).unwrap();
            assert_eq!(cause, DisconnectCause::HandshakeTimeout(MS(200)), "after {octets} octets");
            ends -= 1;
            (ends == 0).then_some(())
        }
        _ => None,
    })
    .await;
    assert!(begun.elapsed() >= MS(200));
    scene.failed_handshakes += peers.len() as u64;
    scene.good_goes_on().await;
    scene.end().await;
}

/// The time counts for the handshake as a whole: an octet now and then does not extend it.
#[tokio::test]
async fn a_handshake_that_drips() {
    let options = SocketOptions::new().handshake_timeout(Some(MS(300)));
    let mut scene = Scene::new(options).await;
    let mut peer = Peer::connect(&scene.endpoint).await;
    let begun = Instant::now();
    let mut pace = tokio::time::interval(MS(20));
    let drip = async {
        for octet in [greeting(1, "NULL"), ready("PUSH")].concat() {
            pace.tick().await;
            if peer.try_write(&[octet]).await.is_err() {
                return;
            }
        }
        panic!("{:?} for a handshake within 300 ms", begun.elapsed());
    };
    let cause = event("a timeout", &mut scene.monitor, |event| match event {
        Event::HandshakeFailed { cause, .. } => Some(cause),
        _ => None,
    });
    let ((), cause) = tokio::join!(drip, cause);
    assert_eq!(cause, DisconnectCause::HandshakeTimeout(MS(300)));
    scene.failed_handshakes += 1;
    scene.good_goes_on().await;
    scene.end().await;
}

#[tokio::test]
async fn too_many_half_open_connections_cost_the_oldest_its_place() {
    let mut scene = Scene::new(SocketOptions::new().max_handshakes(3)).await;
    let mut waiting = std::collections::VecDeque::new();
    let accepted = async |scene: &mut Scene| {
        let mut peer = Peer::connect(&scene.endpoint).await;
        // its place is taken when it is answered
        assert_eq!(peer.read(10).await, SIGNATURE);
        peer
    };
    for _ in 0..3 {
        waiting.push_back(accepted(&mut scene).await);
    }
    for _ in 0..5 {
        waiting.push_back(accepted(&mut scene).await);
        let mut oldest = waiting.pop_front().unwrap();
        let end = ended(&mut scene.monitor, oldest.remote()).await;
        assert_eq!(end, (true, DisconnectCause::TooManyHandshakes));
        assert_eq!(oldest.read_to_end().await, b"");
        scene.failed_handshakes += 1;
        scene.good_goes_on().await;
    }
    // those with a place can still make use of it
    for mut peer in waiting {
        peer.write(&[greeting(1, "NULL"), ready("PUSH")].concat()).await;
        peer.send(&["in earnest"]).await;
        let received = within("a message", scene.pull.recv()).await.unwrap();
        assert_eq!(received, "in earnest".into());
    }
    // and whose handshake is through takes none
    scene.good_goes_on().await;
    assert_eq!(scene.pull.stats().failed_handshakes, 5);
}

/// Subscribers that break the protocol do not disturb a good one.
#[tokio::test]
async fn bad_subscribers() {
    let options = SocketOptions::new().max_subscription_bytes(10_000);
    let publisher = PubSocket::with_options(options).unwrap();
    let mut monitor = publisher.monitor();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
    let mut good = SubSocket::new();
    good.subscribe("").unwrap();
    good.connect(&endpoint).await.unwrap();
    within("the subscription", good.ready()).await.unwrap();

    let topics: Vec<u8> =
        (0..200).flat_map(|i| command("SUBSCRIBE", format!("topic {i}").as_bytes())).collect();
    let old_topics: Vec<u8> =
        (0..200).flat_map(|i| encode(Version::V3_1, &[format!("\x01topic {i}")])).collect();
    let too_many = ProtocolError::TooManySubscriptions { limit: 10_000 };
    let huge = ProtocolError::FrameTooLarge { announced: 1 << 40, limit: 64 << 20 };
    let attacks = [
        (topics, too_many.clone()),
        (old_topics, too_many.clone()),
        (command("SUBSCRIBE", &[7; 20_000]), too_many),
        (header(4, 1 << 40), huge),
    ];
    let mut sent = 0u32;
    for (script, expected) in attacks {
        let mut bad = Peer::join(&endpoint, Version::V3_1, "SUB").await;
        drop(bad.try_write(&script).await);
        for i in sent..sent + 50 {
            publisher.send(i.to_string()).await.unwrap();
        }
        let end = ended(&mut monitor, bad.remote()).await;
        assert_eq!(end, (false, DisconnectCause::Protocol(expected)));
        for i in sent + 50..sent + 100 {
            publisher.send(i.to_string()).await.unwrap();
        }
        for i in sent..sent + 100 {
            let received = within("a message", good.recv()).await.unwrap();
            assert_eq!(received, i.to_string().into());
        }
        sent += 100;
    }
    // messages from a subscriber are of no use, but no violation
    let mut odd = Peer::join(&endpoint, Version::V3_1, "SUB").await;
    odd.send(&["hello", "publisher"]).await;
    odd.send(&[""]).await;
    odd.subscribe("x").await;
    within("a subscription", publisher.wait_for_subscribers("x", 2)).await.unwrap();
    assert_eq!(publisher.stats().incoming.dropped.get(dragonwire::DropReason::Unexpected), 2);
    assert_eq!(publisher.stats().failed_handshakes, 0);
}

/// Who connects to a peer that breaks the protocol connects again, and is told why it had to.
#[tokio::test]
async fn a_connected_endpoint_outlives_violations() {
    let options =
        SocketOptions::new().reconnect_interval(MS(5)).reconnect_interval_max(Some(MS(20)));
    let push = PushSocket::with_options(options).unwrap();
    let mut monitor = push.monitor();
    let mut states = push.endpoint_states();
    let listener = Listener::tcp().await;
    let good = Listener::tcp().await;
    push.connect(listener.endpoint()).await.unwrap();

    let refuse =
        |reason: &str| command("ERROR", &[&[reason.len() as u8], reason.as_bytes()].concat());
    let scripts: [(Vec<u8>, ProtocolError); 3] = [
        (
            greeting(1, "PLAIN"),
            ProtocolError::MechanismMismatch { ours: "NULL", theirs: "PLAIN".to_owned() },
        ),
        (
            [greeting(1, "NULL"), ready("SUB")].concat(),
            ProtocolError::SocketTypeMismatch { ours: SocketType::Push, theirs: "SUB".to_owned() },
        ),
        (
            [greeting(1, "NULL"), refuse("not you")].concat(),
            ProtocolError::PeerError { reason: "not you".to_owned() },
        ),
    ];
    push.send("kept").await.unwrap();
    for (i, (script, expected)) in scripts.into_iter().enumerate() {
        let mut bad = listener.accept().await;
        bad.write(&script).await;
        let expected = DisconnectCause::Protocol(expected);
        let cause = event("a failed handshake", &mut monitor, |event| match event {
            Event::HandshakeFailed { peer, cause } => {
                assert_eq!((peer.accepted, &peer.endpoint), (false, &listener.endpoint()));
                Some(cause)
            }
            _ => None,
        })
        .await;
        assert_eq!(cause, expected);
        let retry = event("a retry", &mut monitor, |event| match event {
            Event::Retry { endpoint, cause, attempt, .. } => Some((endpoint, cause, attempt)),
            _ => None,
        })
        .await;
        assert_eq!(retry, (listener.endpoint(), expected.clone(), i as u32 + 2));
        within("the state of the endpoint", async {
            while let Some(status) = states.next().await {
                if let EndpointState::Backoff { cause, .. } = status.state {
                    return assert_eq!(cause, expected);
                }
            }
        })
        .await;
        assert_eq!(push.stats().failed_handshakes, i as u64 + 1);
    }
    let mut peer = listener.accept().await;
    peer.shake(Version::V3_1, "PULL").await;
    assert_eq!(peer.message().await, [b"kept"]);
    // a violation after READY, with a good endpoint beside it
    push.connect(good.endpoint()).await.unwrap();
    let mut beside = good.accept().await;
    beside.shake(Version::V3_1, "PULL").await;
    peer.write(&command("PING", b"")).await;
    let cause = event("an end", &mut monitor, |event| match event {
        Event::Disconnected { cause, .. } => Some(cause),
        _ => None,
    })
    .await;
    assert!(matches!(cause, DisconnectCause::Protocol(ProtocolError::MalformedCommand { .. })));
    let mut again = listener.accept().await;
    again.shake(Version::V3_1, "PULL").await;
    for i in 0..100 {
        push.send(i.to_string()).await.unwrap();
    }
    let mut received = Vec::new();
    for _ in 0..50 {
        received.extend([again.message().await, beside.message().await].concat());
    }
    received.sort_by_key(|frame| String::from_utf8_lossy(frame).parse::<u32>().unwrap());
    let expected: Vec<_> = (0..100).map(|i| i.to_string().into_bytes()).collect();
    assert_eq!(received, expected);
}
