//! `dragonwire demo`: publishers, workers and a subscriber as real processes, one of which is killed,
//! and at the end an account of every message.

mod books;
mod child;
mod folder;
mod follow;
mod publisher;
mod table;
mod worker;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dragonwire::{Endpoint, EndpointState, Error, Event, SocketOptions, SubHandle, SubSocket};
use tokio::time::{MissedTickBehavior, interval, sleep_until, timeout};

use crate::console::{Console, Target, grouped};
use crate::demo::books::{Account, Life, Pushed, balance};
use crate::demo::child::{Child, Said};
use crate::demo::folder::Folder;
use crate::demo::follow::Tally;
use crate::demo::publisher::read_ledger;
use crate::ending::{Ending, Failure};
use crate::rates::per_second;
use crate::signals::Signals;

pub(crate) use self::publisher::{PublisherArgs, publish};
pub(crate) use self::worker::{WorkerArgs, work};

/// How the demo is to be.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DemoArgs {
    /// How long messages flow
    #[arg(long, value_name = "N", default_value_t = 5,
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Messages that each worker sends a second; 0: as many as it can
    #[arg(long, value_name = "N", default_value_t = 0)]
    rate: u64,
    /// Exchange messages with real libzmq sockets instead; libzmq is built from source first, so
    /// this works through `cargo run` only
    #[arg(long, conflicts_with_all = ["seconds", "rate"])]
    with_libzmq: bool,
}

/// Runs the demo; fails when the books do not balance.
pub(crate) async fn run(args: DemoArgs) -> Result<Ending, Failure> {
    if args.with_libzmq {
        return with_libzmq().await;
    }
    let mut signals = Signals::listen()
        .map_err(|error| Failure::new(format!("cannot wait for signals: {error}")))?;
    let screen = Console::start(Target::Output);
    let ending = tokio::select! {
        // dropped half-way it kills its processes and removes its folder
        played = play(&args, &screen) => played.map(|()| Ending::Done),
        signal = signals.next() => Ok(Ending::Signal(signal)),
    };
    screen.flush();
    ending
}

/// Hands over to the one package that may link libzmq, `interop/`.
async fn with_libzmq() -> Result<Ending, Failure> {
    const BY_HAND: &str =
        "cargo run --release --package dragonwire-interop --example demo_with_libzmq";
    let by_hand =
        || Failure::new(format!("--with-libzmq needs `cargo run`; in a checkout: {BY_HAND}"));
    let cargo = std::env::var_os("CARGO").ok_or_else(by_hand)?;
    let folder = std::env::var_os("CARGO_MANIFEST_DIR").ok_or_else(by_hand)?;
    let status = tokio::process::Command::new(cargo)
        .args(BY_HAND.split(' ').skip(1))
        .current_dir(folder)
        .kill_on_drop(true)
        .status()
        .await
        .map_err(|error| Failure::new(format!("cannot start cargo: {error}")))?;
    match status.success() {
        true => Ok(Ending::Done),
        false => Err(Failure::new("the exchange with libzmq failed")),
    }
}

async fn play(args: &DemoArgs, screen: &Console) -> Result<(), Failure> {
    INTRODUCTION.lines().for_each(|line| screen.say(line));
    let mut stage = Stage::set(args, screen)?;
    let live =
        LiveLine { began: stage.began, handle: stage.handle.clone(), tally: stage.tally.clone() };
    tokio::select! {
        told = tell(&mut stage, args) => told?,
        never = live.show(screen) => match never {},
    }
    stage.say("stopping the workers, then the publishers, then the subscriber");
    stage.stop_workers().await?;
    stage.stop_publishers().await?;
    stage.settle()
}

