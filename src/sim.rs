//! A simulated TCP network for tests of the socket layer (feature `__sim`, part of no API).
//!
//! On a thread where a [`Network`] is installed, TCP endpoints are served by it instead of by the
//! kernel: hosts are IP addresses, the source address of an endpoint (`tcp://10.0.0.1:0;10.0.0.2:5555`)
//! tells whose cable a connection uses. Time is the runtime's, which is to be a paused one of a single
//! thread; then everything that happens follows from the seed, and [`Network::trace`] says whether it
//! did.
//!
//! What holds is what TCP promises: octets come in order and once; a FIN comes behind them; an RST
//! throws away what is on its way. All else is as unkind as the [`Weather`] says: writes and reads take
//! a few octets, the kernel says "not now" without a reason, connections are made late or are refused,
//! a cut cable is silence, and a connection that outlives the cut may go on, be reset, or stay silent
//! for ever.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::io::{self, ErrorKind, IoSlice};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::clock;
use crate::endpoint::Host;

/// Numbers by chance, the same ones for the same seed (splitmix64).
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// From a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`; 0 if that is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.number().checked_rem(limit).unwrap_or(0)
    }

    /// A number from `least` to `most`.
    pub fn within(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most.saturating_sub(least).saturating_add(1))
    }

    /// True so many times in a thousand.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }
}

/// How unkind the network is. Chances are per thousand.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// The least and the most time that a segment takes, in milliseconds.
    pub latency: (u64, u64),
    /// Octets that may be on their way or unread, per direction of a connection.
    pub window: usize,
    /// Writes and reads of one to three octets; others are of any number that fits.
    pub dribble: u64,
    /// Writes for which there is room that would block nevertheless, for some milliseconds.
    pub hesitation: u64,
    /// Connections that are refused although somebody listens.
    pub refused: u64,
    /// Connections that take up to two seconds more to be made.
    pub late: u64,
    /// Written segments after which somebody on the way resets the connection.
    pub resets: u64,
    /// Of connections that outlive a cut cable: those that are reset then, and those on which nothing
    /// ever comes again.
    pub reset_after_cut: u64,
    /// See `reset_after_cut`.
    pub silent_after_cut: u64,
}

impl Weather {
    /// The network does nothing but carry octets, in whole.
    pub const CALM: Self = Self {
        latency: (1, 1),
        window: 64 * 1024,
        dribble: 0,
        hesitation: 0,
        refused: 0,
        late: 0,
        resets: 0,
        reset_after_cut: 0,
        silent_after_cut: 0,
    };
}

/// A simulated network. Clones are handles of the same one.
#[derive(Clone)]
pub struct Network {
    state: Arc<Mutex<State>>,
    /// There is an earlier event than there was.
    earlier: Arc<Notify>,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").finish_non_exhaustive()
    }
}

/// The network acts on this thread until this is dropped.
#[derive(Debug)]
pub struct Installed(());

impl Drop for Installed {
    fn drop(&mut self) {
        INSTALLED.set(None);
        clock::simulated::NOW.set(None);
    }
}

thread_local! {
    static INSTALLED: RefCell<Option<Network>> = const { RefCell::new(None) };
}

/// This thread's network, if it has one.
fn installed() -> Option<Network> {
    INSTALLED.with_borrow(Clone::clone)
}

/// Whether this thread has a network.
pub(crate) fn is_installed() -> bool {
    INSTALLED.with_borrow(Option::is_some)
}

/// Listens in this thread's network.
pub(crate) fn bind(host: &Host, port: u16) -> io::Result<Listener> {
    match (installed(), host) {
        (Some(network), Host::Ip(ip)) => network.bind(SocketAddr::new(*ip, port)),
        _ => Err(ErrorKind::AddrNotAvailable.into()),
    }
}

/// Connects in this thread's network, where hosts have no names.
pub(crate) async fn connect(
    host: &Host,
    port: u16,
    source: Option<SocketAddr>,
) -> io::Result<Stream> {
    match (installed(), host) {
        (Some(network), Host::Ip(ip)) => network.connect(source, SocketAddr::new(*ip, port)).await,
        _ => Err(ErrorKind::NotFound.into()),
    }
}

/// A number by this thread's network, if it has one, for who else would ask the system for one.
pub(crate) fn number() -> Option<u64> {
    installed().map(|network| network.with(|state| state.rng.number()))
}

#[derive(Debug)]
struct State {
    rng: Rng,
    weather: Weather,
    start: Instant,
    trace: u64,
    connections: Vec<Connection>,
    listeners: BTreeMap<SocketAddr, Backlog>,
    dials: Vec<Dial>,
    /// Cables that are cut, and since when.
    cut: BTreeMap<(IpAddr, IpAddr), Instant>,
    /// Hosts that have crashed, and when.
    down: BTreeMap<IpAddr, Instant>,
    events: BTreeMap<(Instant, u64), Event>,
    scheduled: u64,
    last_port: u16,
    /// To be woken once the lock is released.
    wakers: Vec<Waker>,
    earlier: bool,
}

