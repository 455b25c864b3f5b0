//! Messages per second between two processes, dragonwire's and libzmq's in turn.
//!
//! ```text
//! cargo bench --bench throughput -- [--patterns push-pull,pub-sub] [--transports tcp,ipc]
//!     [--sizes 16,64,...] [--runs N] [--threads N] [--without-libzmq]
//! ```
//!
//! Each row is the median of the runs, which alternate between the two libraries; options are the
//! defaults (high-water mark 1000, heartbeats on), but that PUB waits instead of dropping, so that
//! every message is counted. PUB/SUB messages have two frames, a topic of 8 octets and the payload.
//! The time is the receiver's, from its first message to its last; the CPU time is that of both
//! processes from start to end. libzmq's side is `interop/src/bin/libzmq_peer.rs`, built on demand.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use dragonwire::{OnFull, PubSocket, PullSocket, PushSocket, SocketOptions, SubSocket};

const TOPIC: &str = "topic.01";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if args.first().is_some_and(|arg| arg == "--peer") {
        return Peer::parse(&args[1..]).run();
    }
    let plan = Plan::parse(&args);
    let libzmq = if plan.libzmq { Some(build_libzmq_peer()) } else { None };
    println!(
        "{:<9} {:<4} {:>6} | {:>12} {:>10} {:>9} | {:>12} {:>9} | {:>6} {:>6}",
        "pattern",
        "",
        "octets",
        "dragonwire/s",
        "MB/s",
        "CPU s/M",
        "libzmq/s",
        "CPU s/M",
        "ratio",
        "CPU"
    );
    for pattern in &plan.patterns {
        for transport in &plan.transports {
            for &size in &plan.sizes {
                plan.row(pattern, transport, size, libzmq.as_deref());
            }
        }
    }
}

struct Plan {
    patterns: Vec<String>,
    transports: Vec<String>,
    sizes: Vec<usize>,
    runs: usize,
    threads: usize,
    libzmq: bool,
}

impl Plan {
    fn parse(args: &[String]) -> Self {
        let list = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
        let mut plan = Self {
            patterns: list("push-pull,pub-sub"),
            transports: list("tcp,ipc"),
            sizes: vec![16, 64, 256, 1024, 8192, 65536],
            runs: 3,
            threads: 0,
            libzmq: true,
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().expect("the option needs a value").as_str();
            match arg.as_str() {
                "--patterns" => plan.patterns = list(value()),
                "--transports" => plan.transports = list(value()),
                "--sizes" => {
                    plan.sizes = value().split(',').map(|size| size.parse().unwrap()).collect();
                }
                "--runs" => plan.runs = value().parse().unwrap(),
                "--threads" => plan.threads = value().parse().unwrap(),
                "--without-libzmq" => plan.libzmq = false,
                other => panic!("{other}: unknown option; see the top of benches/throughput.rs"),
            }
        }
        plan
    }

    fn row(&self, pattern: &str, transport: &str, size: usize, libzmq: Option<&Path>) {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..self.runs {
            // about a second of work each
            let count = (3_000_000_000 / (size + 200)).min(12_000_000);
            let own = std::env::current_exe().expect("this program has a path");
            let mut own = Command::new(own);
            own.args(["--peer", "--threads", &self.threads.to_string()]);
            ours.push(measure(own, pattern, transport, size, count));
            if let Some(libzmq) = libzmq {
                let count = (count / 4).max(1000);
                theirs.push(measure(Command::new(libzmq), pattern, transport, size, count));
            }
        }
        let (rate, cpu) = median(&mut ours);
        print!(
            "{pattern:<9} {transport:<4} {size:>6} | {rate:>12.0} {:>10.1} {cpu:>9.3}",
            rate * size as f64 / 1e6
        );
        if theirs.is_empty() {
            println!(" |");
        } else {
            let lost: u64 = theirs.iter().map(|run| run.lost).sum();
            let (their_rate, their_cpu) = median(&mut theirs);
            print!(
                " | {their_rate:>12.0} {their_cpu:>9.3} | {:>6.2} {:>6.2}",
                rate / their_rate,
                cpu / their_cpu
            );
            println!(
                "{}",
                if lost > 0 { format!(" ({lost} lost by libzmq)") } else { String::new() }
            );
        }
    }
}

