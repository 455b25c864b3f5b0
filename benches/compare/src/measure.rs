//! Measures a row: runs of two processes each, three in a pipeline, of one library after the other
//! and again.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use crate::peers::Library;
use crate::report::{Cell, Row, Spread};
use crate::role::{Role, Verb};
use crate::scenario::{Counted, Plan, Task};
use crate::tally::{Latencies, Tally, memory};

/// What all libraries make of a task, A B C A B C. Whatever goes wrong becomes a note in its cell.
pub fn row(plan: &Plan, task: &Task) -> Row {
    let mut series: Vec<_> = plan
        .libraries(task)
        .into_iter()
        .map(|library| match calibrate(library, task, plan.time) {
            Ok(count) => Series::of(library, task, count),
            Err(fault) => Series { note: Some(fault), ..Series::of(library, task, 0) },
        })
        .collect();
    for _ in 0..plan.runs {
        for series in &mut series {
            series.run_once();
        }
    }
    Row {
        scenario: task.scenario.to_owned(),
        transport: task.transport.to_owned(),
        size: task.role.size,
        parameters: task.parameters(),
        cells: series.into_iter().map(Series::cell).collect(),
    }
}

/// How many messages take a library that long, where that is not given.
fn calibrate(library: &Library, task: &Task, time: Duration) -> Result<u64, String> {
    if task.counted() == Counted::Subscribers || task.role.count > 0 {
        return Ok(task.role.count);
    }
    let role = &task.role;
    let octets = (role.size + 1000) * if role.topics == 1 { role.peers } else { 1 };
    let mut count = (FIRST_OCTETS / octets).max(FIRST_MESSAGES) as u64;
    for _ in 0..CALIBRATIONS {
        count = whole_rounds(role, count);
        let run = Run::of(library, task, count)?;
        let factor = time.as_secs_f64() / run.send.seconds.max(run.receive.seconds).max(1e-4);
        if factor < CLOSE {
            return Ok(whole_rounds(role, (count as f64 * factor).max(1.0) as u64));
        }
        count = (count as f64 * factor.min(BOLDEST)) as u64;
    }
    Ok(whole_rounds(role, count))
}

/// So that each topic comes as often as the others.
fn whole_rounds(role: &Role, count: u64) -> u64 {
    count.next_multiple_of(role.topics as u64)
}

/// The runs of one library in a row.
struct Series<'a> {
    library: &'static Library,
    task: &'a Task,
    count: u64,
    runs: Vec<Run>,
    /// Why it cannot run, or what went wrong once.
    note: Option<String>,
    failures: usize,
}

impl<'a> Series<'a> {
    fn of(library: &'static Library, task: &'a Task, count: u64) -> Self {
        Self { library, task, count, runs: Vec::new(), note: None, failures: 0 }
    }

    fn run_once(&mut self) {
        // it has a note and no run from the beginning, or fails again and again
        if (self.note.is_some() && self.runs.is_empty()) || self.failures >= ENOUGH_FAILURES {
            return;
        }
        match Run::of(self.library, self.task, self.count) {
            Ok(run) => self.runs.push(run),
            Err(fault) => {
                self.failures += 1;
                self.note = Some(fault);
            }
        }
    }