/// What happens, in order.
async fn tell(stage: &mut Stage<'_>, args: &DemoArgs) -> Result<(), Failure> {
    let seconds = Duration::from_secs(args.seconds);
    for name in ['A', 'B'] {
        stage.start_publisher(name).await?;
    }
    stage.handle.ready().await?;
    for name in ['A', 'B'] {
        stage.flowing(name).await?;
        stage.start_workers(name)?;
    }
    let Ok(example) = timeout(PATIENCE, stage.tally.example()).await else {
        return Err(Failure::new("no message comes"));
    };
    let began = Instant::now();
    let at = |part: f64| sleep_until((began + seconds.mul_f64(part)).into());
    stage.say(&format!("messages flow, such as  {example}"));
    stage.say("(topic | publisher, its number; worker, its number; value)");

    at(0.25).await;
    stage.start_publisher('C').await?;
    stage.flowing('C').await?;
    stage.start_workers('C')?;
    stage.say("publisher C has joined; the subscriber follows it with the same socket");

    at(0.5).await;
    stage.kill_publisher('B').await?;
    stage.say("publisher B was killed (SIGKILL); its workers wait, A and C go on");

    at(0.7).await;
    stage.start_publisher('B').await?;
    stage.flowing('B').await?;
    stage.say("publisher B is back: workers and subscriber found it again by themselves");

    at(1.0).await;
    Ok(())
}

/// All the processes, and what is known of them.
struct Stage<'a> {
    // the order matters: processes end before their folder goes
    workers: Vec<(char, Child)>,
    publishers: Vec<Playing>,
    folder: Folder,
    rate: u64,
    screen: &'a Console,
    began: Instant,
    handle: SubHandle,
    tally: Tally,
    lives: Vec<Life>,
    pushed: BTreeMap<char, Vec<Pushed>>,
    next_life: u32,
    next_worker: u32,
}

/// A publisher process that runs.
struct Playing {
    name: char,
    life: u32,
    endpoint: Endpoint,
    began: Instant,
    child: Child,
}

impl<'a> Stage<'a> {
    fn set(args: &DemoArgs, screen: &'a Console) -> Result<Self, Failure> {
        let folder = Folder::create()
            .map_err(|error| Failure::new(format!("cannot make a temporary folder: {error}")))?;
        let options = SocketOptions::new().reconnect_interval(Duration::from_millis(50));
        let subscriber = SubSocket::with_options(options)?;
        for topic in TOPICS {
            subscriber.subscribe(topic)?;
        }
        let handle = subscriber.handle();
        let tally = Tally::default();
        tokio::spawn(tally.clone().follow(subscriber));
        Ok(Self {
            workers: Vec::new(),
            publishers: Vec::new(),
            folder,
            rate: args.rate,
            screen,
            began: Instant::now(),
            handle,
            tally,
            lives: Vec::new(),
            pushed: BTreeMap::new(),
            next_life: 1,
            next_worker: 1,
        })
    }

    fn say(&self, what: &str) {
        self.screen.say(format!("  {:5.1} s  {what}", self.began.elapsed().as_secs_f64()));
    }

    fn pull_endpoint(&self, name: char) -> String {
        format!("ipc://{}/{name}.sock", self.folder.path().display())
    }

    fn ledger(&self, life: u32) -> std::path::PathBuf {
        self.folder.path().join(format!("ledger-{life}"))
    }

    /// Starts a publisher where it was before, or on a free port, and follows it.
    async fn start_publisher(&mut self, name: char) -> Result<(), Failure> {
        let before = self.lives.iter().find(|life| life.publisher == name);
        let publish =
            before.map_or("tcp://127.0.0.1:0".to_owned(), |before| before.endpoint.clone());
        let life = self.next_life;
        self.next_life += 1;
        let arguments = [
            "demo-publisher".to_owned(),
            format!("--life={life}"),
            format!("--publish={publish}"),
            format!("--pull={}", self.pull_endpoint(name)),
            format!("--workers={WORKERS}"),
            format!("--ledger={}", self.ledger(life).display()),
        ];
        let mut child = Child::start(format!("publisher {name}"), &arguments)?;
        let Said::Listening(endpoint) = child.said::<Account>().await? else {
            return Err(Failure::new(format!("publisher {name} does not say where it listens")));
        };
        let endpoint: Endpoint = endpoint.parse().map_err(Error::from)?;
        self.tally.expect(life, name, endpoint.clone());
        self.handle.add(&endpoint).await?;
        self.say(&format!("publisher {name} listens on {endpoint}"));
        self.publishers.push(Playing { name, life, endpoint, began: Instant::now(), child });
        Ok(())
    }