/// One run of two processes.
struct Run {
    /// Messages per second.
    rate: f64,
    /// CPU seconds of both processes per million messages.
    cpu: f64,
    /// libzmq's receiver over ipc now and then does not get all of them.
    lost: u64,
}

fn median(runs: &mut [Run]) -> (f64, f64) {
    let middle = runs.len() / 2;
    runs.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    let rate = runs[middle].rate;
    runs.sort_by(|a, b| a.cpu.total_cmp(&b.cpu));
    (rate, runs[middle].cpu)
}

fn build_libzmq_peer() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let output = Command::new(cargo)
        .args(["build", "--release", "--package", "dragonwire-interop", "--bin", "libzmq_peer"])
        .args(["--message-format", "json", "--manifest-path"])
        .arg(manifest)
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "interop's libzmq_peer does not build");
    let messages = String::from_utf8_lossy(&output.stdout);
    let found = messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let name = message["target"]["name"].as_str()?;
        let path = message["executable"].as_str()?;
        (name == "libzmq_peer").then(|| PathBuf::from(path))
    });
    found.expect("cargo names the program it has built")
}

fn measure(mut program: Command, pattern: &str, transport: &str, size: usize, count: usize) -> Run {
    let (sender, receiver) = match pattern {
        "push-pull" => ("push", "pull"),
        "pub-sub" => ("pub", "sub"),
        other => panic!("{other}: unknown pattern"),
    };
    let folder = std::env::temp_dir().join(format!("dragonwire-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let endpoint = match transport {
        "tcp" => "tcp://127.0.0.1:*".to_owned(),
        "ipc" => format!("ipc://{}", folder.join("socket").display()),
        other => panic!("{other}: unknown transport"),
    };
    let own = program.get_args().next().is_some();
    let fixed: Vec<_> = program.get_args().map(|arg| arg.to_owned()).collect();
    let path = program.get_program().to_owned();
    let mut spawn = |verb: &str, endpoint: &str, role: &str| {
        program = Command::new(&path);
        program.args(&fixed).arg(verb);
        program.args(["--endpoint", endpoint, role, "--count", &count.to_string()]);
        if sender == "pub" {
            program.args(["--topic", TOPIC]);
        }
        if verb == "push" || verb == "pub" {
            program.args(["--size", &size.to_string()]);
        }
        match verb {
            "pub" => drop(program.arg("--no-drop")),
            // libzmq's receiver stops waiting for what does not come
            "pull" | "sub" if !own => drop(program.args(["--idle", "2000"])),
            _ => {}
        }
        program.stdout(Stdio::piped()).stderr(Stdio::piped());
        program.spawn().expect("the program starts")
    };
    let mut binder = spawn(if sender == "pub" { sender } else { receiver }, &endpoint, "--bind");
    let mut said = BufReader::new(binder.stderr.take().expect("it is piped"));
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    let real = line.trim().strip_prefix("listening ").unwrap_or_else(|| panic!("{line}"));
    let connector = spawn(if sender == "pub" { receiver } else { sender }, real, "--connect");
    let (binder, connector) = (result(binder), result(connector));
    std::fs::remove_dir_all(&folder).ok();
    let (send, receive) = if sender == "pub" { (binder, connector) } else { (connector, binder) };
    let lost = count as u64 - receive.messages;
    assert!(!own || lost == 0, "{lost} messages were lost");
    let cpu = (send.cpu_seconds + receive.cpu_seconds) / count as f64 * 1e6;
    Run { rate: receive.messages as f64 / receive.seconds, cpu, lost }
}

#[derive(serde::Deserialize)]
struct Tally {
    messages: u64,
    seconds: f64,
    cpu_seconds: f64,
}

fn result(mut child: Child) -> Tally {
    let mut text = String::new();
    child.stdout.take().expect("it is piped").read_to_string(&mut text).unwrap();
    child.wait().unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// dragonwire's side, with the options of `libzmq_peer`.
struct Peer {
    verb: String,
    endpoint: String,
    bind: bool,
    count: u64,
    size: usize,
    threads: usize,
    options: SocketOptions,
}

impl Peer {
    fn parse(args: &[String]) -> Self {
        let mut peer = Self {
            verb: String::new(),
            endpoint: String::new(),
            bind: false,
            count: 0,
            size: 64,
            threads: 0,
            options: SocketOptions::new(),
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().expect("the option needs a value").as_str();
            match arg.as_str() {
                "--endpoint" => peer.endpoint = value().to_owned(),
                "--bind" => peer.bind = true,
                "--connect" => peer.bind = false,
                "--count" => peer.count = value().parse().unwrap(),
                "--size" => peer.size = value().parse().unwrap(),
                "--threads" => peer.threads = value().parse().unwrap(),
                "--hwm" => {
                    let hwm = value().parse().unwrap();
                    peer.options = peer.options.send_hwm(hwm).recv_hwm(hwm);
                }
                "--topic" => drop(value()),
                "--no-drop" => peer.options = peer.options.on_full(OnFull::Wait),
                verb => peer.verb = verb.to_owned(),
            }
        }
        peer
    }

    fn run(self) {
        let runtime = match self.threads {
            0 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
            n => tokio::runtime::Builder::new_multi_thread().worker_threads(n).enable_all().build(),
        };
        let runtime = runtime.unwrap();
        let seconds = runtime.block_on(async move {
            let peer = async move {
                match self.verb.as_str() {
                    "push" => self.push().await,
                    "pull" => self.pull().await,
                    "pub" => self.publish().await,
                    _ => self.subscribe().await,
                }
            };
            tokio::spawn(peer).await.unwrap()
        });
        let (messages, seconds) = seconds;
        println!(
            "{{\"messages\":{messages},\"seconds\":{seconds:.6},\"cpu_seconds\":{:.6}}}",
            cpu_seconds()
        );
    }

    async fn push(self) -> (u64, f64) {
        let push = PushSocket::with_options(self.options).unwrap();
        if self.bind {
            eprintln!("listening {}", push.bind(self.endpoint).await.unwrap());
        } else {
            push.connect(self.endpoint).await.unwrap();
        }
        let payload = bytes::Bytes::from(vec![7; self.size]);
        let start = Instant::now();
        for _ in 0..self.count {
            push.send_frames(&[&payload]).await.unwrap();
        }
        assert_eq!(push.close().await.discarded, 0);
        (self.count, start.elapsed().as_secs_f64())
    }

    async fn pull(self) -> (u64, f64) {
        let mut pull = PullSocket::with_options(self.options).unwrap();
        if self.bind {
            eprintln!("listening {}", pull.bind(self.endpoint).await.unwrap());
        } else {
            pull.connect(self.endpoint).await.unwrap();
        }
        pull.recv().await.unwrap();
        let start = Instant::now();
        for _ in 1..self.count {
            pull.recv().await.unwrap();
        }
        (self.count, start.elapsed().as_secs_f64())
    }

    async fn publish(self) -> (u64, f64) {
        let publisher = PubSocket::with_options(self.options).unwrap();
        if self.bind {
            eprintln!("listening {}", publisher.bind(self.endpoint).await.unwrap());
        } else {
            publisher.connect(self.endpoint).await.unwrap();
        }
        let payload = vec![7; self.size];
        publisher.wait_for_subscribers(TOPIC, 1).await.unwrap();
        let start = Instant::now();
        for _ in 0..self.count {
            publisher.publish(TOPIC, &payload).await.unwrap();
        }
        assert_eq!(publisher.close().await.discarded, 0);
        (self.count, start.elapsed().as_secs_f64())
    }

    async fn subscribe(self) -> (u64, f64) {
        let mut subscriber = SubSocket::with_options(self.options).unwrap();
        subscriber.subscribe("topic.").unwrap();
        if self.bind {
            eprintln!("listening {}", subscriber.bind(self.endpoint).await.unwrap());
        } else {
            subscriber.connect(self.endpoint).await.unwrap();
        }
        subscriber.recv().await.unwrap();
        let start = Instant::now();
        for _ in 1..self.count {
            subscriber.recv().await.unwrap();
        }
        (self.count, start.elapsed().as_secs_f64())
    }
}

/// User and system time of this process, from /proc/self/stat in ticks of 10 ms.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}
