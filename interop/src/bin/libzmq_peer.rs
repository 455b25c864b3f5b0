//! libzmq's end of a throughput measurement: one socket, one tight loop, as in libzmq's own
//! `perf/local_thr.cpp` and `perf/remote_thr.cpp`.
//!
//! It prints one line of JSON, `{"messages":N,"seconds":S,"cpu_seconds":C}`: the messages sent or
//! received, and the time and the processor time of all its threads from the first message to the
//! last. For a sender the last is when all of them are with the kernel. To the standard error it
//! says `listening ENDPOINT` when it has bound, and `connecting ENDPOINT` before it connects.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use dragonwire_interop::libzmq::{self, Context, Frame, Opt, Socket, SocketType};
use rustix::time::{ClockId, clock_gettime};

const USAGE: &str = "\
usage: libzmq_peer push|pull|pub|sub --endpoint ENDPOINT (--bind|--connect) --count N [OPTION]...

  --count N         messages to send or to receive
  --size N          octets of payload (push, pub; default 64)
  --topic TEXT      pub: a first frame with it, else messages have one frame
                    sub: what to subscribe to (default: all)
  --hwm N           both high-water marks, in messages (default 1000; 0: no limit)
  --io-threads N    libzmq's threads for input and output (default 1)
  --subscribers N   pub: wait for that many subscriptions first (default 1)
  --no-drop         pub: wait for a subscriber that is at its mark (ZMQ_XPUB_NODROP)
  --idle MS         pull, sub: give up when nothing comes for that long (default 20000)
  --linger MS       push, pub: how long to wait at the end for the kernel to take what is left
                    (default 60000)