    /// Waits until the subscriber has subscribed at the publisher.
    async fn flowing(&mut self, name: char) -> Result<(), Failure> {
        let Some(playing) = self.publishers.iter_mut().find(|playing| playing.name == name) else {
            return Ok(());
        };
        match playing.child.said::<Account>().await? {
            Said::Flowing => Ok(()),
            _ => Err(Failure::new(format!("publisher {name} does not get its subscriber"))),
        }
    }

    fn start_workers(&mut self, name: char) -> Result<(), Failure> {
        for _ in 0..WORKERS {
            let worker = self.next_worker;
            self.next_worker += 1;
            let arguments = [
                "demo-worker".to_owned(),
                format!("--worker={worker}"),
                format!("--connect={}", self.pull_endpoint(name)),
                format!("--rate={}", self.rate),
            ];
            self.workers.push((name, Child::start(format!("worker {worker}"), &arguments)?));
        }
        Ok(())
    }

    /// Kills a publisher and waits until the subscriber has everything that got out of it.
    async fn kill_publisher(&mut self, name: char) -> Result<(), Failure> {
        let Some(at) = self.publishers.iter().position(|playing| playing.name == name) else {
            return Ok(());
        };
        let mut playing = self.publishers.remove(at);
        let mut monitor = self.handle.monitor();
        playing.child.kill().await?;
        let lasted = playing.began.elapsed();
        let gone = async {
            while let Some(event) = monitor.recv().await {
                if matches!(&event, Event::Disconnected { peer, .. }
                    if peer.endpoint == playing.endpoint)
                {
                    break;
                }
            }
        };
        if timeout(PATIENCE, gone).await.is_err() {
            return Err(Failure::new(format!("{} is still connected", playing.endpoint)));
        }
        let account = read_ledger(&self.ledger(playing.life))?;
        self.enter(&playing, lasted, true, account);
        Ok(())
    }

    async fn stop_workers(&mut self) -> Result<(), Failure> {
        for (_, worker) in &mut self.workers {
            worker.stop();
        }
        for (name, mut worker) in std::mem::take(&mut self.workers) {
            let pushed: Pushed = worker.finished().await?;
            self.pushed.entry(name).or_default().push(pushed);
            worker.ended().await?;
        }
        Ok(())
    }

    /// Publishers end by themselves when all their workers have. Waits for what they sent.
    async fn stop_publishers(&mut self) -> Result<(), Failure> {
        for mut playing in std::mem::take(&mut self.publishers) {
            let account: Account = playing.child.finished().await?;
            let lasted = playing.began.elapsed();
            self.handle.remove(&playing.endpoint).await?;
            // too little is told by the books
            let _ = timeout(PATIENCE, self.tally.reached(playing.life, account.sent)).await;
            self.enter(&playing, lasted, false, account);
            playing.child.ended().await?;
        }
        self.handle.close().await;
        Ok(())
    }

    fn enter(&mut self, playing: &Playing, lasted: Duration, killed: bool, account: Account) {
        let again = self.lives.iter().any(|life| life.publisher == playing.name);
        self.lives.push(Life {
            number: playing.life,
            publisher: playing.name,
            endpoint: playing.endpoint.to_string(),
            killed,
            again,
            lasted,
            account,
            seen: self.tally.seen(playing.life),
        });
    }