    fn cell(self) -> Cell {
        let (task, runs) = (self.task, &self.runs);
        let spread = |figure: &dyn Fn(&Run) -> f64| Spread::of(runs.iter().map(figure).collect());
        let counted = task.counted();
        let published = task.may_drop().then(|| spread(&|run| run.published()));
        let idle = counted == Counted::Subscribers && !runs.is_empty();
        let trips: Vec<_> = runs.iter().filter_map(|run| run.send.latencies.clone()).collect();
        let noted = runs.iter().find_map(|run| run.receive.note.clone().or(run.send.note.clone()));
        let expected = if counted == Counted::Subscribers || counted == Counted::RoundTrips {
            0
        } else {
            let role = Role { count: self.count, ..task.role.clone() };
            (0..role.peers).map(|n| role.share(n)).sum::<u64>() * runs.len() as u64
        };
        let of_relay = |run: &Run| Some(run.relay.as_ref()?.cpu_seconds / run.sent() * 1e6);
        let relays: Vec<_> = runs.iter().filter_map(of_relay).collect();
        let received = runs.iter().map(|run| run.receive.messages).sum();
        Cell {
            library: self.library.name.to_owned(),
            runs: runs.len(),
            rate: spread(&|run| run.rate(counted)),
            megabytes: spread(&|run| run.rate(counted) * task.role.size as f64 / 1e6),
            cpu_per_million: spread(&|run| run.cpu() / run.counted(counted) * 1e6),
            published,
            relay_cpu: (relays.len() == runs.len()).then(|| Spread::of(relays)),
            told: runs.iter().map(|run| run.receive.told).sum(),
            memory_each: idle.then(|| spread(&|run| run.grown as f64 / task.role.peers as f64)),
            storm: idle.then(|| spread(&|run| run.storm)),
            expected,
            lost: if expected == 0 { 0 } else { expected.saturating_sub(received) },
            peak_rss: runs.iter().map(Run::peak_rss).max().unwrap_or(0),
            latencies: median_of(&trips),
            p50: (!trips.is_empty())
                .then(|| Spread::of(trips.iter().map(|trips| trips.p50 as f64).collect())),
            note: self.note.or(noted),
        }
    }
}

fn median_of(runs: &[Latencies]) -> Option<Latencies> {
    let first = runs.first()?;
    let median = |figure: &dyn Fn(&Latencies) -> u64| {
        Spread::of(runs.iter().map(|run| figure(run) as f64).collect()).median as u64
    };
    let points = first.points.iter().enumerate();
    Some(Latencies {
        min: median(&|run| run.min),
        p50: median(&|run| run.p50),
        p90: median(&|run| run.p90),
        p99: median(&|run| run.p99),
        p999: median(&|run| run.p999),
        max: median(&|run| run.max),
        points: points.map(|(n, &(q, _))| (q, median(&|run| run.points[n].1))).collect(),
    })
}

/// What the processes reported.
struct Run {
    /// The sender's, the ping's, or the publisher's of idle subscribers.
    send: Tally,
    receive: Tally,
    relay: Option<Tally>,
    /// Octets by which the publisher grew while its subscribers came.
    grown: u64,
    /// Seconds in which they did.
    storm: f64,
    subscribers: usize,
}

