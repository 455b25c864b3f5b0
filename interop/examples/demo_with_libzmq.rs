//! Messages between dragonwire and real libzmq, in both directions, with the books at the end.
//!
//! `cargo run --release -p dragonwire-interop --example demo_with_libzmq`
//!
//! - Three libzmq publishers over TCP, followed by one dragonwire SUB. The third is added while the
//!   others run; the second goes away half-way without sending what it has queued, and comes back.
//! - A dragonwire PUB over TCP, followed by two libzmq subscribers.
//! - PUSH to PULL over a Unix socket, each way.
//!
//! Every message has a number, so that what is lost in flight is found as a gap. The status is 0 only
//! if every message sent is accounted for.

use std::fmt;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use dragonwire::{Message, PubSocket, PullSocket, PushSocket, SubSocket};
use dragonwire_interop::libzmq::{self, Context, Opt, Socket, SocketType};
use dragonwire_interop::{DEADLINE, until, within};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Messages on each route.
const COUNT: u64 = 100_000;

#[tokio::main]
async fn main() -> ExitCode {
    let (major, minor, patch) = libzmq::version();
    println!("dragonwire {} and libzmq {major}.{minor}.{patch}", env!("CARGO_PKG_VERSION"));
    let work = async {
        let (followed, published, pushed, pulled) =
            tokio::join!(follow(), publish(), push(), pull());
        let mut rows = followed?;
        rows.extend([published?, pushed?, pulled?]);
        Outcome::Ok(rows)
    };
    let rows = match tokio::time::timeout(3 * DEADLINE, work).await {
        Ok(Ok(rows)) => rows,
        Ok(Err(error)) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
        Err(_) => {
            eprintln!("not done after {:?}", 3 * DEADLINE);
            return ExitCode::FAILURE;
        }
    };
    println!("{HEAD}");
    rows.iter().for_each(|row| println!("{row}"));
    if rows.iter().all(Row::balances) {
        println!("the books balance: sent = delivered + dropped + lost in flight");
        ExitCode::SUCCESS
    } else {
        println!("the books do not balance");
        ExitCode::FAILURE
    }
}

/// The account of one route.
struct Row {
    route: String,
    /// Messages that the sender's socket took, once for each receiver.
    sent: u64,
    delivered: u64,
    /// Dropped by a sender that counts them.
    dropped: u64,
    /// Missing in the numbers that arrived.
    lost: u64,
    seconds: f64,
}

const HEAD: &str =
    "route                               sent  delivered   dropped      lost    msgs/s";

impl Row {
    fn balances(&self) -> bool {
        self.delivered > 0 && self.sent == self.delivered + self.dropped + self.lost
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { route, sent, delivered, dropped, lost, seconds } = self;
        let rate = *delivered as f64 / seconds.max(f64::EPSILON);
        write!(f, "{route:<30} {sent:>9} {delivered:>10} {dropped:>9} {lost:>9} {rate:>9.0}")?;
        if self.balances() { Ok(()) } else { f.write_str("  does not balance") }
    }
}

/// A libzmq publisher of messages `NAME.`, number. At the end it says how many there were.
struct Publisher {
    name: &'static str,
    /// To go away after that many messages, with what is queued, and to come back.
    breaks_at: Option<u64>,
}

impl Publisher {
    /// Runs it in a thread; its endpoint comes through the channel.
    fn start(self, bound: mpsc::Sender<String>) -> thread::JoinHandle<Outcome<()>> {
        thread::spawn(move || {
            let context = Context::new();
            let mut socket = Self::listen(&context, "tcp://127.0.0.1:*", |real| {
                // whoever waits for it has given up
                let _ = bound.send(real);
            })?;
            let topic = format!("{}.", self.name);
            for number in 0..COUNT {
                if self.breaks_at == Some(number) {
                    let endpoint = socket.1.clone();
                    drop(socket);
                    socket = Self::listen(&context, &endpoint, |_| ())?;
                }
                socket.0.send([topic.as_bytes(), number.to_string().as_bytes()])?;
            }
            socket.0.send([topic.as_bytes(), b"end"])?;
            // unlike half-way, what is queued is to arrive
            socket.0.set(Opt::Linger, DEADLINE.as_millis() as i32)?;
            Ok(())
        })
    }

    /// A publisher with a subscriber. It is an XPUB, which is a PUB that tells of subscriptions, and
    /// has no mark: libzmq does not count what it drops.
    fn listen(
        context: &Context,
        endpoint: &str,
        bound: impl FnOnce(String),
    ) -> Outcome<(Socket, String)> {
        let socket = context.socket(SocketType::XPub);
        socket.set(Opt::SndHwm, 0)?;
        let end = Instant::now() + DEADLINE;
        let real = loop {
            match socket.bind(endpoint) {
                Ok(real) => break real,
                // the socket before has not let go of the port yet
                Err(_) if Instant::now() < end => thread::sleep(Duration::from_millis(1)),
                Err(error) => return Err(format!("{endpoint}: {error}").into()),
            }
        };
        bound(real.clone());
        socket.recv()?;
        Ok((socket, real))
    }
}