    /// Prints the tables and says whether the books balance.
    fn settle(mut self) -> Result<(), Failure> {
        for life in &mut self.lives {
            life.seen = self.tally.seen(life.number);
        }
        self.lives.sort_by_key(|life| (life.publisher, life.number));
        let (hops, mut faults) = balance(&self.lives, &self.pushed);
        if self.tally.strange() > 0 {
            faults.push(format!("{} messages came from elsewhere", self.tally.strange()));
        }
        let say = |text: &str| text.lines().for_each(|line| self.screen.say(line));
        say("\nFrom the publishers to this subscriber (PUB to SUB over TCP):\n\n");
        say(&table::publishers(&self.lives));
        say("\nFrom the workers to the publishers (PUSH to PULL over a Unix socket):\n\n");
        say(&table::hops(&hops));
        self.screen.say("");
        if !faults.is_empty() {
            faults.iter().for_each(|fault| say(&format!("wrong: {fault}")));
            return Err(Failure::new("the books do not balance"));
        }
        say("The books balance: sent = delivered + dropped by reason + in flight.");
        for (word, meaning) in WORDS {
            let dropped =
                |life: &Life| life.account.dropped.get(word).is_some_and(|count| *count > 0);
            if word == "in flight" || self.lives.iter().any(dropped) {
                say(&format!("  {word:17}  {meaning}"));
            }
        }
        Ok(())
    }
}

/// The line that shows what flows while the story goes on.
struct LiveLine {
    began: Instant,
    handle: SubHandle,
    tally: Tally,
}

impl LiveLine {
    async fn show(self, screen: &Console) -> std::convert::Infallible {
        let period = if screen.is_terminal() { 200 } else { 1000 };
        let mut ticks = interval(Duration::from_millis(period));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        let (mut last, mut before) = (Instant::now(), 0);
        loop {
            ticks.tick().await;
            let publishers = self.tally.publishers();
            let delivered = publishers.values().map(|(_, delivered)| delivered).sum();
            let rate = per_second(delivered - before, last.elapsed());
            (last, before) = (Instant::now(), delivered);
            let mut line = format!(
                "  {:5.1} s  {} msgs/s:",
                self.began.elapsed().as_secs_f64(),
                grouped(rate)
            );
            let states = self.handle.endpoints();
            for (publisher, (endpoint, delivered)) in publishers {
                line.push_str(&format!("  {publisher} {}", grouped(delivered)));
                let status = states.iter().find(|status| status.endpoint == endpoint);
                match status.map(|status| &status.state) {
                    None | Some(EndpointState::Ready) => {}
                    Some(EndpointState::Backoff { attempt, .. }) => {
                        line.push_str(&format!(" (attempt {attempt})"));
                    }
                    Some(_) => line.push_str(" (connecting)"),
                }
            }
            screen.show(line);
        }
    }
}

/// What the subscriber wants; workers also send on `debug.`, which nobody does.
pub(crate) const TOPICS: [&str; 2] = ["temp.", "wind."];

/// The topic of a worker's last message.
pub(crate) const END: &str = "end";

/// How long a process that ends may go on sending; with everybody there it takes milliseconds.
pub(crate) const LINGER: Duration = Duration::from_secs(10);

/// Workers of each publisher.
const WORKERS: usize = 2;

/// How long to wait for what takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

const INTRODUCTION: &str = r#"dragonwire demo: real processes and sockets, nothing else needed

  2 workers each  --PUSH-->  Unix socket  --PULL-->  publishers A, B, later C
  publishers      --PUB-->   TCP          --SUB-->   this process

Each publisher numbers the messages of its workers and publishes them; this process follows all
publishers with one socket and subscribes to "temp." and "wind.", but not to "debug.".

"#;

/// What the heads of the columns mean.
const WORDS: [(&str, &str); 4] = [
    ("no_subscriber", "nobody had subscribed to the topic: it was not sent at all"),
    ("peer_hwm_messages", "the subscriber's queue was at its high-water mark"),
    ("peer_gone", "queued for a subscriber that went"),
    ("in flight", "died with the process that was killed, in its queues and the kernel's"),
];
