//! The victim: one socket that keeps within a budget of 64 MiB, in a process of its own, which does
//! what it is told on its standard input and says what it hears on its standard output.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dragonwire::{
    Budget, DisconnectCause, Endpoint, Event, Message, Monitor, PubSocket, PullSocket, RecvError,
    SocketOptions, XPubSocket,
};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;

use crate::within;

/// What every process's memory is to stay within, all of it.
pub(crate) const LIMIT: usize = 64 << 20;

/// A process with the socket in it, as its attackers' process sees it.
pub(crate) struct Victim {
    child: Child,
    orders: ChildStdin,
    ear: Ear,
    pub(crate) endpoint: Endpoint,
}

/// What it says, for those who listen.
#[derive(Clone)]
pub(crate) struct Ear {
    said: Arc<Mutex<Said>>,
    changed: watch::Receiver<usize>,
}

impl std::ops::Deref for Victim {
    type Target = Ear;

    fn deref(&self) -> &Ear {
        &self.ear
    }
}

#[derive(Default)]
struct Said {
    lines: Vec<String>,
    over: bool,
}

/// Where the victim runs.
#[derive(Default)]
pub(crate) struct Place<'a> {
    /// With at most so many file descriptors.
    pub(crate) descriptors: Option<u32>,
    /// In this network namespace, at this address.
    pub(crate) namespace: Option<(&'a str, &'a str)>,
}

/// An event that names a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) what: String,
    pub(crate) address: SocketAddr,
    /// The cause, as `{:?}` shows it, or figures.
    pub(crate) why: String,
}

impl Victim {
    /// Starts one: its socket's type, then options (see [`options`]).
    pub(crate) async fn start(order: &str, place: Place<'_>) -> Self {
        let program = std::env::current_exe().unwrap();
        let limit = place.descriptors.map_or(String::new(), |most| format!("ulimit -n {most}; "));
        let (inside, host) = match place.namespace {
            Some((name, address)) => (format!("ip netns exec {name} "), address),
            None => (String::new(), "127.0.0.1"),
        };
        let script = format!(
            "{limit}exec {inside}\"$0\" --exact --ignored --nocapture --test-threads 1 {STANDS}"
        );
        let mut child = Command::new("bash")
            .args(["-c", &script])
            .arg(program)
            .env(ORDER, order)
            .env(HOST, host)
            // of glibc: otherwise each thread's fragments come on top
            .env("MALLOC_ARENA_MAX", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let out = child.stdout.take().unwrap();
        let said = Arc::new(Mutex::new(Said::default()));
        let (tell, changed) = watch::channel(0);
        let heard = said.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let mut heard = heard.lock().unwrap();
                heard.lines.push(line);
                tell.send_replace(heard.lines.len());
            }
            heard.lock().unwrap().over = true;
        });
        let endpoint = "tcp://0:0".parse().unwrap();
        let mut victim = Self { child, orders, ear: Ear { said, changed }, endpoint };
        victim.endpoint = victim
            .hears("where it listens", |line| line.strip_prefix("listening ")?.parse().ok())
            .await;
        victim
    }

    pub(crate) fn tell(&mut self, order: &str) {
        writeln!(self.orders, "{order}").expect("the victim is alive");
    }

    /// The counters of its budget and its socket, as they are now.
    pub(crate) async fn figures(&mut self) -> Figures {
        let asked = self.said.lock().unwrap().lines.len();
        self.tell("figures");
        let mut at = 0;
        self.hears("figures", |line| {
            at += 1;
            let figures = line.strip_prefix("figures ").filter(|_| at > asked)?;
            let pairs = figures.split(' ').map(|pair| pair.split_once('=').unwrap());
            Some(Figures(pairs.map(|(k, v)| (k.to_owned(), v.parse().unwrap())).collect()))
        })
        .await
    }

    /// The most memory that it has had, in octets.
    pub(crate) fn peak(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    /// Ends it, in good order.
    pub(crate) async fn end(&mut self) {
        self.tell("end");
        self.hears("its end", |line| (line == "ended well").then_some(())).await;
        assert!(self.child.wait().unwrap().success());
    }
}

impl Ear {
    /// The first thing it has said or says for which `pick` gives something.
    pub(crate) async fn hears<T>(&self, what: &str, mut pick: impl FnMut(&str) -> Option<T>) -> T {
        let mut changed = self.changed.clone();
        let mut from = 0;
        within(what, async {
            loop {
                {
                    let said = self.said.lock().unwrap();
                    for line in &said.lines[from..] {
                        if let Some(picked) = pick(line) {
                            return picked;
                        }
                    }
                    from = said.lines.len();
                    assert!(!said.over, "the victim died before {what}: {:?}", said.lines.last());
                }
                // an error is the victim's end, which is seen above
                let _ = changed.changed().await;
            }
        })
        .await
    }

