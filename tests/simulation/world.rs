//! What a seed makes: a network, options, faults; and how seeds are run.

use std::cell::RefCell;
use std::env;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::panic;
use std::sync::OnceLock;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use dragonwire::sim::{Network, Rng, Weather};
use dragonwire::{Budget, SocketOptions};
use tokio::runtime::{Builder, Handle};
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, timeout};

/// What may go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Faults {
    /// The network is slow and refuses connections; no octet is lost.
    Delays,
    /// Cables are cut as well.
    Cuts,
    /// And connections are reset.
    Resets,
}

/// A seed's world.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) network: Network,
    pub(crate) faults: Faults,
    pub(crate) weather: Weather,
    /// Kept within by all its sockets, in three of ten seeds.
    budget: Option<Budget>,
    heartbeat: (Duration, Duration),
    handshake: Duration,
    connect: Duration,
    reconnect: (Duration, Option<Duration>),
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let faults = match seed % 3 {
            0 => Faults::Delays,
            1 => Faults::Cuts,
            _ => Faults::Resets,
        };
        let least = rng.below(3);
        let harsh = |chance| if faults == Faults::Resets { chance } else { 0 };
        let weather = Weather {
            latency: (least, least + rng.below(40)),
            window: pick(&mut rng, &[300, 4096, 65_536, 262_144]),
            dribble: pick(&mut rng, &[0, 100, 500, 800]),
            hesitation: pick(&mut rng, &[0, 50, 200]),
            refused: rng.below(300),
            late: rng.below(200),
            resets: harsh(pick(&mut rng, &[0, 0, 2, 10])),
            reset_after_cut: harsh(300),
            silent_after_cut: harsh(300),
        };
        let ms = Duration::from_millis;
        // so little for each peer that two or three of the larger messages are all of it
        let budget = (seed % 10 >= 7).then(|| {
            let octets = Rng::new(!seed).within(25_000, 80_000);
            Budget::process(1 << 20).per_peer(octets as usize)
        });
        Self {
            budget,
            heartbeat: (ms(rng.within(300, 2000)), ms(rng.within(1500, 4000))),
            handshake: ms(rng.within(2000, 6000)),
            connect: ms(rng.within(3000, 8000)),
            reconnect: (
                ms(rng.within(20, 300)),
                if rng.chance(500) { Some(ms(rng.within(300, 2000))) } else { None },
            ),
            network: Network::new(rng.number(), weather),
            faults,
            weather,
            rng,
        }
    }

    /// The options of all its sockets, but for what a scenario is about.
    pub(crate) fn options(&self) -> SocketOptions {
        let options = match &self.budget {
            Some(budget) => SocketOptions::new().budget(budget),
            None => SocketOptions::new(),
        };
        options
            .heartbeat_interval(Some(self.heartbeat.0))
            .heartbeat_timeout(Some(self.heartbeat.1))
            .handshake_timeout(Some(self.handshake))
            .connect_timeout(Some(self.connect))
            .reconnect_interval(self.reconnect.0)
            .reconnect_interval_max(self.reconnect.1)
    }

    /// How long it may take, from when the network is whole again, until every subscription is in
    /// force: the bound of docs/simulation.md.
    pub(crate) fn in_force_within(&self) -> Duration {
        let noticed = (self.heartbeat.0 + self.heartbeat.1).max(self.handshake).max(self.connect);
        let waited = (self.reconnect.0 * 2).max(self.reconnect.1.unwrap_or_default());
        noticed + waited + ROUND_TRIPS * 2 * self.longest_trip()
    }

    /// How long an octet may take in either direction: latency, and kernels that hesitate.
    fn longest_trip(&self) -> Duration {
        Duration::from_millis(self.weather.latency.1 + 20)
    }

    /// A generator for a task of its own.
    pub(crate) fn fork(&mut self) -> Rng {
        Rng::new(self.rng.number())
    }

    /// Cuts, heals and resets for a while. All is whole at the end, and no connection is refused or
    /// made late any more.
    pub(crate) async fn storm(&mut self, cables: &[(IpAddr, IpAddr)], lasting: Duration) {
        let end = Instant::now() + lasting;
        let mut cut: Vec<(IpAddr, IpAddr)> = Vec::new();
        while Instant::now() < end {
            sleep(Duration::from_millis(self.rng.within(10, 3000))).await;
            if self.faults == Faults::Delays {
                continue;
            }
            match self.rng.below(10) {
                0..4 => {
                    let (a, b) = pick(&mut self.rng, cables);
                    self.network.cut(a, b);
                    cut.push((a, b));
                }
                4..8 if !cut.is_empty() => {
                    let at = self.rng.below(cut.len() as u64) as usize;
                    let (a, b) = cut.swap_remove(at);
                    self.network.heal(a, b);
                }
                8.. if self.faults == Faults::Resets => self.network.reset_one(),
                _ => {}
            }
        }
        self.calm_down();
        for (a, b) in cut {
            self.network.heal(a, b);
        }
    }

    /// Nothing new goes wrong from here on.
    pub(crate) fn calm_down(&mut self) {
        let kind = Weather { refused: 0, late: 0, resets: 0, ..self.weather };
        self.network.set_weather(kind);
    }
}