/// One end of a connection: 0 is who connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct EndId {
    connection: usize,
    side: usize,
}

impl EndId {
    fn other(self) -> Self {
        Self { side: 1 - self.side, ..self }
    }
}

#[derive(Debug)]
struct Connection {
    ends: [End; 2],
    /// Nothing comes through any more, and nobody says so.
    silent: bool,
    /// Writes and reads of few octets, per thousand; each connection has its own.
    dribble: u64,
}

#[derive(Debug)]
struct End {
    address: SocketAddr,
    /// What came in and was not read.
    arrived: VecDeque<u8>,
    ended: bool,
    /// What the next call says, once.
    error: Option<ErrorKind>,
    /// Reset, or of a host that crashed.
    dead: bool,
    reading: bool,
    writing: bool,
    /// A FIN was sent.
    shut: bool,
    hesitates: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// What was sent and has not arrived, with when it does at the earliest.
    flying: VecDeque<(Instant, Segment)>,
    flying_octets: usize,
    /// An event will look at `flying`.
    watched: bool,
    written: u64,
    read: u64,
}

impl End {
    fn new(address: SocketAddr) -> Self {
        Self {
            address,
            arrived: VecDeque::new(),
            ended: false,
            error: None,
            dead: false,
            reading: false,
            writing: false,
            shut: false,
            hesitates: false,
            reader: None,
            writer: None,
            flying: VecDeque::new(),
            flying_octets: 0,
            watched: false,
            written: 0,
            read: 0,
        }
    }

    fn is_closed(&self) -> bool {
        !self.reading && !self.writing
    }

    fn ground(&mut self) {
        self.flying.clear();
        self.flying_octets = 0;
    }
}

#[derive(Debug)]
enum Segment {
    /// The last of the three that make a connection.
    Hello,
    Data(Vec<u8>),
    Fin,
    Reset,
}

#[derive(Debug, Default)]
struct Backlog {
    /// Which listener's, of all that there ever were at its address.
    number: u64,
    waiting: VecDeque<EndId>,
    acceptor: Option<Waker>,
}

/// An attempt to connect.
#[derive(Debug)]
struct Dial {
    from: SocketAddr,
    to: SocketAddr,
    tries: u32,
    wanted: bool,
    outcome: Option<Result<EndId, ErrorKind>>,
    waker: Option<Waker>,
}

#[derive(Debug, Clone, Copy)]
enum Event {
    /// What flies from this end may arrive.
    Arrive(EndId),
    /// An RST of nobody's arrives at this end.
    Reset(EndId),
    /// This end's kernel takes octets again.
    Writable(EndId),
    /// A SYN is sent, arrives, and is answered.
    Knock(usize),
    Syn(usize),
    Answer(usize, bool),
}

impl Network {
    /// A network without hosts; to be called in a runtime.
    #[must_use]
    pub fn new(seed: u64, weather: Weather) -> Self {
        let state = State {
            rng: Rng::new(seed),
            weather,
            start: Instant::now(),
            trace: 0xcbf2_9ce4_8422_2325,
            connections: Vec::new(),
            listeners: BTreeMap::new(),
            dials: Vec::new(),
            cut: BTreeMap::new(),
            down: BTreeMap::new(),
            events: BTreeMap::new(),
            scheduled: 0,
            last_port: 40_000,
            wakers: Vec::new(),
            earlier: false,
        };
        Self { state: Arc::new(Mutex::new(state)), earlier: Arc::default() }
    }

    /// Has the network act on this thread.
    #[must_use]
    pub fn install(&self) -> Installed {
        INSTALLED.set(Some(self.clone()));
        clock::simulated::NOW.set(Some(|| Instant::now().into_std()));
        Installed(())
    }

    /// Carries the octets, for ever: for a task of the runtime.
    pub async fn run(self) {
        loop {
            let next = self.with(State::pass);
            let earlier = self.earlier.notified();
            match next {
                Some(next) => tokio::select! {
                    biased;
                    () = earlier => {}
                    () = sleep_until(next) => {}
                },
                None => earlier.await,
            }
        }
    }

    /// From now on.
    pub fn set_weather(&self, weather: Weather) {
        self.with(|state| {
            state.weather = weather;
            for connection in &mut state.connections {
                connection.dribble = weather.dribble;
            }
        });
    }