async fn follow() -> Outcome<Vec<Row>> {
    let start = Instant::now();
    let (bound, endpoints) = mpsc::channel();
    let first = Publisher { name: "one", breaks_at: None }.start(bound.clone());
    let second = Publisher { name: "two", breaks_at: Some(COUNT / 2) }.start(bound.clone());
    let mut threads = vec![first, second];
    let mut sub = SubSocket::new();
    sub.subscribe("")?;
    for _ in 0..2 {
        sub.add(endpoints.recv_timeout(DEADLINE)?).await?;
    }
    let names = ["one", "two", "three"];
    let mut delivered = [0; 3];
    let mut lost = [0; 3];
    let mut seconds = [None; 3];
    while seconds.contains(&None) {
        let message = within("a message", sub.recv()).await?;
        let name = message.topic().strip_suffix(b".").unwrap_or_default();
        let Some(slot) = names.iter().position(|known| known.as_bytes() == name) else {
            return Err(format!("a message from nobody: {message:?}").into());
        };
        let number = match message.frame(1) {
            Some(b"end") => {
                seconds[slot] = Some(start.elapsed().as_secs_f64());
                COUNT
            }
            frame => std::str::from_utf8(frame.unwrap_or_default())?.parse()?,
        };
        let expected = delivered[slot] + lost[slot];
        lost[slot] += number.checked_sub(expected).ok_or("a message came twice")?;
        delivered[slot] += u64::from(seconds[slot].is_none());
        if slot == 0 && number == COUNT / 4 {
            println!("a third publisher joins");
            threads.push(Publisher { name: "three", breaks_at: None }.start(bound.clone()));
            sub.add(endpoints.recv_timeout(DEADLINE)?).await?;
        }
    }
    within("it closes", sub.close()).await;
    for thread in threads {
        thread.join().map_err(|_| "a publisher panicked")??;
    }
    let row = |slot: usize| Row {
        route: format!("libzmq PUB {} -> SUB", names[slot]),
        sent: COUNT,
        delivered: delivered[slot],
        dropped: 0,
        lost: lost[slot],
        seconds: seconds[slot].unwrap_or_default(),
    };
    Ok((0..3).map(row).collect())
}

async fn publish() -> Outcome<Row> {
    let publisher = PubSocket::new();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await?.to_string();
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let endpoint = endpoint.clone();
            thread::spawn(move || {
                let sub = Context::new().socket(SocketType::Sub);
                sub.subscribe("")?;
                sub.connect(&endpoint)?;
                receive(&sub)
            })
        })
        .collect();
    within("two subscribers", publisher.wait_for_subscribers("", 2)).await?;
    let start = Instant::now();
    for number in 0..COUNT {
        publisher.publish("number", number.to_string()).await?;
    }
    // with its queues empty it cannot drop the last one
    until("all is sent", || publisher.stats().outgoing.queued == 0).await;
    let accounts = publisher.stats().outgoing;
    let seconds = start.elapsed().as_secs_f64();
    publisher.send("end").await?;
    let mut delivered = 0;
    for thread in threads {
        delivered += tokio::task::spawn_blocking(move || thread.join())
            .await?
            .map_err(|_| "a subscriber panicked")??;
    }
    within("it closes", publisher.close()).await;
    Ok(Row {
        route: "PUB -> 2 libzmq SUB".to_owned(),
        sent: accounts.accepted,
        delivered,
        dropped: accounts.dropped.total(),
        lost: 0,
        seconds,
    })
}

/// Counts messages until the end.
fn receive(socket: &Socket) -> Outcome<u64> {
    let mut delivered = 0;
    while socket.recv()?[0] != b"end" {
        delivered += 1;
    }
    Ok(delivered)
}

async fn push() -> Outcome<Row> {
    let folder = tempfile::tempdir()?;
    let endpoint = format!("ipc://{}/pull", folder.path().display());
    let push = PushSocket::new();
    push.connect(&endpoint).await?;
    let thread = thread::spawn(move || {
        let pull = Context::new().socket(SocketType::Pull);
        pull.bind(&endpoint)?;
        receive(&pull)
    });
    let start = Instant::now();
    for number in 0..COUNT {
        push.send(Message::from(number.to_string())).await?;
    }
    push.send("end").await?;
    let report = within("it closes", push.close()).await;
    let seconds = start.elapsed().as_secs_f64();
    let delivered = tokio::task::spawn_blocking(move || thread.join())
        .await?
        .map_err(|_| "the puller panicked")??;
    Ok(Row {
        route: "PUSH -> libzmq PULL".to_owned(),
        sent: COUNT,
        delivered,
        dropped: report.discarded,
        lost: 0,
        seconds,
    })
}

async fn pull() -> Outcome<Row> {
    let folder = tempfile::tempdir()?;
    let endpoint = format!("ipc://{}/pull", folder.path().display());
    let mut pull = PullSocket::new();
    pull.bind(&endpoint).await?;
    let thread = thread::spawn(move || -> Outcome<()> {
        let push = Context::new().socket(SocketType::Push);
        push.set(Opt::Linger, DEADLINE.as_millis() as i32)?;
        push.connect(&endpoint)?;
        for number in 0..COUNT {
            push.send([number.to_string()])?;
        }
        Ok(push.send(["end"])?)
    });
    let start = Instant::now();
    let mut delivered = 0;
    while within("a message", pull.recv()).await?.topic() != b"end" {
        delivered += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    thread.join().map_err(|_| "the pusher panicked")??;
    within("it closes", pull.close()).await;
    Ok(Row {
        route: "libzmq PUSH -> PULL".to_owned(),
        sent: COUNT,
        delivered,
        dropped: 0,
        lost: 0,
        seconds,
    })
}