impl Run {
    fn of(library: &Library, task: &Task, count: u64) -> Result<Self, String> {
        if task.role.is_of_pipeline() {
            return Self::of_pipeline(library, task, count);
        }
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let path = |name| format!("ipc://{}", folder.path().join(name).display());
        let (endpoint, back) = match task.transport {
            "tcp" => (ANY_PORT.to_owned(), ANY_PORT.to_owned()),
            _ => (path("there"), path("back")),
        };
        let asked = Role { count, endpoint, ..task.role.clone() };
        let (binds, connects, back) = match asked.verb {
            Verb::Push => (Verb::Pull, Verb::Push, None),
            Verb::Ping => (Verb::Pong, Verb::Ping, Some(back)),
            Verb::Idle => (Verb::Pub, Verb::Idle, None),
            _ => (Verb::Pub, Verb::Sub, None),
        };
        let (events, mut stage) = Stage::new(library);
        let mut binder = Process::spawn(
            library,
            &Role { verb: binds, bind: true, ..asked.clone() },
            BINDER,
            &events,
        )?;
        let endpoint = stage.line("listening ", BINDER)?.0;
        let before = binder.resident();
        let connects_to = Role { verb: connects, endpoint, back, ..asked };
        let mut connectors = Vec::new();
        for role in shared_out(&connects_to) {
            let side = CONNECTOR + connectors.len();
            connectors.push(Process::spawn(library, &role, side, &events)?);
        }
        let (mut grown, mut storm) = (0, 0.0);
        match connects {
            Verb::Sub => {
                stage.subscribed(connectors.len())?;
                binder.go();
                stage.end_of(BINDER)?;
                connectors.iter_mut().for_each(Process::go);
            }
            Verb::Idle => {
                let from = stage.line("connecting", CONNECTOR)?.1;
                storm = (stage.subscribed(connectors.len())? - from).as_secs_f64();
                std::thread::sleep(SETTLING);
                grown = binder.resident().saturating_sub(before);
                connectors.iter_mut().for_each(Process::go);
                binder.go();
            }
            Verb::Push => {
                stage.end_of(CONNECTOR)?;
                binder.go();
            }
            _ => {}
        }
        let processes = std::iter::once(&mut binder).chain(&mut connectors);
        for (side, process) in processes.enumerate() {
            stage.end_of(side)?;
            let status = process.0.wait().map_err(|error| error.to_string())?;
            stage.check(status)?;
        }
        let binder = stage.tally(BINDER)?;
        let mut connector = stage.tally(CONNECTOR)?;
        for side in CONNECTOR + 1..CONNECTOR + connectors.len() {
            let other = stage.tally(side)?;
            connector.messages += other.messages;
            connector.cpu_seconds += other.cpu_seconds;
        }
        let subscribers = task.role.peers;
        // of idle ones the publisher counts as the sender
        let (send, receive) = match binds {
            Verb::Pub => (binder, connector),
            _ => (connector, binder),
        };
        Ok(Self { send, receive, relay: None, grown, storm, subscribers })
    }

    /// The relay first, then the consumer, and the producer when that has subscribed.
    fn of_pipeline(library: &Library, task: &Task, count: u64) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let path = |name| format!("ipc://{}", folder.path().join(name).display());
        let (endpoint, local) = (ANY_PORT.to_owned(), path("local"));
        let back = task.role.window.map(|_| path("back"));
        let asked = Role { count, endpoint, local, back, ..task.role.clone() };
        let (events, mut stage) = Stage::new(library);
        let start = |verb, side, endpoint: &str| {
            let endpoint = endpoint.to_owned();
            let role = Role { verb, endpoint, bind: verb == Verb::Relay, ..asked.clone() };
            Process::spawn(library, &role, side, &events)
        };
        let mut relay = start(Verb::Relay, BINDER, ANY_PORT)?;
        let (endpoint, _) = stage.line("listening ", BINDER)?;
        let mut consumer = start(Verb::Consume, CONNECTOR, &endpoint)?;
        stage.subscribed(1)?;
        let mut producer = start(Verb::Produce, PRODUCER, &endpoint)?;
        stage.end_of(PRODUCER)?;
        consumer.go();
        stage.end_of(CONNECTOR)?;
        relay.go();
        stage.end_of(BINDER)?;
        for process in [&mut relay, &mut consumer, &mut producer] {
            let status = process.0.wait().map_err(|error| error.to_string())?;
            stage.check(status)?;
        }
        Ok(Self {
            send: stage.tally(PRODUCER)?,
            receive: stage.tally(CONNECTOR)?,
            relay: Some(stage.tally(BINDER)?),
            grown: 0,
            storm: 0.0,
            subscribers: 1,
        })
    }

    /// What the relay took.
    fn sent(&self) -> f64 {
        self.send.messages as f64
    }

    /// What the rate is a rate of.
    fn counted(&self, counted: Counted) -> f64 {
        match counted {
            Counted::Received => self.receive.messages as f64,
            Counted::Published | Counted::RoundTrips => self.send.messages as f64,
            Counted::Subscribers => self.subscribers as f64,
        }
    }

    fn rate(&self, counted: Counted) -> f64 {
        let seconds = match counted {
            Counted::Received => self.receive.seconds,
            Counted::Published | Counted::RoundTrips => self.send.seconds,
            Counted::Subscribers => self.storm,
        };
        if seconds > 0.0 { self.counted(counted) / seconds } else { 0.0 }
    }

    fn published(&self) -> f64 {
        self.rate(Counted::Published)
    }

    fn cpu(&self) -> f64 {
        let relay = self.relay.as_ref().map_or(0.0, |relay| relay.cpu_seconds);
        self.send.cpu_seconds + self.receive.cpu_seconds + relay
    }

    fn peak_rss(&self) -> u64 {
        let relay = self.relay.as_ref().map_or(0, |relay| relay.peak_rss);
        self.send.peak_rss.max(self.receive.peak_rss).max(relay)
    }
}