    /// All that it has said so far of peers.
    pub(crate) fn told(&self) -> Vec<Told> {
        self.said.lock().unwrap().lines.iter().filter_map(|line| Told::parse(line)).collect()
    }

    /// Waits until it has said one of these of the peer at that address.
    pub(crate) async fn tells_of(&self, address: SocketAddr, whats: &[&str]) {
        self.hears(&format!("{whats:?} of {address}"), |line| {
            let told = Told::parse(line)?;
            (told.address == address && whats.contains(&&*told.what)).then_some(())
        })
        .await;
    }

    /// How the connection to the peer at that address ended: whether before READY, and why.
    pub(crate) async fn ended(&self, address: SocketAddr) -> (bool, String) {
        self.hears("the end of a connection", |line| {
            let told = Told::parse(line).filter(|told| told.address == address)?;
            let before = told.what == "failed";
            (before || told.what == "ended").then_some((before, told.why))
        })
        .await
    }

    /// Waits until all of these peers are gone; what was said of each.
    pub(crate) async fn all_ended(&self, addresses: &[SocketAddr]) -> Vec<(bool, String)> {
        let mut ends: BTreeMap<SocketAddr, (bool, String)> = BTreeMap::new();
        let awaited: BTreeSet<_> = addresses.iter().copied().collect();
        self.hears("the ends of all connections", |line| {
            let told = Told::parse(line)?;
            let before = told.what == "failed";
            if (before || told.what == "ended") && awaited.contains(&told.address) {
                ends.insert(told.address, (before, told.why));
            }
            (ends.len() == awaited.len()).then_some(())
        })
        .await;
        addresses.iter().map(|address| ends[address].clone()).collect()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // a test that failed leaves no process behind
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Counters by name.
#[derive(Debug)]
pub(crate) struct Figures(BTreeMap<String, u64>);

impl std::ops::Index<&str> for Figures {
    type Output = u64;

    fn index(&self, name: &str) -> &u64 {
        &self.0[name]
    }
}

impl Told {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("told ")?.splitn(3, ' ');
        let what = words.next()?.to_owned();
        let address = words.next()?.parse().ok()?;
        Some(Self { what, address, why: words.next()?.to_owned() })
    }

    fn of(event: Event) -> Option<Self> {
        let (what, peer, why) = match event {
            Event::HandshakeFailed { peer, cause } => ("failed", peer, format!("{cause:?}")),
            Event::Disconnected { peer, cause, .. } => ("ended", peer, format!("{cause:?}")),
            Event::Reclaimed { peer, messages, held, .. } => {
                ("reclaimed", peer?, format!("{messages} {held}"))
            }
            Event::ReadingPaused { peer, held } => ("paused", peer, held.to_string()),
            Event::Dropping { peer, reason, .. } => ("dropping", peer?, format!("{reason:?}")),
            _ => return None,
        };
        Some(Self { what: what.to_owned(), address: peer.remote?, why })
    }
}

/// A cause as [`Told`] has it.
pub(crate) fn shown(cause: impl Into<DisconnectCause>) -> String {
    format!("{:?}", cause.into())
}

const STANDS: &str = "victim::stands";
const ORDER: &str = "HOSTILE_VICTIM";
const HOST: &str = "HOSTILE_VICTIM_HOST";

/// The process of the socket.
#[test]
#[ignore = "a process that the other tests start"]
fn stands() {
    // nobody's victim
    let Ok(order) = std::env::var(ORDER) else { return };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.unwrap().block_on(stand(&order));
    println!("\nended well");
}

enum Socket {
    Pull(PullSocket),
    Pub(PubSocket),
    XPub(XPubSocket),
}

macro_rules! every {
    ($socket:expr, $name:ident => $what:expr) => {
        match $socket {
            Socket::Pull($name) => $what,
            Socket::Pub($name) => $what,
            Socket::XPub($name) => $what,
        }
    };
}

/// `handshake=MS`, `heartbeat=MS` (its timeout is twice that), `frames=COUNT`, `hwm=MESSAGES` (both),
/// `buffer=OCTETS` (the kernel's for sending).
fn options(order: &str, budget: &Budget) -> SocketOptions {
    let mut options = SocketOptions::new().budget(budget);
    for pair in order.split(' ').skip(1) {
        let (name, value) = pair.split_once('=').unwrap();
        let value: u64 = value.parse().unwrap();
        let time = Duration::from_millis(value);
        options = match name {
            "handshake" => options.handshake_timeout(Some(time)),
            "heartbeat" => options.heartbeat_interval(Some(time)).heartbeat_timeout(Some(time * 2)),
            "frames" => options.max_frames(value as usize),
            "hwm" => options.send_hwm(value as usize).recv_hwm(value as usize),
            "buffer" => options.send_buffer(value as usize),
            _ => panic!("{pair}"),
        };
    }
    options
}

async fn stand(order: &str) {
    let budget = Budget::process(LIMIT);
    let options = options(order, &budget);
    let mut socket = match order.split(' ').next().unwrap() {
        "PULL" => Socket::Pull(PullSocket::with_options(options).unwrap()),
        "PUB" => Socket::Pub(PubSocket::with_options(options).unwrap()),
        "XPUB" => Socket::XPub(XPubSocket::with_options(options).unwrap()),
        other => panic!("{other}"),
    };
    let monitor = every!(&socket, socket => socket.monitor());
    tokio::spawn(report(monitor));
    let host = std::env::var(HOST).unwrap();
    let endpoint = every!(&socket, socket => socket.bind(format!("tcp://{host}:*")).await.unwrap());
    // the harness has begun a line
    println!("\nlistening {endpoint}");
    let (pass, mut orders) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let _ = pass.send(line);
        }
    });
    let (mut received, mut sent, mut idle) = (Received::default(), 0, false);
    while let Some(order) = next(&mut orders, &mut socket, &mut received, idle).await {
        let words: Vec<&str> = order.split(' ').collect();
        match words[..] {
            ["idle"] => idle = true,
            ["receive"] => idle = false,
            ["send", count, size] => {
                let (count, size): (u64, usize) = (count.parse().unwrap(), size.parse().unwrap());
                for number in sent..sent + count {
                    let mut body = number.to_be_bytes().to_vec();
                    body.resize(size, 7);
                    let message = Message::from(body);
                    match &socket {
                        Socket::Pub(socket) => socket.send(message).await.map(drop),
                        Socket::XPub(socket) => socket.send(message).await.map(drop),
                        Socket::Pull(_) => panic!("a PULL sends nothing"),
                    }
                    .unwrap();
                }
                sent += count;
            }
            ["figures"] => {
                let stats = every!(&socket, socket => socket.stats());
                let usage = budget.usage();
                println!(
                    "figures used={} peak={} refused={} reclaimed={} disconnected={} \
                     turned_away={} paused={} connections={} failed={} received={} unknown={}",
                    usage.used,
                    usage.peak,
                    usage.refused,
                    usage.reclaimed,
                    usage.disconnected,
                    usage.turned_away,
                    usage.paused,
                    stats.connections,
                    stats.failed_handshakes,
                    stats.incoming.received,
                    stats.incoming.unknown_commands,
                );
            }
            ["end"] => break,
            _ => panic!("{order}"),
        }
    }
}

