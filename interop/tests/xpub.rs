//! XPUB: the same scenario, once with libzmq's and once with dragonwire's, tells its application the
//! same and sends the same.

use dragonwire::SocketType::{self, Sub, XPub, XSub};
use dragonwire::{Message, SocketOptions, XPubSocket, XPubVerbose};
use dragonwire_interop::libzmq::{Context, Opt};
use dragonwire_interop::side::{Dragon, Frames, Maker, Side, cancellation, subscription, texts};
use dragonwire_interop::{until, within};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Unique,
    Verbose,
    Verboser,
    Manual,
    Invert,
}

const MODES: [Mode; 5] = [Mode::Unique, Mode::Verbose, Mode::Verboser, Mode::Manual, Mode::Invert];

fn xpub(maker: Maker, context: &Context, mode: Mode, welcome: Option<&str>) -> Side {
    match maker {
        Maker::Libzmq => {
            let socket = context.socket(XPub);
            match mode {
                Mode::Unique => Ok(()),
                Mode::Verbose => socket.set(Opt::XPubVerbose, 1),
                Mode::Verboser => socket.set(Opt::XPubVerboser, 1),
                Mode::Manual => socket.set(Opt::XPubManual, 1),
                Mode::Invert => socket.set(Opt::InvertMatching, 1),
            }
            .unwrap();
            if let Some(welcome) = welcome {
                socket.set_welcome_message(welcome.as_bytes()).unwrap();
            }
            Side::Libzmq(socket)
        }
        Maker::Dragonwire => {
            let options = SocketOptions::new();
            let mut options = match mode {
                Mode::Unique => options,
                Mode::Verbose => options.xpub_verbose(XPubVerbose::Subscriptions),
                Mode::Verboser => options.xpub_verbose(XPubVerbose::All),
                Mode::Manual => options.xpub_manual(true),
                Mode::Invert => options.invert_matching(true),
            };
            if let Some(welcome) = welcome {
                options = options.xpub_welcome_message(Message::from(welcome));
            }
            Side::Dragonwire(Dragon::new(XPub, options))
        }
    }
}