";

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(problem) => {
            eprint!("{problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match options.run() {
        Ok(Tally { messages, seconds, cpu_seconds }) => {
            println!(
                "{{\"messages\":{messages},\"seconds\":{seconds:.6},\"cpu_seconds\":{cpu_seconds:.6}}}"
            );
            if messages == options.count { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("{}: {error}", options.endpoint);
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Push,
    Pull,
    Pub,
    Sub,
}

#[derive(Debug)]
struct Options {
    verb: Verb,
    endpoint: String,
    bind: bool,
    count: u64,
    size: usize,
    topic: Option<String>,
    hwm: i32,
    io_threads: i32,
    subscribers: usize,
    no_drop: bool,
    idle: Duration,
    linger: i32,
}

struct Tally {
    messages: u64,
    seconds: f64,
    cpu_seconds: f64,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let verb = match arguments.next().as_deref() {
            Some("push") => Verb::Push,
            Some("pull") => Verb::Pull,
            Some("pub") => Verb::Pub,
            Some("sub") => Verb::Sub,
            other => return Err(format!("{other:?} is not a verb")),
        };
        let mut options = Self {
            verb,
            endpoint: String::new(),
            bind: false,
            count: 0,
            size: 64,
            topic: None,
            hwm: 1000,
            io_threads: 1,
            subscribers: 1,
            no_drop: false,
            idle: Duration::from_secs(20),
            linger: 60_000,
        };
        let mut connect = false;
        while let Some(name) = arguments.next() {
            match name.as_str() {
                "--bind" => options.bind = true,
                "--connect" => connect = true,
                "--no-drop" => options.no_drop = true,
                _ => {
                    let value = arguments.next().ok_or_else(|| format!("{name} has no value"))?;
                    match name.as_str() {
                        "--endpoint" => options.endpoint = value,
                        "--topic" => options.topic = Some(value),
                        "--count" => options.count = number(&name, &value)?,
                        "--size" => options.size = number(&name, &value)?,
                        "--hwm" => options.hwm = number(&name, &value)?,
                        "--io-threads" => options.io_threads = number(&name, &value)?,
                        "--subscribers" => options.subscribers = number(&name, &value)?,
                        "--idle" => options.idle = Duration::from_millis(number(&name, &value)?),
                        "--linger" => options.linger = number(&name, &value)?,
                        _ => return Err(format!("unknown option {name}")),
                    }
                }
            }
        }
        if options.endpoint.is_empty() || options.count == 0 || options.bind == connect {
            return Err("--endpoint, --count and one of --bind and --connect are needed".into());
        }
        Ok(options)
    }

    fn run(&self) -> libzmq::Result<Tally> {
        let context = Context::new();
        context.set_io_threads(self.io_threads)?;
        let socket = context.socket(match self.verb {
            Verb::Push => SocketType::Push,
            Verb::Pull => SocketType::Pull,
            // PUB is this without `recv`, and that is needed to wait for subscribers
            Verb::Pub => SocketType::XPub,
            Verb::Sub => SocketType::Sub,
        });
        socket.set(Opt::SndHwm, self.hwm)?;
        socket.set(Opt::RcvHwm, self.hwm)?;
        socket.set(Opt::Linger, self.linger)?;
        if self.verb == Verb::Pub {
            socket.set(Opt::XPubNoDrop, i32::from(self.no_drop))?;
            socket.set(Opt::XPubVerbose, 1)?;
        }
        if self.verb == Verb::Sub {
            socket.subscribe(self.topic.as_deref().unwrap_or_default())?;
        }
        if self.bind {
            eprintln!("listening {}", socket.bind(&self.endpoint)?);
        } else {
            eprintln!("connecting {}", self.endpoint);
            socket.connect(&self.endpoint)?;
        }
        match self.verb {
            Verb::Push | Verb::Pub => self.send(context, socket),
            Verb::Pull | Verb::Sub => self.receive(&socket),
        }
    }

    fn send(&self, context: Context, socket: Socket) -> libzmq::Result<Tally> {
        if self.verb == Verb::Pub {
            for _ in 0..self.subscribers {
                socket.recv()?;
            }
        }
        socket.set(Opt::SndTimeo, -1)?;
        let payload = vec![b'x'; self.size];
        let start = Clock::read();
        for _ in 0..self.count {
            if let Some(topic) = &self.topic {
                socket.send_frame(&mut Frame::copied(topic.as_bytes()), true)?;
            }
            socket.send_frame(&mut Frame::copied(&payload), false)?;
        }
        // closing and terminating returns when the kernel has everything, or `linger` has passed
        drop(socket);
        drop(context);
        Ok(start.tally(self.count))
    }

    fn receive(&self, socket: &Socket) -> libzmq::Result<Tally> {
        // what a subscriber has left to say at the end is of no interest to a publisher that is gone
        socket.set(Opt::Linger, 0)?;
        socket.set(Opt::RcvTimeo, i32::try_from(self.idle.as_millis()).unwrap_or(i32::MAX))?;
        let mut frame = Frame::new();
        let mut start = None;
        for messages in 0..self.count {
            loop {
                match socket.recv_frame(&mut frame) {
                    Ok(()) => {}
                    Err(libzmq::Error::AGAIN) => {
                        let mut tally = start.unwrap_or_else(Clock::read).tally(messages);
                        tally.seconds = (tally.seconds - self.idle.as_secs_f64()).max(0.0);
                        return Ok(tally);
                    }
                    Err(error) => return Err(error),
                }
                if !frame.more() {
                    break;
                }
            }
            start.get_or_insert_with(Clock::read);
        }
        Ok(start.unwrap_or_else(Clock::read).tally(self.count))
    }
}

fn number<N: std::str::FromStr>(name: &str, value: &str) -> Result<N, String> {
    value.parse().map_err(|_| format!("{name}: {value:?} is not a number"))
}

#[derive(Clone, Copy)]
struct Clock {
    wall: Instant,
    cpu: f64,
}

impl Clock {
    fn read() -> Self {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        Self { wall: Instant::now(), cpu: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9 }
    }

    fn tally(self, messages: u64) -> Tally {
        let now = Self::read();
        Tally {
            messages,
            seconds: (now.wall - self.wall).as_secs_f64(),
            cpu_seconds: now.cpu - self.cpu,
        }
    }
}