/// The next order; meanwhile a PULL receives, unless it is to be `idle`.
async fn next(
    orders: &mut UnboundedReceiver<String>,
    socket: &mut Socket,
    received: &mut Received,
    idle: bool,
) -> Option<String> {
    let pull = match socket {
        Socket::Pull(pull) if !idle => pull,
        _ => return orders.recv().await,
    };
    loop {
        loop {
            match pull.try_recv() {
                Ok(message) => received.take(&message),
                Err(RecvError::Empty) => break,
                Err(error) => panic!("{error}"),
            }
        }
        received.tell();
        tokio::select! {
            biased;
            order = orders.recv() => return order,
            message = pull.recv() => received.take(&message.unwrap()),
        }
    }
}

/// What a PULL has received: of good peers by their topics, numbered without a gap.
#[derive(Default)]
struct Received {
    good: BTreeMap<String, u64>,
    changed: BTreeSet<String>,
}

impl Received {
    fn take(&mut self, message: &Message) {
        let topic = String::from_utf8_lossy(message.topic()).into_owned();
        if !topic.starts_with("good") {
            *self.good.entry("others".to_owned()).or_default() += 1;
            self.changed.insert("others".to_owned());
            return;
        }
        let number = message.frames().nth(1).unwrap();
        let number = u64::from_be_bytes(number[..8].try_into().unwrap());
        let next = self.good.entry(topic.clone()).or_default();
        assert_eq!(number, *next, "of {topic}");
        *next += 1;
        self.changed.insert(topic);
    }

    fn tell(&mut self) {
        for topic in std::mem::take(&mut self.changed) {
            println!("got {topic} {}", self.good[&topic]);
        }
    }
}

async fn report(mut monitor: Monitor) {
    while let Some(event) = monitor.recv().await {
        match event {
            Event::AcceptFailed { error, .. } => println!("accept failed: {error}"),
            Event::Missed { events } => println!("missed {events}"),
            event => {
                if let Some(Told { what, address, why }) = Told::of(event) {
                    println!("told {what} {address} {why}");
                }
            }
        }
    }
}
