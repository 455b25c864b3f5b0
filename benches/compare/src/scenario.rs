//! Which rows there are.

use std::time::Duration;

use crate::peers::{LIBRARIES, Library};
use crate::report::Parameters;
use crate::role::{Role, Runtime, Verb};

/// What to measure, as the command line says.
#[derive(Debug, Clone)]
pub struct Plan {
    /// By name; none: all.
    pub scenarios: Vec<String>,
    pub peers: Vec<String>,
    pub transports: Vec<String>,
    pub sizes: Vec<usize>,
    /// Fewer sizes and parameters.
    pub quick: bool,
    /// Of each library in each row.
    pub runs: usize,
    /// What one run should take.
    pub time: Duration,
}

/// A row to be.
#[derive(Debug, Clone)]
pub struct Task {
    pub scenario: &'static str,
    pub transport: &'static str,
    /// The sender's (push, pub, ping, produce) or the idle subscribers', without endpoint and count.
    pub role: Role,
}

/// What is counted for a row's rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    Received,
    Published,
    RoundTrips,
    Subscribers,
}

pub const SCENARIOS: [&str; 12] = [
    "push-pull",
    "pub-sub",
    "pub-drop",
    "fan-out",
    "stalled",
    "matching",
    "ping-pong",
    "idle",
    "runtimes",
    "pipeline",
    "pipeline-window",
    "pipeline-latency",
];

impl Plan {
    pub fn tasks(&self) -> Vec<Task> {
        let scenarios = SCENARIOS.into_iter().filter(|name| within(&self.scenarios, name));
        let tasks = scenarios.flat_map(|scenario| self.tasks_of(scenario));
        tasks.filter(|task| within(&self.transports, task.transport)).collect()
    }

    fn tasks_of(&self, scenario: &'static str) -> Vec<Task> {
        let mut tasks = Vec::new();
        let mut row = |transport, role| tasks.push(Task { scenario, transport, role });
        let publisher = Role { verb: Verb::Pub, ..Role::default() };
        match scenario {
            "push-pull" => {
                for transport in BOTH {
                    for size in self.sizes(&SIZES) {
                        row(transport, Role { size, ..Role::default() });
                    }
                }
            }
            "pub-sub" => {
                for transport in BOTH {
                    for size in self.sizes(&SIZES) {
                        row(transport, Role { size, lossless: true, ..publisher.clone() });
                    }
                }
            }
            "pub-drop" => {
                for transport in BOTH {
                    for size in self.sizes(&SIZES[..4]) {
                        row(transport, Role { size, ..publisher.clone() });
                    }
                }
            }
            "fan-out" => {
                let wide = Role { size: 256, lossless: true, ..publisher };
                for peers in [8, 64] {
                    row("tcp", Role { peers, ..wide.clone() });
                }
            }
            "stalled" => {
                let wide = Role { size: 256, ..publisher };
                row("tcp", Role { peers: 63, ..wide.clone() });
                row("tcp", Role { peers: 64, stalled: 1, ..wide });
            }
            "matching" => {
                let choosy = Role { peers: 8, topics: 10_000, ..publisher };
                let prefixes: &[_] =
                    if self.quick { &[1, 1000] } else { &[1, 100, 1000, 10_000, 100_000] };
                for &prefixes in prefixes {
                    row("tcp", Role { prefixes, ..choosy.clone() });
                }
            }
            "ping-pong" => {
                for transport in BOTH {
                    for runtime in [Runtime::CurrentThread, Runtime::MainTask] {
                        let ping = Role { verb: Verb::Ping, warm_up: 1000, ..Role::default() };
                        row(transport, Role { runtime, ..ping });
                    }
                }
            }
            "idle" => {
                let crowds: &[_] = if self.quick { &[1000] } else { &[1000, 10_000] };
                for &peers in crowds {
                    row("tcp", Role { verb: Verb::Idle, peers, ..Role::default() });
                }
            }
            "runtimes" => {
                for size in self.sizes(&[64, 1024]) {
                    for runtime in
                        [Runtime::CurrentThread, Runtime::Threads(1), Runtime::Threads(2)]
                    {
                        row("tcp", Role { size, runtime, ..Role::default() });
                    }
                }
            }
            "pipeline" => {
                for size in self.sizes(&VALUES) {
                    row("tcp", Role { verb: Verb::Produce, size, ..Role::default() });
                }
            }
            "pipeline-window" => {
                for size in self.sizes(&VALUES) {
                    let window = Some(WINDOW);
                    row("tcp", Role { verb: Verb::Produce, size, window, ..Role::default() });
                }
            }
            "pipeline-latency" => {
                for size in self.sizes(&VALUES) {
                    let timed = Role { window: Some(1), warm_up: 1000, ..Role::default() };
                    row("tcp", Role { verb: Verb::Produce, size, count: TRIPS, ..timed });
                }
            }
            other => unreachable!("{other} is not in the list"),
        }
        tasks
    }

    fn sizes(&self, usual: &[usize]) -> Vec<usize> {
        match (&self.sizes[..], self.quick) {
            ([], false) => usual.to_vec(),
            ([], true) => usual.iter().copied().filter(|size| QUICK_SIZES.contains(size)).collect(),
            (chosen, _) => chosen.to_vec(),
        }
    }

    /// The libraries of a row.
    pub fn libraries(&self, task: &Task) -> Vec<&'static Library> {
        let named = LIBRARIES.iter().filter(|library| within(&self.peers, library.name));
        let alone = task.scenario == "runtimes";
        let in_place = |library: &&Library| {
            !(library.declines)(&task.role) && (!alone || library.name == "dragonwire")
        };
        named.filter(in_place).collect()
    }
}

impl Task {
    pub fn counted(&self) -> Counted {
        match self.role.verb {
            Verb::Ping => Counted::RoundTrips,
            Verb::Produce if self.role.window == Some(1) => Counted::RoundTrips,
            Verb::Idle => Counted::Subscribers,
            _ if self.role.topics > 1 => Counted::Published,
            _ => Counted::Received,
        }
    }

    /// Whether the publisher may be faster than the subscribers.
    pub fn may_drop(&self) -> bool {
        match self.role.verb {
            Verb::Pub => !self.role.lossless,
            Verb::Produce => self.role.window.is_none(),
            _ => false,
        }
    }

    pub fn parameters(&self) -> Parameters {
        Parameters {
            subscribers: self.role.peers,
            stalled: self.role.stalled,
            topics: self.role.topics,
            prefixes: self.role.prefixes,
            runtime: match self.role.runtime {
                Runtime::CurrentThread => "current-thread".to_owned(),
                Runtime::MainTask => "main-task".to_owned(),
                Runtime::Threads(threads) => format!("threads-{threads}"),
            },
        }
    }
}

fn within(chosen: &[String], name: &str) -> bool {
    chosen.is_empty() || chosen.iter().any(|chosen| chosen == name)
}

const BOTH: [&str; 2] = ["tcp", "ipc"];
/// Of an event.
const VALUES: [usize; 2] = [32, 1024];
/// Fewer than the mark of 1000, so that nothing is lost, and there is room for what a service says
/// of its streams.
const WINDOW: u64 = 900;
/// Round trips of a pipeline.
const TRIPS: u64 = 10_000;
const SIZES: [usize; 7] = [16, 64, 256, 1024, 8192, 65_536, 1_048_576];
const QUICK_SIZES: [usize; 4] = [32, 64, 1024, 65_536];