    /// Cuts the cable between two hosts: nothing comes through, and nobody is told.
    pub fn cut(&self, a: IpAddr, b: IpAddr) {
        self.with(|state| {
            state.note(b"cut", &[host_number(a), host_number(b)]);
            state.cut.entry(cable(a, b)).or_insert_with(Instant::now);
        });
    }

    /// Mends it. What the two kernels still hold is sent again after a while, up to as long as the
    /// cable was cut.
    pub fn heal(&self, a: IpAddr, b: IpAddr) {
        self.with(|state| {
            state.note(b"heal", &[host_number(a), host_number(b)]);
            if let Some(since) = state.cut.remove(&cable(a, b)) {
                state.resume(since, |ends| cable(ends.0, ends.1) == cable(a, b));
            }
        });
    }

    /// The host goes without a word. Its connections end for those on it, its listeners are gone;
    /// peers learn of it when it is up again and they send something.
    pub fn crash(&self, host: IpAddr) {
        self.with(|state| {
            state.note(b"crash", &[host_number(host)]);
            state.down.insert(host, Instant::now());
            state.listeners.retain(|address, _| address.ip() != host);
            for connection in &mut state.connections {
                for end in &mut connection.ends {
                    if end.address.ip() == host && !end.dead {
                        end.dead = true;
                        end.error = Some(ErrorKind::ConnectionReset);
                        end.arrived.clear();
                        end.ground();
                        state.wakers.extend(end.reader.take().into_iter().chain(end.writer.take()));
                    }
                }
            }
        });
    }

    /// The host is up again.
    pub fn boot(&self, host: IpAddr) {
        self.with(|state| {
            state.note(b"boot", &[host_number(host)]);
            if let Some(since) = state.down.remove(&host) {
                state.resume(since, |ends| ends.0 == host || ends.1 == host);
            }
        });
    }

    /// Resets one of the connections that are open, if there is one.
    pub fn reset_one(&self) {
        self.with(|state| {
            let open: Vec<_> = state.open_connections();
            let at = state.rng.below(open.len() as u64) as usize;
            if let Some(&connection) = open.get(at) {
                state.reset(connection);
            }
        });
    }

    /// Notes something that is to be the same whenever the seed is.
    pub fn note(&self, what: &[u8]) {
        self.with(|state| state.note(b"note", what));
    }

    /// A number over all that has happened: events, their times, and every octet.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.with(|state| state.trace)
    }

    /// Ends of connections that somebody holds, and endpoints that are listened on.
    #[must_use]
    pub fn open(&self) -> (usize, usize) {
        self.with(|state| {
            let ends = state.connections.iter().flat_map(|connection| &connection.ends);
            (ends.filter(|end| !end.is_closed()).count(), state.listeners.len())
        })
    }

    /// How many connections were made.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.with(|state| state.connections.len())
    }

    /// Of each direction of each connection in which octets were taken and not read, how many; to be
    /// asked when nothing is open.
    #[must_use]
    pub fn losses(&self) -> Vec<u64> {
        self.with(|state| {
            let losses = state.connections.iter().flat_map(|connection| {
                let [a, b] = &connection.ends;
                [a.written - b.read, b.written - a.read]
            });
            losses.filter(|octets| *octets > 0).collect()
        })
    }

    fn bind(&self, address: SocketAddr) -> io::Result<Listener> {
        self.with(|state| {
            let mut address = address;
            if state.down.contains_key(&address.ip()) {
                return Err(ErrorKind::AddrNotAvailable.into());
            }
            if address.port() == 0 {
                address.set_port(state.port());
            }
            if state.listeners.contains_key(&address) {
                return Err(ErrorKind::AddrInUse.into());
            }
            state.scheduled += 1;
            let number = state.scheduled;
            state.listeners.insert(address, Backlog { number, ..Backlog::default() });
            Ok(Listener { network: self.clone(), address, number })
        })
    }

    async fn connect(&self, source: Option<SocketAddr>, to: SocketAddr) -> io::Result<Stream> {
        let dial = self.with(|state| {
            let mut from = source.unwrap_or(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0));
            from.set_port(state.port());
            let tries = 0;
            state.dials.push(Dial { from, to, tries, wanted: true, outcome: None, waker: None });
            let dial = state.dials.len() - 1;
            state.schedule(Duration::ZERO, Event::Knock(dial));
            dial
        });
        let dialling = Dialling { network: self, dial };
        let end = poll_fn(|cx| {
            self.with(|state| {
                let Some(dial) = state.dials.get_mut(dialling.dial) else {
                    return Poll::Ready(Err(ErrorKind::NotFound));
                };
                match dial.outcome.take() {
                    Some(outcome) => Poll::Ready(outcome),
                    None => {
                        dial.waker = Some(cx.waker().clone());
                        Poll::Pending
                    }
                }
            })
        })
        .await?;
        Ok(Stream::new(self, end))
    }

    /// Does something with the state, then wakes whom it concerns.
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut state);
        let wakers = std::mem::take(&mut state.wakers);
        let earlier = std::mem::take(&mut state.earlier);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        if earlier {
            self.earlier.notify_one();
        }
        result
    }

    /// The same with one end and its peer's; `None` if there is no such end.
    fn at<T>(
        &self,
        id: EndId,
        change: impl FnOnce(&mut State, &mut End, &mut End) -> T,
    ) -> Option<T> {
        self.with(|state| {
            let mut ends = state.take_ends(id)?;
            let (here, there) = pair(&mut ends, id.side);
            let result = change(state, here, there);
            state.put_ends(id, ends);
            Some(result)
        })
    }
}