/// Everything an application gets to see, in order.
type Log = Vec<(&'static str, Frames)>;

/// What the XPUB's application receives until the peer's marker, which its socket passes on in
/// order. In manual mode it grants each subscription under another name.
async fn note(log: &mut Log, xpub: &mut Side, peer: &Side, manual: bool) {
    peer.send(&texts(&["marker"])).await;
    loop {
        let told = xpub.recv().await;
        if told == texts(&["marker"]) {
            break;
        }
        if manual && told.len() == 1 && matches!(told[0].first(), Some(0 | 1)) {
            decide(xpub, &told[0]);
        }
        log.push(("xpub", told));
    }
}

fn decide(xpub: &Side, told: &[u8]) {
    let granted = [b"granted-", &told[1..]].concat();
    match (xpub, told[0]) {
        (Side::Libzmq(socket), 1) => socket.subscribe(granted).unwrap(),
        (Side::Libzmq(socket), _) => socket.unsubscribe(granted).unwrap(),
        (Side::Dragonwire(Dragon::XPub(socket)), 1) => {
            socket.subscribe(granted).unwrap();
        }
        (Side::Dragonwire(Dragon::XPub(socket)), _) => {
            socket.unsubscribe(granted).unwrap();
        }
        _ => unreachable!("an XPUB"),
    }
}

/// Publishes, and notes what each peer gets. XSUB peers do not filter: they get what is sent.
async fn publish(log: &mut Log, xpub: &Side, peers: &mut [(&'static str, Side)], topics: &[&str]) {
    for topic in topics {
        xpub.send(&texts(&[topic, "payload"])).await;
    }
    // what everybody is subscribed to, and in inverted mode nobody
    xpub.send(&texts(&["granted-end", "marker"])).await;
    for (name, peer) in peers {
        loop {
            let got = peer.recv().await;
            if got == texts(&["granted-end", "marker"]) {
                break;
            }
            log.push((name, got));
        }
    }
}

async fn scenario(maker: Maker, mode: Mode, peers: Maker) -> Log {
    let context = Context::new();
    let manual = mode == Mode::Manual;
    let mut log = Log::new();
    let mut xpub = xpub(maker, &context, mode, None);
    let endpoint = xpub.bind("tcp://127.0.0.1:*").await;
    let one = peers.socket(&context, XSub);
    let two = peers.socket(&context, XSub);
    one.connect(&endpoint).await;
    note(&mut log, &mut xpub, &one, manual).await;
    two.connect(&endpoint).await;
    note(&mut log, &mut xpub, &two, manual).await;

    let end = if manual { "end" } else { "granted-end" };
    let on = |topic: &str| subscription(topic);
    let off = |topic: &str| cancellation(topic);
    if mode != Mode::Invert {
        for peer in [&one, &two] {
            peer.send(&on(end)).await;
            note(&mut log, &mut xpub, peer, manual).await;
        }
    }
    for message in [on("a"), on("a"), on("ab"), texts(&["free", "speech"]), on("\0")] {
        one.send(&message).await;
        note(&mut log, &mut xpub, &one, manual).await;
    }
    for message in [on("a"), on("b"), on("b"), texts(&[""]), off("never")] {
        two.send(&message).await;
        note(&mut log, &mut xpub, &two, manual).await;
    }
    let topics = ["a", "abc", "b", "\0\u{1}", "c", "", "granted-a", "granted-abc", "granted-b"];
    let mut both = [("one", one), ("two", two)];
    publish(&mut log, &xpub, &mut both, &topics).await;
    let [(_, one), (_, two)] = both;
    for message in [off("a"), off("a"), off("ab"), off("ab")] {
        one.send(&message).await;
        note(&mut log, &mut xpub, &one, manual).await;
    }
    for message in [off("b"), off("b"), off("a"), on("a"), on("only two")] {
        two.send(&message).await;
        note(&mut log, &mut xpub, &two, manual).await;
    }
    let mut both = [("one", one), ("two", two)];
    publish(&mut log, &xpub, &mut both, &topics).await;
    let [(_, one), (_, two)] = both;

    // one goes: what only it was subscribed to is cancelled, in no order
    drop(two);
    let mut last = Log::new();
    while !last.iter().any(|(_, told)| *told == off("only two")) {
        last.push(("xpub", xpub.recv().await));
    }
    note(&mut last, &mut xpub, &one, false).await;
    last.sort();
    log.extend(last);
    let mut rest = [("one", one)];
    publish(&mut log, &xpub, &mut rest, &topics).await;
    log
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_tells_its_application_what_libzmqs_does() {
    for mode in MODES {
        for peers in Maker::BOTH {
            println!("{mode:?}, peers of {peers:?}");
            let theirs = scenario(Maker::Libzmq, mode, peers).await;
            let ours = scenario(Maker::Dragonwire, mode, peers).await;
            let shown = |log: &Log| log.iter().map(show).collect::<Vec<_>>();
            let (ours, theirs) = (shown(&ours), shown(&theirs));
            assert_eq!(ours, theirs, "{mode:?}, peers of {peers:?}: left ours, right theirs");
        }
    }
}

fn show((who, frames): &(&'static str, Frames)) -> String {
    let frames: Vec<String> = frames.iter().map(|frame| frame.escape_ascii().to_string()).collect();
    format!("{who}: {}", frames.join(" | "))
}

async fn welcome(maker: Maker, peers: Maker, peer_type: SocketType) -> Log {
    let context = Context::new();
    let mut log = Log::new();
    let mut xpub = xpub(maker, &context, Mode::Unique, Some("welcome here"));
    let endpoint = xpub.bind("tcp://127.0.0.1:*").await;
    for (name, topics) in [("one", ["a", "w"]), ("two", ["w", "b"])] {
        let mut peer = peers.socket(&context, peer_type);
        for topic in topics {
            peer.subscribe(topic.as_bytes()).await;
        }
        peer.connect(&endpoint).await;
        peer.subscribe(b"last").await;
        // they come in no order
        let mut told = Log::new();
        for _ in 0..3 {
            told.push(("xpub", xpub.recv().await));
        }
        told.sort();
        log.extend(told);
        xpub.send(&texts(&["last", name])).await;
        while log.last().is_none_or(|(_, got)| *got != texts(&["last", name])) {
            log.push((name, peer.recv().await));
        }
        let mut told = Log::new();
        drop(peer);
        for _ in 0..3 {
            told.push(("xpub", xpub.recv().await));
        }
        told.sort();
        log.extend(told);
    }
    log
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_welcomes_as_libzmqs_does() {
    for peer_type in [Sub, XSub] {
        for peers in Maker::BOTH {
            let theirs = welcome(Maker::Libzmq, peers, peer_type).await;
            let ours = welcome(Maker::Dragonwire, peers, peer_type).await;
            let shown = |log: &Log| log.iter().map(show).collect::<Vec<_>>();
            assert_eq!(shown(&ours), shown(&theirs), "{peer_type} of {peers:?}");
            assert!(theirs.contains(&("one", texts(&["welcome here"]))), "{theirs:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_several_peers_say_is_told_in_the_order_it_took_effect() {
    let context = Context::new();
    let mut xpub = XPubSocket::new();
    let endpoint = xpub.bind("tcp://127.0.0.1:*").await.unwrap().to_string();
    let (one, two) = (context.socket(Sub), context.socket(Sub));
    for (i, sub) in [&one, &two].into_iter().enumerate() {
        sub.connect(&endpoint).unwrap();
        until("a peer", || xpub.stats().connections == i as u64 + 1).await;
    }
    // the application looks away meanwhile
    let subscriptions =
        || xpub.stats().peers.iter().map(|peer| peer.subscriptions).collect::<Vec<_>>();
    for _ in 0..3 {
        one.subscribe("x").unwrap();
        until("one subscribes", || subscriptions() == [1, 0]).await;
        one.unsubscribe("x").unwrap();
        until("one cancels", || subscriptions() == [0, 0]).await;
        two.subscribe("x").unwrap();
        until("two subscribes", || subscriptions() == [0, 1]).await;
        two.unsubscribe("x").unwrap();
        until("two cancels", || subscriptions() == [0, 0]).await;
    }
    two.subscribe("x").unwrap();
    until("two subscribes", || subscriptions() == [0, 1]).await;
    let mut told = Vec::new();
    for _ in 0..13 {
        let message = within("what they said", xpub.recv()).await.unwrap();
        told.push(message.topic().escape_ascii().to_string());
    }
    let (on, off) = ("\\x01x", "\\x00x");
    assert_eq!(told, [on, off, on, off, on, off, on, off, on, off, on, off, on]);
}

/// What three peers say by chance, which the seed decides, and what they get then.
async fn chance(maker: Maker, mode: Mode, peers: Maker, seed: u64) -> Vec<String> {
    let context = Context::new();
    let manual = mode == Mode::Manual;
    let mut xpub = xpub(maker, &context, mode, None);
    let endpoint = xpub.bind("tcp://127.0.0.1:*").await;
    let mut log = Log::new();
    let mut all = ["one", "two", "three"].map(|name| (name, peers.socket(&context, XSub)));
    for (_, peer) in &all {
        peer.connect(&endpoint).await;
        note(&mut log, &mut xpub, peer, manual).await;
        if mode != Mode::Invert {
            peer.send(&subscription(if manual { "end" } else { "granted-end" })).await;
            note(&mut log, &mut xpub, peer, manual).await;
        }
    }
    let mut state = seed;
    let mut next = |below: u64| {
        // xorshift: the same numbers on every machine
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below) as usize
    };
    let topics = ["a", "ab", "abc", "b", "granted-a", ""];
    // inverted, an empty one would keep the marker away
    let topics = if mode == Mode::Invert { &topics[..5] } else { &topics[..] };
    for _ in 0..60 {
        let (_, peer) = &all[next(3)];
        let topic = topics[next(topics.len() as u64)];
        let message = if next(5) < 3 { subscription(topic) } else { cancellation(topic) };
        peer.send(&message).await;
        note(&mut log, &mut xpub, peer, manual).await;
        if next(6) == 0 {
            let sent = ["abcd", "b", "c", "granted-ab", "granted-b"];
            publish(&mut log, &xpub, &mut all, &sent).await;
        }
    }
    log.iter().map(show).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_does_what_libzmqs_does_whatever_peers_say() {
    for mode in MODES {
        for peers in Maker::BOTH {
            for seed in 1..=12 {
                let theirs = chance(Maker::Libzmq, mode, peers, seed).await;
                let ours = chance(Maker::Dragonwire, mode, peers, seed).await;
                let common = ours.iter().zip(&theirs).take_while(|(a, b)| a == b).count();
                assert!(
                    ours == theirs,
                    "{mode:?}, peers of {peers:?}, seed {seed}: after {:?}\nours {:?}\ntheirs {:?}",
                    &ours[..common],
                    ours.get(common),
                    theirs.get(common)
                );
            }
        }
    }
}
