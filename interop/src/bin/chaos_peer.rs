//! One socket of the chaos test in a process of its own: numbered messages out or in, and books.
//!
//! `chaos_peer dragonwire|libzmq pub|sub|push|pull KEY NUMBER LIFE [--calm] [--bind|--connect ENDPOINT]...`
//!
//! It says `dragonwire_interop::chaos::Line`s. A sender sends a steady stream until it is told
//! otherwise by a line of its standard input: `trickle` (slowly), `burst` (so many at once, and
//! nothing after them). At the end of the input a process closes its socket and ends; when its parent
//! dies it dies too, stopped or not. `--calm` leaves heartbeats at their defaults, for a path
//! without faults.

use std::error::Error;
use std::io::{BufRead, Write, stdin, stdout};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use dragonwire::{
    Error as DragonError, Event, Message, Monitor, SocketOptions, SocketStats, SocketType,
};
use dragonwire_interop::chaos::{
    BURST, CONNECT, HANDSHAKE, HEARTBEAT_IVL, HEARTBEAT_TIMEOUT, HWM, KERNEL_BUFFER, Line, REPORTS,
    Report, Run, Source, TOPICS, UNSAID,
};
use dragonwire_interop::libzmq::{self, Context, MonitorEvent, Opt};
use dragonwire_interop::side::{Dragon, Frames, frames};
use dragonwire_interop::{DEADLINE, GLANCE};
use rustix::process::{Signal, set_parent_process_death_signal};

type Outcome<T> = Result<T, Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("too few arguments");
    let dragonwire = next()? == "dragonwire";
    let kind = match next()?.as_str() {
        "pub" => SocketType::Pub,
        "sub" => SocketType::Sub,
        "push" => SocketType::Push,
        "pull" => SocketType::Pull,
        other => return Err(format!("{other:?} is not a socket type").into()),
    };
    let key = next()?.parse()?;
    let source = Source { sender: next()?.parse()?, life: next()?.parse()? };
    let endpoints: Vec<String> = arguments.collect();
    let calm = endpoints.first().is_some_and(|word| word == "--calm");
    let socket = Socket::new(dragonwire, kind, calm)?;
    for words in endpoints[usize::from(calm)..].chunks(2) {
        match words {
            [how, endpoint] if how == "--bind" => socket.bind(endpoint).await?,
            [how, endpoint] if how == "--connect" => socket.connect(endpoint).await?,
            other => return Err(format!("{other:?}: an endpoint was expected").into()),
        }
    }
    say(&Line::Ready);
    let mut peer = Peer { socket, key, orders: orders(), reported: Instant::now(), count: 0 };
    match kind {
        SocketType::Pub | SocketType::Push => peer.send(source).await?,
        _ => peer.receive().await?,
    }
    let Peer { socket, count, .. } = peer;
    say(&Line::Report(socket.close(count).await?));
    Ok(())
}