/// An attempt to connect that is given up when this is dropped.
#[derive(Debug)]
struct Dialling<'a> {
    network: &'a Network,
    dial: usize,
}

impl Drop for Dialling<'_> {
    fn drop(&mut self) {
        self.network.with(|state| {
            let Some(dial) = state.dials.get_mut(self.dial) else { return };
            dial.wanted = false;
            // made, but nobody took it
            if let Some(Ok(end)) = dial.outcome.take() {
                state.abandon(end);
            }
        });
    }
}

fn cable(a: IpAddr, b: IpAddr) -> (IpAddr, IpAddr) {
    (a.min(b), a.max(b))
}

/// What tells hosts apart in the trace.
fn host_number(host: IpAddr) -> u8 {
    match host {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(ip) => ip.octets()[15],
    }
}

fn pair(ends: &mut [End; 2], side: usize) -> (&mut End, &mut End) {
    let [a, b] = ends;
    if side == 0 { (a, b) } else { (b, a) }
}

impl State {
    fn note(&mut self, what: &[u8], octets: &[u8]) {
        let time = self.start.elapsed().as_millis() as u64;
        for octet in what.iter().chain(&time.to_le_bytes()).chain(octets) {
            self.trace = (self.trace ^ u64::from(*octet)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn port(&mut self) -> u16 {
        self.last_port = self.last_port.checked_add(1).unwrap_or(10_000);
        self.last_port
    }

    fn schedule(&mut self, wait: Duration, event: Event) {
        self.schedule_at(Instant::now() + wait, event);
    }

    fn schedule_at(&mut self, at: Instant, event: Event) {
        self.scheduled += 1;
        self.earlier |= self.events.first_key_value().is_none_or(|((first, _), _)| at < *first);
        self.events.insert((at, self.scheduled), event);
    }

    fn latency(&mut self) -> Duration {
        let (least, most) = self.weather.latency;
        Duration::from_millis(self.rng.within(least, most))
    }

    fn is_blocked(&self, a: IpAddr, b: IpAddr) -> bool {
        self.cut.contains_key(&cable(a, b))
            || self.down.contains_key(&a)
            || self.down.contains_key(&b)
    }

    /// Lets happen what is due; tells when something is due next.
    fn pass(&mut self) -> Option<Instant> {
        let now = Instant::now();
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > now {
                return Some(entry.key().0);
            }
            let event = entry.remove();
            self.happen(event);
        }
        None
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive(id) => self.arrive(id),
            Event::Writable(id) => {
                if let Some(end) = self.end(id) {
                    end.hesitates = false;
                    let writer = end.writer.take();
                    self.wakers.extend(writer);
                }
            }
            Event::Reset(id) => {
                let Some(mut ends) = self.take_ends(id) else { return };
                let (here, there) = pair(&mut ends, id.side);
                if !self.is_blocked(here.address.ip(), there.address.ip()) {
                    self.take_reset(here, id);
                }
                self.put_ends(id, ends);
            }
            Event::Knock(dial) => self.knock(dial),
            Event::Syn(dial) => self.syn(dial),
            Event::Answer(dial, taken) => self.answer(dial, taken),
        }
    }

    fn end(&mut self, id: EndId) -> Option<&mut End> {
        self.connections.get_mut(id.connection)?.ends.get_mut(id.side)
    }

    /// Takes a connection's ends out, to be changed beside the rest of the state.
    fn take_ends(&mut self, id: EndId) -> Option<[End; 2]> {
        let connection = self.connections.get_mut(id.connection)?;
        let nobody = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        Some(std::mem::replace(&mut connection.ends, [End::new(nobody), End::new(nobody)]))
    }

    fn put_ends(&mut self, id: EndId, ends: [End; 2]) {
        if let Some(connection) = self.connections.get_mut(id.connection) {
            connection.ends = ends;
        }
    }

    fn dribble(&self, id: EndId) -> u64 {
        self.connections.get(id.connection).map_or(0, |connection| connection.dribble)
    }

    fn is_silent(&self, id: EndId) -> bool {
        self.connections.get(id.connection).is_none_or(|connection| connection.silent)
    }

    /// How many octets the kernel takes or gives of those that there are.
    fn portion(&mut self, id: EndId, octets: usize) -> usize {
        let most = if self.rng.chance(self.dribble(id)) { 3 } else { octets as u64 };
        self.rng.within(1, most.min(octets as u64)) as usize
    }

    fn send(&mut self, here: &mut End, id: EndId, segment: Segment) {
        let earliest = here.flying.back().map_or_else(Instant::now, |(at, _)| *at);
        let at = earliest.max(Instant::now() + self.latency());
        if let Segment::Data(octets) = &segment {
            here.flying_octets += octets.len();
        }
        here.flying.push_back((at, segment));
        if !here.watched {
            here.watched = true;
            self.schedule_at(at, Event::Arrive(id));
        }
    }

    /// What flies from an end arrives at the other, as far as it is time.
    fn arrive(&mut self, id: EndId) {
        let silent = self.is_silent(id);
        let Some(mut ends) = self.take_ends(id) else { return };
        let (here, there) = pair(&mut ends, id.side);
        here.watched = false;
        let blocked = silent || self.is_blocked(here.address.ip(), there.address.ip());
        let now = Instant::now();
        while let Some((at, segment)) = here.flying.front() {
            if blocked {
                // who holds data sends it again; an RST is said once
                if let Segment::Reset = segment {
                    here.flying.pop_front();
                    continue;
                }
                break;
            }
            if *at > now {
                let at = *at;
                here.watched = true;
                self.schedule_at(at, Event::Arrive(id));
                break;
            }
            let Some((_, segment)) = here.flying.pop_front() else { break };
            if let Segment::Data(octets) = &segment {
                here.flying_octets -= octets.len();
            }
            self.take(here, there, id, segment);
        }
        self.put_ends(id, ends);
    }

    /// A segment of `here` arrives `there`.
    fn take(&mut self, here: &mut End, there: &mut End, id: EndId, segment: Segment) {
        let number = (id.connection * 2 + id.side) as u16;
        match segment {
            Segment::Reset => {
                self.note(b"rst", &number.to_le_bytes());
                self.take_reset(there, id.other());
            }
            _ if there.dead => self.refuse(there, id.other()),
            Segment::Hello => match self.listeners.get_mut(&there.address) {
                Some(backlog) => {
                    there.reading = true;
                    there.writing = true;
                    backlog.waiting.push_back(id.other());
                    let acceptor = backlog.acceptor.take();
                    self.wakers.extend(acceptor);
                }
                None => self.refuse(there, id.other()),
            },
            Segment::Data(_) if there.is_closed() => self.refuse(there, id.other()),
            Segment::Data(octets) => {
                self.note(b"data", &number.to_le_bytes());
                self.note(b"", &octets);
                there.arrived.extend(octets);
                self.wakers.extend(there.reader.take());
            }
            Segment::Fin => {
                self.note(b"fin", &number.to_le_bytes());
                there.ended = true;
                self.wakers.extend(there.reader.take());
            }
        }
        // the window may have opened
        self.wakers.extend(here.writer.take());
    }

    /// Something came for an end that is no more.
    fn refuse(&mut self, here: &mut End, id: EndId) {
        here.dead = true;
        here.ground();
        self.send(here, id, Segment::Reset);
    }

    fn take_reset(&mut self, here: &mut End, id: EndId) {
        if here.dead {
            return;
        }
        self.note(b"reset", &(id.connection as u16).to_le_bytes());
        here.dead = true;
        here.error = Some(ErrorKind::ConnectionReset);
        here.ground();
        // Linux still gives what had arrived, others do not
        if self.rng.chance(500) {
            here.arrived.clear();
        }
        self.wakers.extend(here.reader.take().into_iter().chain(here.writer.take()));
    }

    /// Somebody on the way resets a connection.
    fn reset(&mut self, connection: usize) {
        for side in 0..2 {
            let wait = self.latency();
            self.schedule(wait, Event::Reset(EndId { connection, side }));
        }
    }

    fn open_connections(&self) -> Vec<usize> {
        let open = |connection: &Connection| {
            !connection.silent && connection.ends.iter().all(|end| !end.dead && !end.is_closed())
        };
        let all = self.connections.iter().enumerate();
        all.filter(|(_, connection)| open(connection)).map(|(number, _)| number).collect()
    }

    /// Packets come through again between some hosts: what becomes of the connections between them.
    fn resume(&mut self, since: Instant, concerned: impl Fn((IpAddr, IpAddr)) -> bool) {
        let silence = since.elapsed().as_millis() as u64;
        for number in 0..self.connections.len() {
            let Some(connection) = self.connections.get_mut(number) else { return };
            let [a, b] = &mut connection.ends;
            let hosts = (a.address.ip(), b.address.ip());
            let over = a.is_closed() && b.is_closed() && a.flying.is_empty() && b.flying.is_empty();
            if connection.silent || over || !concerned(hosts) {
                continue;
            }
            if self.is_blocked(hosts.0, hosts.1) {
                continue;
            }
            let fate = self.rng.below(1000);
            if fate < self.weather.reset_after_cut {
                self.reset(number);
            } else if fate < self.weather.reset_after_cut + self.weather.silent_after_cut {
                if let Some(connection) = self.connections.get_mut(number) {
                    connection.silent = true;
                }
                continue;
            }
            for side in 0..2 {
                let wait = Duration::from_millis(self.rng.below(silence + 1));
                let id = EndId { connection: number, side };
                let Some(end) = self.end(id) else { continue };
                if !end.watched && !end.flying.is_empty() {
                    end.watched = true;
                    self.schedule(wait, Event::Arrive(id));
                }
            }
        }
    }

    /// Sends a SYN, or the next one.
    fn knock(&mut self, number: usize) {
        let late = self.rng.chance(self.weather.late);
        let wait =
            self.latency() + Duration::from_millis(if late { self.rng.below(2000) } else { 0 });
        if self.dials.get(number).is_some_and(|dial| dial.wanted) {
            self.schedule(wait, Event::Syn(number));
        }
    }

    /// It got lost: the next one follows after one second, two, four...
    fn knock_again(&mut self, number: usize) {
        let Some(dial) = self.dials.get_mut(number) else { return };
        let wait = Duration::from_secs(1 << dial.tries.min(6));
        dial.tries += 1;
        self.schedule(wait, Event::Knock(number));
    }

    fn syn(&mut self, number: usize) {
        let Some(dial) = self.dials.get(number) else { return };
        let (from, to) = (dial.from, dial.to);
        if self.is_blocked(from.ip(), to.ip()) {
            self.knock_again(number);
            return;
        }
        let taken = self.listeners.contains_key(&to) && !self.rng.chance(self.weather.refused);
        let wait = self.latency();
        self.schedule(wait, Event::Answer(number, taken));
    }

    fn answer(&mut self, number: usize, taken: bool) {
        let Some(dial) = self.dials.get(number) else { return };
        let (from, to) = (dial.from, dial.to);
        if !dial.wanted {
            return;
        }
        if self.is_blocked(from.ip(), to.ip()) {
            self.knock_again(number);
            return;
        }
        self.note(b"answer", &[number as u8, u8::from(taken)]);
        let outcome = if taken {
            let dribble = self.weather.dribble;
            let id = EndId { connection: self.connections.len(), side: 0 };
            let mut ends = [End::new(from), End::new(to)];
            let (here, _) = pair(&mut ends, 0);
            here.reading = true;
            here.writing = true;
            self.send(here, id, Segment::Hello);
            self.connections.push(Connection { ends, silent: false, dribble });
            Ok(id)
        } else {
            Err(ErrorKind::ConnectionRefused)
        };
        if let Some(dial) = self.dials.get_mut(number) {
            dial.outcome = Some(outcome);
            let waker = dial.waker.take();
            self.wakers.extend(waker);
        }
    }

    /// Nobody will have this end.
    fn abandon(&mut self, id: EndId) {
        let Some(mut ends) = self.take_ends(id) else { return };
        let (here, _) = pair(&mut ends, id.side);
        here.reading = false;
        here.writing = false;
        if !here.dead {
            self.refuse(here, id);
        }
        self.put_ends(id, ends);
    }

    /// What the kernel does when nobody holds an end any more.
    fn close(&mut self, here: &mut End, id: EndId) {
        if here.dead || !here.is_closed() {
            return;
        }
        // with octets unread it resets the connection, which may come sooner than what is on its way
        if !here.arrived.is_empty() {
            here.dead = true;
            if self.rng.chance(500) {
                here.ground();
            }
            self.send(here, id, Segment::Reset);
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Stream {
    reader: Reader,
    writer: Writer,
}

impl Stream {
    fn new(network: &Network, end: EndId) -> Self {
        Self {
            reader: Reader { network: network.clone(), end },
            writer: Writer { network: network.clone(), end },
        }
    }

    pub(crate) fn addresses(&self) -> (Option<SocketAddr>, Option<SocketAddr>) {
        let Reader { network, end } = &self.reader;
        let addresses = network.at(*end, |_, here, there| (here.address, there.address));
        addresses.unzip()
    }

    pub(crate) fn split(self) -> (Reader, Writer) {
        (self.reader, self.writer)
    }
}

/// Its reading half.
#[derive(Debug)]
pub(crate) struct Reader {
    network: Network,
    end: EndId,
}

impl AsyncRead for Reader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let end = self.end;
        let read = self.network.at(end, |state, here, there| {
            if !here.arrived.is_empty() {
                let most = here.arrived.len().min(buf.remaining()).min(READ);
                let octets = state.portion(end, most);
                let given: Vec<u8> = here.arrived.drain(..octets).collect();
                buf.put_slice(&given);
                here.read += octets as u64;
                state.wakers.extend(there.writer.take());
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = here.error.take() {
                return Poll::Ready(Err(error.into()));
            }
            if here.dead || here.ended {
                return Poll::Ready(Ok(()));
            }
            here.reader = Some(cx.waker().clone());
            Poll::Pending
        });
        read.unwrap_or(Poll::Ready(Err(ErrorKind::NotConnected.into())))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let end = self.end;
        self.network.at(end, |state, here, _| {
            here.reading = false;
            state.close(here, end);
        });
    }
}

/// Its writing half.
#[derive(Debug)]
pub(crate) struct Writer {
    network: Network,
    end: EndId,
}

impl Writer {
    pub(crate) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ready = self.network.at(self.end, |state, here, there| {
            let open = !here.dead && !here.shut && here.error.is_none();
            if open && (here.hesitates || state.space(here, there) == 0) {
                here.writer = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(Ok(()))
        });
        ready.unwrap_or(Poll::Ready(Err(ErrorKind::NotConnected.into())))
    }

    pub(crate) fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let end = self.end;
        let written = self.network.at(end, |state, here, there| {
            if let Some(error) = here.error.take() {
                return Err(error.into());
            }
            if here.dead || here.shut {
                return Err(ErrorKind::BrokenPipe.into());
            }
            let offered: usize = slices.iter().map(|slice| slice.len()).sum();
            let most = offered.min(state.space(here, there));
            if offered == 0 {
                return Ok(0);
            }
            if !here.hesitates && most > 0 && state.rng.chance(state.weather.hesitation) {
                here.hesitates = true;
                let wait = Duration::from_millis(state.rng.below(5));
                state.schedule(wait, Event::Writable(end));
            }
            if most == 0 || here.hesitates {
                return Err(ErrorKind::WouldBlock.into());
            }
            let octets = state.portion(end, most);
            let all = slices.iter().flat_map(|slice| slice.iter().copied());
            let data = all.take(octets).collect();
            here.written += octets as u64;
            state.send(here, end, Segment::Data(data));
            if state.rng.chance(state.weather.resets) {
                state.reset(end.connection);
            }
            Ok(octets)
        });
        written.unwrap_or(Err(ErrorKind::NotConnected.into()))
    }

    pub(crate) fn shut_down(&self) -> io::Result<()> {
        let end = self.end;
        let shut = self.network.at(end, |state, here, _| {
            if here.dead {
                return Err(ErrorKind::NotConnected.into());
            }
            if !std::mem::replace(&mut here.shut, true) {
                state.send(here, end, Segment::Fin);
            }
            Ok(())
        });
        shut.unwrap_or(Err(ErrorKind::NotConnected.into()))
    }
}

impl State {
    /// Octets that an end's kernel takes.
    fn space(&self, here: &End, there: &End) -> usize {
        self.weather.window.saturating_sub(here.flying_octets + there.arrived.len())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // fails where the connection is over
        drop(self.shut_down());
        let end = self.end;
        self.network.at(end, |state, here, _| {
            here.writing = false;
            state.close(here, end);
        });
    }
}

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    network: Network,
    address: SocketAddr,
    number: u64,
}

impl Listener {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) async fn accept(&self) -> io::Result<Stream> {
        let end = poll_fn(|cx| {
            self.network.with(|state| {
                let backlog = state.listeners.get_mut(&self.address);
                let Some(backlog) = backlog.filter(|backlog| backlog.number == self.number) else {
                    // of a host that crashed: nobody comes
                    return Poll::Pending;
                };
                match backlog.waiting.pop_front() {
                    Some(end) => Poll::Ready(end),
                    None => {
                        backlog.acceptor = Some(cx.waker().clone());
                        Poll::Pending
                    }
                }
            })
        })
        .await;
        Ok(Stream::new(&self.network, end))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.network.with(|state| {
            let Some(backlog) = state.listeners.get(&self.address) else { return };
            if backlog.number == self.number
                && let Some(backlog) = state.listeners.remove(&self.address)
            {
                backlog.waiting.into_iter().for_each(|end| state.abandon(end));
            }
        });
    }
}