/// The roles of the connecting processes: idle subscribers are several when they are many, since a
/// process may not have as many files as they need.
fn shared_out(role: &Role) -> Vec<Role> {
    if role.verb != Verb::Idle {
        return vec![role.clone()];
    }
    let firsts = (0..role.peers).step_by(IDLE_IN_A_PROCESS);
    let peers = firsts.map(|first| IDLE_IN_A_PROCESS.min(role.peers - first));
    peers.map(|peers| Role { peers, ..role.clone() }).collect()
}

/// A process's number in its run.
type Side = usize;
const BINDER: Side = 0;
/// The first of them.
const CONNECTOR: Side = 1;
const PRODUCER: Side = 2;

/// A measured process; killed if it is still there when it is dropped.
struct Process(Child);

impl Process {
    fn spawn(
        library: &Library,
        role: &Role,
        side: Side,
        events: &Sender<(Side, Event)>,
    ) -> Result<Self, String> {
        let program = library.program().map_err(|error| error.to_string())?;
        let mut command = Command::new(program);
        command.args(["peer", library.name, &role.to_argument()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        let (stderr, stdout) = (child.stderr.take(), child.stdout.take());
        let told = events.clone();
        std::thread::spawn(move || {
            for line in stderr.into_iter().flat_map(|pipe| BufReader::new(pipe).lines()) {
                let line = line.unwrap_or_else(|error| error.to_string());
                if told.send((side, Event::Line(line, Instant::now()))).is_err() {
                    return;
                }
            }
        });
        let told = events.clone();
        std::thread::spawn(move || {
            let mut text = String::new();
            if let Some(mut pipe) = stdout {
                pipe.read_to_string(&mut text).ok();
            }
            told.send((side, Event::End(text))).ok();
        });
        Ok(Self(child))
    }

    /// See `signals`. A process that has ended needs none.
    fn go(&mut self) {
        if let Some(pipe) = &mut self.0.stdin {
            writeln!(pipe, "go").ok();
        }
    }

    fn resident(&self) -> u64 {
        memory(&self.0.id().to_string(), "VmRSS:")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

enum Event {
    /// On the standard error.
    Line(String, Instant),
    /// All of the standard output.
    End(String),
}

/// What the driver hears of a run's processes.
struct Stage {
    library: &'static str,
    events: Receiver<(Side, Event)>,
    /// Lines that have come and nobody has asked for.
    heard: Vec<(Side, String, Instant)>,
    ended: Vec<(Side, String)>,
    deadline: Instant,
}

impl Stage {
    fn new(library: &Library) -> (Sender<(Side, Event)>, Self) {
        let (sender, events) = channel();
        let deadline = Instant::now() + DEADLINE;
        let (heard, ended) = Default::default();
        (sender, Self { library: library.name, events, heard, ended, deadline })
    }

    /// Waits for a line of a process that begins so: its rest, and when it came.
    fn line(&mut self, begin: &str, side: Side) -> Result<(String, Instant), String> {
        loop {
            if let Some(found) = self.found(begin, side) {
                return Ok(found);
            }
            self.hear_of_living()?;
        }
    }

    /// Waits until the publisher has said that they are all there, or each of the subscribers'
    /// processes: since when that is so.
    fn subscribed(&mut self, processes: usize) -> Result<Instant, String> {
        let (mut there, begin) = (0, "subscribed");
        loop {
            if let Some((_, at)) = self.found(begin, BINDER) {
                return Ok(at);
            }
            for side in CONNECTOR..CONNECTOR + processes {
                if let Some((_, at)) = self.found(begin, side) {
                    there += 1;
                    if there == processes {
                        return Ok(at);
                    }
                }
            }
            self.hear_of_living()?;
        }
    }

    fn found(&mut self, begin: &str, side: Side) -> Option<(String, Instant)> {
        let found = |(of, line, _): &(Side, String, _)| *of == side && line.starts_with(begin);
        let (_, line, at) = self.heard.remove(self.heard.iter().position(found)?);
        Some((line[begin.len()..].trim().to_owned(), at))
    }

    /// Waits for whatever comes next, while no process should have ended yet.
    fn hear_of_living(&mut self) -> Result<(), String> {
        if !self.ended.is_empty() {
            return Err(self.fault("a process ended too early"));
        }
        self.hear()
    }

    fn end_of(&mut self, side: Side) -> Result<(), String> {
        while !self.ended.iter().any(|(ended, _)| *ended == side) {
            self.hear()?;
        }
        Ok(())
    }

    fn hear(&mut self) -> Result<(), String> {
        let time = self.deadline.saturating_duration_since(Instant::now());
        match self.events.recv_timeout(time) {
            Ok((side, Event::Line(line, at))) => self.heard.push((side, line, at)),
            Ok((side, Event::End(text))) => self.ended.push((side, text)),
            Err(RecvTimeoutError::Timeout) => {
                return Err(self.fault(&format!("it was not done in {} s", DEADLINE.as_secs())));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(self.fault("its processes said nothing more"));
            }
        }
        Ok(())
    }

    fn check(&mut self, status: ExitStatus) -> Result<(), String> {
        if status.success() { Ok(()) } else { Err(self.fault(&status.to_string())) }
    }

    fn tally(&self, side: Side) -> Result<Tally, String> {
        let text = self.ended.iter().find(|(ended, _)| *ended == side).map(|(_, text)| text);
        let text = text.map_or("", String::as_str);
        serde_json::from_str(text).map_err(|error| self.fault(&format!("{error} in {text:?}")))
    }

    /// With what the processes said of it; all of that goes to the standard error.
    fn fault(&self, what: &str) -> String {
        let said: Vec<_> = self.heard.iter().map(|(_, line, _)| line.as_str()).collect();
        eprintln!("{}: {what}\n{}", self.library, said.join("\n"));
        // the line after a panic's place is what it says
        let at = said.iter().position(|line| line.contains("panicked at"));
        let panic = at.and_then(|at| said.get(at + 1));
        panic.map_or(format!("failed: {what}"), |panic| format!("failed: {what}: {panic}"))
    }
}

const ANY_PORT: &str = "tcp://127.0.0.1:*";

/// For one run, with all its parts.
const DEADLINE: Duration = Duration::from_secs(60);
/// After the last subscriber has come, before the publisher's memory is looked at.
const SETTLING: Duration = Duration::from_millis(300);
const ENOUGH_FAILURES: usize = 2;
/// Sockets, each of which needs one or two files; 20 000 files are what a system may stop at.
const IDLE_IN_A_PROCESS: usize = 5000;

/// The first guess at a count, for a library that is no faster than that in some ten milliseconds.
const FIRST_OCTETS: usize = 20_000_000;
const FIRST_MESSAGES: usize = 50;
const CALIBRATIONS: usize = 4;
/// A run that took a third of the time tells well enough what all of it will hold.
const CLOSE: f64 = 3.0;
/// A first, short run is mostly its beginning.
const BOLDEST: f64 = 20.0;