/// A host of the network.
pub(crate) fn host(number: usize) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, u8::try_from(number).unwrap()).into()
}

/// Where `to` listens, as `from` connects to it.
pub(crate) fn way(from: IpAddr, to: IpAddr) -> String {
    format!("tcp://{from}:0;{to}:5555")
}

/// Where a host listens.
pub(crate) fn place(at: IpAddr) -> String {
    format!("tcp://{at}:5555")
}

pub(crate) fn pick<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.below(of.len() as u64) as usize]
}

/// Runs a range of seeds, and those that once found something; panics with the command that runs the
/// one that fails.
pub(crate) fn run_all<F>(
    name: &str,
    seeds: Range<u64>,
    found: &[(u64, &str)],
    scenario: fn(World) -> F,
) where
    F: Future<Output = ()> + 'static,
{
    let number = |text: &str| text.parse::<u64>().expect("SIM_SEED=17 or SIM_SEEDS=0..500");
    let chosen: Vec<u64> = match (env::var("SIM_SEED"), env::var("SIM_SEEDS")) {
        (Ok(seed), _) => vec![number(&seed)],
        (_, Ok(range)) => {
            let (first, end) = range.split_once("..").expect("SIM_SEEDS=0..500");
            (number(first)..number(end)).collect()
        }
        _ => found.iter().map(|(seed, _)| *seed).chain(seeds).collect(),
    };
    let mut failed = Vec::new();
    for seed in chosen {
        if let Err(reason) = attempt(seed, scenario) {
            eprintln!("seed {seed} of {name}: {reason}");
            failed.push(seed);
        }
    }
    if let Some(seed) = failed.first() {
        panic!(
            "{failed:?} failed; to run one alone: \
             SIM_SEED={seed} cargo test --features __sim --test simulation {name} -- --nocapture"
        );
    }
}

/// Runs a seed; returns its trace.
pub(crate) fn run<F>(seed: u64, scenario: fn(World) -> F) -> u64
where
    F: Future<Output = ()> + 'static,
{
    attempt(seed, scenario).unwrap_or_else(|reason| panic!("seed {seed}: {reason}"))
}

/// The same. A seed has a thread to itself, as the library keeps some things by thread.
fn attempt<F>(seed: u64, scenario: fn(World) -> F) -> Result<u64, String>
where
    F: Future<Output = ()> + 'static,
{
    let (done, trace) = channel();
    PANICS.get_or_init(watch_panics);
    let builder = thread::Builder::new().name(format!("seed {seed}"));
    let thread = builder.spawn(move || done.send(live(seed, scenario)).unwrap()).unwrap();
    match trace.recv_timeout(REAL_DEADLINE) {
        Ok(Ok(trace)) => Ok(trace),
        Ok(Err(panic)) => Err(panic),
        Err(RecvTimeoutError::Timeout) => Err("it never lets time pass".to_owned()),
        Err(RecvTimeoutError::Disconnected) => {
            let panic = thread.join().unwrap_err();
            let text = panic.downcast_ref::<String>().cloned();
            Err(text
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_default())
        }
    }
}

thread_local! {
    /// What a task of this thread died of. The runtime keeps that from whoever does not ask for the
    /// task's end, as nobody does of the library's.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

static PANICS: OnceLock<()> = OnceLock::new();

fn watch_panics() {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        print(info);
        PANIC.with_borrow_mut(|first| first.get_or_insert_with(|| info.to_string()).len());
    }));
}

fn live<F>(seed: u64, scenario: fn(World) -> F) -> Result<u64, String>
where
    F: Future<Output = ()> + 'static,
{
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let world = World::new(seed);
        let network = world.network.clone();
        let _installed = network.install();
        let carrier = tokio::spawn(network.clone().run());
        timeout(DEADLINE, scenario(world)).await.expect("it hangs");
        // the network's own is the one task that may be left
        let tasks = || Handle::current().metrics().num_alive_tasks();
        let left = timeout(DEADLINE, async {
            while network.open() != (0, 0) || tasks() > 1 {
                sleep(Duration::from_millis(10)).await;
            }
        });
        if left.await.is_err() {
            panic!("{:?} ends and listeners, {} tasks are left", network.open(), tasks() - 1);
        }
        carrier.abort();
        PANIC.take().map_or(Ok(network.trace()), Err)
    })
}

/// Simulated time that a scenario has, and then what it leaves behind.
const DEADLINE: Duration = Duration::from_secs(900);

/// Time that a seed has.
const REAL_DEADLINE: Duration = Duration::from_secs(60);

/// From a SYN to a subscription that is in force: the connection, the greeting in two pieces, READY,
/// the subscriptions; and as many again for what was on its way.
const ROUND_TRIPS: u32 = 10;