/// Octets that a read gives at most: what the reader has room for beyond that is its own affair, and
/// not the same in every run.
const READ: usize = 32 * 1024;

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::task::yield_now;
    use tokio::time::timeout;

    use super::*;

    const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

    fn rough() -> Weather {
        Weather { latency: (1, 30), window: 100, dribble: 500, hesitation: 200, ..Weather::CALM }
    }

    fn network(weather: Weather) -> Network {
        let network = Network::new(7, weather);
        tokio::spawn(network.clone().run());
        network
    }

    async fn connect(network: &Network) -> (Stream, Stream) {
        let listener = network.bind(SocketAddr::new(B, 1)).unwrap();
        let from = SocketAddr::new(A, 0);
        let to = listener.address();
        let (here, there) = tokio::join!(network.connect(Some(from), to), listener.accept());
        let (here, there) = (here.unwrap(), there.unwrap());
        assert_eq!(here.addresses().0, there.addresses().1);
        (here, there)
    }

    /// Writes all of it.
    async fn write(writer: &Writer, mut octets: &[u8]) -> io::Result<()> {
        while !octets.is_empty() {
            poll_fn(|cx| writer.poll_write_ready(cx)).await?;
            match writer.try_write_vectored(&[IoSlice::new(octets)]) {
                Ok(taken) => octets = &octets[taken..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => yield_now().await,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn octets_come_in_order_and_the_end_behind_them() {
        let network = network(rough());
        let (here, there) = connect(&network).await;
        let (mut reader, there_writes) = there.split();
        let sent: Vec<u8> = (0..2000u32).map(|i| i as u8).collect();
        let (here_reads, writer) = here.split();
        let octets = sent.clone();
        tokio::spawn(async move {
            write(&writer, &octets).await.unwrap();
            writer.shut_down().unwrap();
            assert_eq!(write(&writer, b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        });
        let mut received = Vec::new();
        reader.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, sent);
        drop((reader, there_writes, here_reads));
        assert_eq!((network.open(), network.losses()), ((0, 0), Vec::new()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_window_blocks_until_it_is_read() {
        let network = network(Weather { window: 10, ..Weather::CALM });
        let (here, there) = connect(&network).await;
        let (_reads, writer) = here.split();
        let (mut reader, _writes) = there.split();
        let limit = Duration::from_secs(60);
        assert!(timeout(limit, write(&writer, &[0; 11])).await.is_err());
        reader.read_exact(&mut [0; 1]).await.unwrap();
        timeout(limit, write(&writer, &[0; 1])).await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_cable_is_silence_and_then_everything_comes() {
        let network = network(rough());
        let (here, there) = connect(&network).await;
        let (_reads, writer) = here.split();
        let (mut reader, _writes) = there.split();
        network.cut(A, B);
        write(&writer, b"abc").await.unwrap();
        let mut octets = [0; 3];
        let limit = Duration::from_secs(60);
        assert!(timeout(limit, reader.read_exact(&mut octets)).await.is_err());
        let dial = network.connect(Some(SocketAddr::new(A, 0)), SocketAddr::new(B, 1));
        assert!(timeout(limit, dial).await.is_err(), "nobody says that it is refused");
        network.heal(A, B);
        timeout(limit * 3, reader.read_exact(&mut octets)).await.unwrap().unwrap();
        assert_eq!(&octets, b"abc");
    }

    #[tokio::test(start_paused = true)]
    async fn closing_with_octets_unread_resets_the_connection() {
        let network = network(Weather::CALM);
        let (here, there) = connect(&network).await;
        let (mut reads, writer) = here.split();
        write(&writer, b"abc").await.unwrap();
        // in simulated time: the octets are there, and nobody has read them
        tokio::time::sleep(Duration::from_millis(10)).await;
        drop(there);
        let error = reads.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(write(&writer, b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert_eq!(network.losses(), [3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crashed_host_answers_with_a_reset_once_it_is_back() {
        let network = network(Weather::CALM);
        let (here, there) = connect(&network).await;
        let (mut reads, writer) = here.split();
        network.crash(B);
        write(&writer, b"abc").await.unwrap();
        let limit = Duration::from_secs(60);
        assert!(timeout(limit, reads.read(&mut [0; 1])).await.is_err(), "it went without a word");
        network.boot(B);
        let error = timeout(limit * 2, reads.read(&mut [0; 1])).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        drop(there);
        let again = network.connect(Some(SocketAddr::new(A, 0)), SocketAddr::new(B, 1)).await;
        assert_eq!(again.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_nobody_waits_for_any_more_is_none() {
        let network = network(Weather::CALM);
        let listener = network.bind(SocketAddr::new(B, 1)).unwrap();
        for polls in 0..4 {
            let dial = network.connect(Some(SocketAddr::new(A, 0)), listener.address());
            drop(timeout(Duration::from_millis(polls), dial).await);
        }
        // in simulated time: all that was on its way has come, and then the listener's end
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(listener);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(network.open(), (0, 0));
    }
}