/// The lines of the standard input, and its end.
fn orders() -> Receiver<String> {
    let (sender, orders) = channel();
    std::thread::spawn(move || {
        for line in stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    orders
}

struct Peer {
    socket: Socket,
    key: u64,
    orders: Receiver<String>,
    reported: Instant,
    /// Messages offered to the socket, or taken from it.
    count: u64,
}

impl Peer {
    async fn send(&mut self, source: Source) -> Outcome<()> {
        let mut ticks = tokio::time::interval(TICK);
        // one that was stopped does not make up for it
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut claimed, mut pace) = (0, Pace::Stream);
        for tick in 0_u64.. {
            ticks.tick().await;
            match self.orders.try_recv().as_deref() {
                Ok("trickle") => {
                    pace = Pace::Trickle;
                    say(&Line::Trickle(self.count + 1));
                }
                Ok("burst") => {
                    pace = Pace::Burst(self.count + BURST);
                    say(&Line::Burst(self.count + 1, self.count + BURST));
                }
                Ok(other) => return Err(format!("unknown order {other:?}").into()),
                Err(TryRecvError::Disconnected) => return Ok(()),
                Err(TryRecvError::Empty) => {}
            }
            let upto = match pace {
                Pace::Stream => self.count + PER_TICK,
                Pace::Trickle => self.count + u64::from(tick % 2 == 0),
                Pace::Burst(last) => last,
            };
            while self.count < upto {
                if self.count == claimed {
                    claimed = upto.max(claimed + 100);
                    say(&Line::Claim(claimed));
                }
                let message = source.message(self.key, self.count + 1);
                if !self.socket.offer(message).await? {
                    break;
                }
                self.count += 1;
            }
            self.report()?;
        }
        Ok(())
    }

    async fn receive(&mut self) -> Outcome<()> {
        let mut run: Option<Run> = None;
        let mut finishing = false;
        loop {
            let taken = self.socket.take().await?;
            let idle = taken.is_none();
            if let Some((connection, message)) = taken {
                let (source, number) = Source::of(self.key, &message)
                    .ok_or_else(|| format!("nobody sent this: {message:?}"))?;
                self.count += 1;
                let next = Run { connection, source, first: number, last: number };
                run = Some(match run.take() {
                    Some(run)
                        if (run.connection, run.source, run.last + 1)
                            == (connection, source, number) =>
                    {
                        Run { last: number, ..run }
                    }
                    before => {
                        before.into_iter().for_each(|run| say(&Line::Got(run)));
                        next
                    }
                });
            }
            // said soon, so that little is unknown of one that is killed
            if idle || self.count.is_multiple_of(UNSAID) {
                run.take().into_iter().for_each(|run| say(&Line::Got(run)));
                self.report()?;
            }
            finishing |= self.orders.try_recv() == Err(TryRecvError::Disconnected);
            if finishing && idle {
                return Ok(());
            }
        }
    }

    /// When it is time. What is counted has been said by then.
    fn report(&mut self) -> Outcome<()> {
        if self.reported.elapsed() >= REPORTS {
            self.reported = Instant::now();
            say(&Line::Report(self.socket.report(self.count)?));
        }
        Ok(())
    }
}

enum Pace {
    Stream,
    Trickle,
    /// Up to this number.
    Burst(u64),
}

/// A socket of either kind, and what its monitor has told.
struct Socket {
    end: End,
    handshakes: u64,
    /// Connections that ended, those among them whose handshake had not succeeded.
    ended: u64,
    failed: u64,
}

#[expect(clippy::large_enum_variant, reason = "there is one of them")]
enum End {
    Dragonwire(Dragon, Monitor),
    Libzmq(libzmq::Socket, libzmq::Monitor),
}

impl Socket {
    fn new(dragonwire: bool, kind: SocketType, calm: bool) -> Outcome<Self> {
        let end = if dragonwire { dragonwire_end(kind, calm)? } else { libzmq_end(kind, calm)? };
        Ok(Self { end, handshakes: 0, ended: 0, failed: 0 })
    }

    /// Listens. The port may be in use for a moment longer by one that was killed.
    async fn bind(&self, endpoint: &str) -> Outcome<()> {
        let end = Instant::now() + DEADLINE / 2;
        loop {
            let in_use = match &self.end {
                End::Dragonwire(socket, _) => match socket.bind(endpoint).await {
                    Ok(_) => return Ok(()),
                    Err(DragonError::Bind { source, .. })
                        if source.kind() == std::io::ErrorKind::AddrInUse =>
                    {
                        source.into()
                    }
                    Err(error) => return Err(error.into()),
                },
                End::Libzmq(socket, _) => match socket.bind(endpoint) {
                    Ok(_) => return Ok(()),
                    Err(error @ libzmq::Error::ADDRESS_IN_USE) => Box::<dyn Error>::from(error),
                    Err(error) => return Err(error.into()),
                },
            };
            if Instant::now() > end {
                return Err(in_use);
            }
            tokio::time::sleep(GLANCE).await;
        }
    }

    async fn connect(&self, endpoint: &str) -> Outcome<()> {
        match &self.end {
            End::Dragonwire(socket, _) => socket.connect(endpoint).await?,
            End::Libzmq(socket, _) => socket.connect(endpoint)?,
        }
        Ok(())
    }

    /// Whether the socket took the message over. PUSH may have no room for it for a while.
    async fn offer(&self, message: Frames) -> Outcome<bool> {
        match &self.end {
            End::Dragonwire(Dragon::Pub(socket), _) => {
                socket.send(Message::from_frames(message)).await?;
                Ok(true)
            }
            End::Dragonwire(Dragon::Push(socket), _) => {
                let sent = socket.send(Message::from_frames(message));
                match tokio::time::timeout(TICK, sent).await {
                    Ok(sent) => sent.map(|()| true).map_err(Into::into),
                    Err(_) => Ok(false),
                }
            }
            End::Dragonwire(..) => Err("it does not send".into()),
            End::Libzmq(socket, _) => match socket.try_send(message) {
                Ok(()) => Ok(true),
                Err(libzmq::Error::AGAIN) => Ok(false),
                Err(error) => Err(error.into()),
            },
        }
    }

    /// The next message and the number of its connection, if there is one within a tick.
    async fn take(&mut self) -> Outcome<Option<(u64, Frames)>> {
        match &mut self.end {
            End::Dragonwire(socket, _) => {
                let Ok(received) = tokio::time::timeout(TICK, socket.recv()).await else {
                    return Ok(None);
                };
                let message = received?;
                let peer = socket.last_peer().ok_or("a message came by no connection")?;
                let connection = peer.to_string().trim_start_matches('#').parse()?;
                Ok(Some((connection, frames(&message))))
            }
            End::Libzmq(socket, _) => match socket.recv_within(TICK) {
                Ok(message) => Ok(Some((0, message))),
                Err(libzmq::Error::AGAIN) => Ok(None),
                Err(error) => Err(error.into()),
            },
        }
    }

    fn report(&mut self, count: u64) -> Outcome<Report> {
        let mut report = Report::default();
        report.set("count", count);
        match &mut self.end {
            End::Dragonwire(socket, monitor) => {
                // first the counters: every connection that is missing in them has been told by now
                let stats = socket.stats();
                while let Some(event) = monitor.try_recv() {
                    match event {
                        Event::Disconnected { .. } => self.ended += 1,
                        Event::HandshakeSucceeded { .. } => self.handshakes += 1,
                        Event::Missed { events } => {
                            return Err(format!("the monitor missed {events} events").into());
                        }
                        _ => {}
                    }
                }
                enter(&mut report, &stats)?;
            }
            End::Libzmq(_, monitor) => {
                while let Some(event) = monitor.next_within(Duration::ZERO) {
                    match event.event {
                        MonitorEvent::HANDSHAKE_SUCCEEDED => self.handshakes += 1,
                        // both are told of one that fails before READY
                        MonitorEvent::DISCONNECTED => self.ended += 1,
                        MonitorEvent::HANDSHAKE_FAILED_NO_DETAIL
                        | MonitorEvent::HANDSHAKE_FAILED_PROTOCOL => self.failed += 1,
                        _ => {}
                    }
                }
                let ended = self.ended.saturating_sub(self.failed);
                report.set("alive", self.handshakes.saturating_sub(ended));
            }
        }
        report.set("handshakes", self.handshakes);
        report.set("lost", self.ended.saturating_sub(self.failed));
        Ok(report)
    }

    /// Closes the socket, and says how the books stand then.
    async fn close(mut self, count: u64) -> Outcome<Report> {
        let mut report = self.report(count)?;
        match self.end {
            End::Dragonwire(socket, _) => {
                socket.close().await;
                enter(&mut report, &socket.stats())?;
            }
            // its context ends with it, and waits until all is sent
            End::Libzmq(socket, _) => drop(socket),
        }
        Ok(report)
    }
}

fn dragonwire_end(kind: SocketType, calm: bool) -> Outcome<End> {
    let mut options = SocketOptions::new()
        .send_hwm(HWM)
        .recv_hwm(HWM)
        .send_buffer(KERNEL_BUFFER)
        .recv_buffer(KERNEL_BUFFER)
        .linger(Some(DEADLINE / 2))
        .connect_timeout(Some(CONNECT))
        .handshake_timeout(Some(HANDSHAKE));
    if !calm {
        options = options
            .heartbeat_interval(Some(HEARTBEAT_IVL))
            .heartbeat_timeout(Some(HEARTBEAT_TIMEOUT))
            .heartbeat_ttl(Some(HEARTBEAT_TIMEOUT));
    }
    let socket = Dragon::new(kind, options);
    if let Dragon::Sub(socket) = &socket {
        socket.subscribe(TOPICS)?;
    }
    let monitor = socket.monitor();
    Ok(End::Dragonwire(socket, monitor))
}

fn libzmq_end(kind: SocketType, calm: bool) -> Outcome<End> {
    let millis = |time: Duration| i32::try_from(time.as_millis());
    let socket = Context::new().socket(kind);
    for opt in [Opt::SndHwm, Opt::RcvHwm] {
        socket.set(opt, HWM.try_into()?)?;
    }
    for opt in [Opt::SndBuf, Opt::RcvBuf] {
        socket.set(opt, KERNEL_BUFFER.try_into()?)?;
    }
    socket.set(Opt::Linger, millis(DEADLINE / 2)?)?;
    socket.set(Opt::ConnectTimeout, millis(CONNECT)?)?;
    socket.set(Opt::HandshakeIvl, millis(HANDSHAKE)?)?;
    if !calm {
        socket.set(Opt::HeartbeatIvl, millis(HEARTBEAT_IVL)?)?;
        socket.set(Opt::HeartbeatTimeout, millis(HEARTBEAT_TIMEOUT)?)?;
        socket.set(Opt::HeartbeatTtl, millis(HEARTBEAT_TIMEOUT)?)?;
    }
    if kind == SocketType::Sub {
        socket.subscribe(TOPICS)?;
    }
    let monitor = socket.monitor();
    Ok(End::Libzmq(socket, monitor))
}

/// Copies dragonwire's counters; those of each peer have to balance on their own.
fn enter(report: &mut Report, stats: &SocketStats) -> Outcome<()> {
    for peer in &stats.peers {
        let (out, inc) = (&peer.outgoing, &peer.incoming);
        let balanced = out.accepted == out.sent + out.queued + out.dropped.total()
            && inc.received == inc.delivered + inc.queued + inc.dropped.total();
        if !balanced {
            return Err(format!("a peer's counters do not balance: {peer:?}").into());
        }
    }
    let (out, inc) = (&stats.outgoing, &stats.incoming);
    for (name, value) in [
        ("out.accepted", out.accepted),
        ("out.sent", out.sent),
        ("out.queued", out.queued),
        ("in.received", inc.received),
        ("in.delivered", inc.delivered),
        ("in.queued", inc.queued),
        ("alive", stats.peers.iter().filter(|peer| peer.peer.is_some()).count() as u64),
    ] {
        report.set(name, value);
    }
    for (way, dropped) in [("out", &out.dropped), ("in", &inc.dropped)] {
        for (reason, count) in dropped.iter() {
            report.set(format!("{way}.dropped.{reason}"), count);
        }
    }
    Ok(())
}

fn say(line: &Line) {
    let mut out = stdout().lock();
    // nobody reads any more: the end of the standard input is about to come
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// How often a sender sends, and how long a receiver waits before it looks for orders.
const TICK: Duration = Duration::from_millis(10);

/// What a sender sends in one: some 500 messages a second.
const PER_TICK: u64 = 5;
