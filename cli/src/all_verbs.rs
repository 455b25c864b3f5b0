//! The arguments of every verb but those of the publisher service: of the sockets, and of the driver layer.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use bytes::Bytes;
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, Subcommand};
use dragonwire::{Endpoint, SocketOptions, SocketType, XPubVerbose};

use crate::args::memory_budget;
use crate::console::Console;
use crate::directory::{self, DirectoryArgs};
use crate::ending::{Ending, Failure};
use crate::json_lines::parse_hex;
use crate::lines::Format;
use crate::publish::{self, PublishArgs};
use crate::subscribe::{self, SubscribeArgs};
use crate::{demo, run};

/// What one of these verbs is to do.
#[derive(Debug)]
pub(crate) enum Job {
    Socket(Box<SocketJob>),
    Demo(demo::DemoArgs),
    DemoPublisher(demo::PublisherArgs),
    DemoWorker(demo::WorkerArgs),
    Publish(Box<PublishArgs>),
    Subscribe(Box<SubscribeArgs>),
    Directory(DirectoryArgs),
}

impl Job {
    /// Does it, to its end.
    pub(crate) async fn perform(self, console: &Console) -> Result<Ending, Failure> {
        match self {
            Self::Socket(job) => run::run(*job, console).await,
            Self::Demo(args) => demo::run(args).await,
            Self::DemoPublisher(args) => demo::publish(args).await,
            Self::DemoWorker(args) => demo::work(args).await,
            Self::Publish(args) => publish::run(*args, console).await,
            Self::Subscribe(args) => subscribe::run(*args, console).await,
            Self::Directory(args) => directory::run(args, console).await,
        }
    }
}

/// One socket and what happens between it and the standard streams.
#[derive(Debug)]
pub(crate) struct SocketJob {
    pub(crate) kind: SocketType,
    pub(crate) endpoints: Vec<(Direction, Endpoint)>,
    pub(crate) options: SocketOptions,
    /// Messages that are handed to PUB and XPUB in one go.
    pub(crate) burst: usize,
    pub(crate) subscriptions: Vec<Bytes>,
    /// End after so many messages have been printed.
    pub(crate) count: Option<u64>,
    /// `None`: depends on whether a standard stream is a terminal.
    pub(crate) format: Option<Format>,
    pub(crate) stats: bool,
}

/// Who comes to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Bind,
    Connect,
}

macro_rules! usage {
    ($kind:literal) => {
        concat!("dragonwire ", $kind, " (--bind ENDPOINT | --connect ENDPOINT)... [OPTION]...")
    };
}

/// One of the verbs, with its arguments.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Send each line to the subscribers of its topic; ends when the standard input ends
    #[command(name = "pub", override_usage = usage!("pub"), after_help = LINES)]
    Pub(Sends),
    /// Print what publishers send on the subscribed topics
    #[command(name = "sub", override_usage = usage!("sub"), after_help = LINES)]
    Sub(Subscribes),
    /// Like pub, and print what subscribers subscribe to: octet 1 (or 0) and the topic
    #[command(name = "xpub", override_usage = usage!("xpub"), after_help = LINES)]
    XPub(Publishes),
    /// Like sub, and send lines to the publishers
    #[command(name = "xsub", override_usage = usage!("xsub"), after_help = LINES)]
    XSub(Subscribes),
    /// Send each line to one of the peers in turn; ends when the standard input ends
    #[command(name = "push", override_usage = usage!("push"), after_help = LINES)]
    Push(Sends),
    /// Print what the peers push, in turn
    #[command(name = "pull", override_usage = usage!("pull"), after_help = LINES)]
    Pull(Receives),
    /// Show messages flowing between real processes, one of which is killed, and balance the books
    Demo(demo::DemoArgs),
    #[command(hide = true)]
    DemoPublisher(demo::PublisherArgs),
    #[command(hide = true)]
    DemoWorker(demo::WorkerArgs),
    /// Publish an event to Dragonflow's subscribers, or each line of the standard input
    #[command(after_help = PUBLISHES)]
    Publish(Box<PublishArgs>),
    /// Print the events of Dragonflow's publishers
    #[command(after_help = SUBSCRIBES)]
    Subscribe(Box<SubscribeArgs>),
    /// Serve the directory where publishers and subscribers find each other, or look into it
    Directory(DirectoryArgs),
}

#[derive(Debug, Args)]
pub(crate) struct Sends {
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(crate) struct Receives {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    count: Count,
}

#[derive(Debug, Args)]
pub(crate) struct Publishes {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    count: Count,
    /// Report every subscription, not only the first to each topic
    #[arg(long)]
    verbose: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Subscribes {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    count: Count,
    /// Subscribe to topics that begin so; repeatable; empty: to everything
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    subscribe: Vec<OsString>,
    /// The same for any octets, two hexadecimal digits each
    #[arg(long, value_name = "HEX", value_parser = parse_hex)]
    subscribe_hex: Vec<Bytes>,
}

#[derive(Debug, Args)]
struct Count {
    /// End after N messages have been printed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

#[derive(Debug, Args)]
struct Common {
    #[command(flatten)]
    endpoints: Endpoints,
    /// What lines look like [default: text at a terminal, else json]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Show rates and totals on the standard error while running
    #[arg(long)]
    stats: bool,
    /// Identity sent to the peers
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "identity_hex")]
    identity: Option<OsString>,
    /// The same for any octets, two hexadecimal digits each
    #[arg(long, value_name = "HEX", value_parser = parse_hex)]
    identity_hex: Option<Bytes>,
    /// Both high-water marks, in messages per peer; 0: no limit [default: 1000]
    #[arg(long, value_name = "N")]
    hwm: Option<usize>,
    /// How long to go on sending at the end [default: without limit]
    #[arg(long, value_name = "MS")]
    linger: Option<u64>,
    /// The shortest wait before connecting again [default: 100]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    reconnect_ivl: Option<u64>,
    /// How long a handshake may take; 0: for ever [default: 10000]
    #[arg(long, value_name = "MS")]
    handshake_ivl: Option<u64>,
    /// How often silent peers are asked for a sign of life; 0: never [default: 5000]
    #[arg(long, value_name = "MS")]
    heartbeat_ivl: Option<u64>,
    /// How long to wait for that sign of life; 0: for ever [default: 15000]
    #[arg(long, value_name = "MS")]
    heartbeat_timeout: Option<u64>,
    /// How long peers are told to wait for one of ours; 0: not told [default: 0]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(..=6_553_500))]
    heartbeat_ttl: Option<u64>,
    /// The largest message that is received, in octets [default: 67108864]
    #[arg(long, value_name = "N")]
    max_msg_size: Option<u64>,
    /// The most memory that the process may take, in MiB, whatever its peers do [default: no limit]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..))]
    memory: Option<u32>,
}

/// `--bind` and `--connect` in the order in which they were given.
#[derive(Debug)]
struct Endpoints(Vec<(Direction, Endpoint)>);

impl Verb {
    /// What it is to do; refuses what the parser cannot see to be wrong.
    pub(crate) fn into_job(self) -> Result<Job, String> {
        let socket = |kind, common: Common| -> Result<SocketJob, String> { common.into_job(kind) };
        let job = match self {
            Self::Pub(sends) => socket(SocketType::Pub, sends.common)?,
            Self::Push(sends) => socket(SocketType::Push, sends.common)?,
            Self::Pull(Receives { common, count }) => {
                SocketJob { count: count.count, ..socket(SocketType::Pull, common)? }
            }
            Self::XPub(Publishes { common, count, verbose }) => {
                let mut job = socket(SocketType::XPub, common)?;
                if verbose {
                    job.options = job.options.xpub_verbose(XPubVerbose::Subscriptions);
                }
                SocketJob { count: count.count, ..job }
            }
            Self::Sub(subscribes) => subscribes.into_job(SocketType::Sub)?,
            Self::XSub(subscribes) => subscribes.into_job(SocketType::XSub)?,
            Self::Demo(args) => return Ok(Job::Demo(args)),
            Self::DemoPublisher(args) => return Ok(Job::DemoPublisher(args)),
            Self::DemoWorker(args) => return Ok(Job::DemoWorker(args)),
            Self::Publish(args) => return Ok(Job::Publish(args)),
            Self::Subscribe(args) => return Ok(Job::Subscribe(args)),
            Self::Directory(args) => return Ok(Job::Directory(args)),
        };
        Ok(Job::Socket(Box::new(job)))
    }
}

impl Subscribes {
    fn into_job(self, kind: SocketType) -> Result<SocketJob, String> {
        let texts = self.subscribe.into_iter().map(|text| Bytes::from(text.into_vec()));
        let subscriptions = texts.chain(self.subscribe_hex).collect();
        Ok(SocketJob { subscriptions, count: self.count.count, ..self.common.into_job(kind)? })
    }
}

impl Common {
    fn into_job(self, kind: SocketType) -> Result<SocketJob, String> {
        let Endpoints(endpoints) = self.endpoints;
        if endpoints.is_empty() {
            return Err("no endpoint: give --bind ENDPOINT or --connect ENDPOINT, as often as \
                        needed, such as --bind tcp://127.0.0.1:5555"
                .to_owned());
        }
        let ms = Duration::from_millis;
        let unless_zero = |value: u64| (value > 0).then(|| ms(value));
        let mut options = SocketOptions::new().linger(self.linger.map(ms));
        if let Some(identity) = self.identity {
            options = options.routing_id(identity.into_vec());
        }
        if let Some(identity) = self.identity_hex {
            options = options.routing_id(identity);
        }
        if let Some(messages) = self.hwm {
            options = options.send_hwm(messages).recv_hwm(messages);
        }
        if let Some(interval) = self.reconnect_ivl {
            options = options.reconnect_interval(ms(interval));
        }
        if let Some(timeout) = self.handshake_ivl {
            options = options.handshake_timeout(unless_zero(timeout));
        }
        if let Some(interval) = self.heartbeat_ivl {
            options = options.heartbeat_interval(unless_zero(interval));
        }
        if let Some(timeout) = self.heartbeat_timeout {
            options = options.heartbeat_timeout(unless_zero(timeout));
        }
        if let Some(ttl) = self.heartbeat_ttl {
            options = options.heartbeat_ttl(unless_zero(ttl));
        }
        if let Some(octets) = self.max_msg_size {
            options = options.max_message_size(Some(octets));
        }
        if let Some(mebibytes) = self.memory {
            options = options.budget(&memory_budget(mebibytes));
        }
        Ok(SocketJob {
            kind,
            endpoints,
            options,
            burst: self.hwm.filter(|messages| *messages > 0).map_or(BURST, |hwm| hwm.min(BURST)),
            subscriptions: Vec::new(),
            count: None,
            format: self.format,
            stats: self.stats,
        })
    }
}

impl Args for Endpoints {
    fn augment_args(command: clap::Command) -> clap::Command {
        let endpoint = |name: &'static str, help: &'static str| {
            Arg::new(name)
                .long(name)
                .value_name("ENDPOINT")
                .action(ArgAction::Append)
                .value_parser(|text: &str| text.parse::<Endpoint>())
                .help(help)
        };
        command
            .arg(endpoint(
                "bind",
                "Listen on tcp://HOST:PORT, ipc://PATH or ipc://@NAME; repeatable",
            ))
            .arg(endpoint("connect", "Connect to an endpoint, now or once it is there; repeatable"))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Endpoints {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut found = Vec::new();
        for (name, direction) in [("bind", Direction::Bind), ("connect", Direction::Connect)] {
            let places = matches.indices_of(name).into_iter().flatten();
            let values = matches.get_many::<Endpoint>(name).into_iter().flatten();
            found.extend(places.zip(values).map(|(at, value)| (at, direction, value.clone())));
        }
        found.sort_by_key(|(at, ..)| *at);
        Ok(Self(found.into_iter().map(|(_, direction, endpoint)| (direction, endpoint)).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Messages that are handed over in one go: half the high-water mark that is the default.
const BURST: usize = 500;

pub(crate) const KINDS: &str = "choose pub, sub, xpub, xsub, push, pull, demo, publish, subscribe, \
                     publisher-service, status or directory";

pub(crate) const USAGE: &str = "dragonwire TYPE (--bind ENDPOINT | --connect ENDPOINT)... [OPTION]...\n       \
    dragonwire (publish | subscribe | publisher-service | status | directory) [OPTION]...";

pub(crate) const EXAMPLES: &str = r#"Try it in two terminals:
  dragonwire sub --connect tcp://127.0.0.1:5555 --subscribe ""
  dragonwire pub --bind tcp://127.0.0.1:5555

`dragonwire TYPE --help` tells the options and what lines look like.
Exit status: 0 done, 1 failed, 2 bad arguments, 130 Ctrl-C, 143 SIGTERM, 141 nobody reads
the standard output any more."#;

const LINES: &str = r#"Lines, in and out:
  json  ["topic", "body"] is a message of two frames; {"hex": "00ff"} stands for a frame that is
        not UTF-8. sub and xsub also take {"subscribe": "topic"} and {"unsubscribe": "topic"}.
  text  topic | body is the same message; \\ \| \n \r \t \x00 are escapes.
        sub takes +topic to subscribe and -topic to take that back.
  raw   in: a line is a message of one frame, without escapes (sub: as in text).
        out: the frames of a message put together, and a line feed.
A line that cannot be read is reported on the standard error and ignored.
xsub subscribes with a frame of octet 1 and the topic, too; octet 0 takes that back."#;

const PUBLISHES: &str = r#"The event is sent on its topic. With driver zmq the command listens, as a publisher does, and a
subscriber has to come to it: the event is sent again for up to --wait MS until one has, and if
none does that is told on the standard error; the exit status is 0 all the same. With driver
zmq-multiproc it is 1 if no publisher service takes the event within five seconds.

With --stdin each line is {"table": T, "key": K, "action": A, "value": V, "topic": T} and, for
a topic that is not the event's own, "topic_argument": T. What is left out is null, but for the
topic, which is "D" then. A value that is not text is sent as what it is. A line that cannot be
read is reported on the standard error and ignored; the exit status is 2 at the end.

{"ready":true} is printed when the publisher listens; one of driver zmq-multiproc connects with its
first event. At the end what is queued is sent, for up
to five seconds."#;

const SUBSCRIBES: &str = r#"Without --uri, --directory, --stdin and option files it follows the publisher at
tcp://127.0.0.1:8866. With option files also publishers_ips, and with a directory all publishers
of the other role. With driver zmq-multiproc it takes the place of the publisher service.

{"ready":true} is printed when all publishers have taken the topics, or after a second: then those
are still connected to that were not there. After it each event is a line:
  {"table":"lport","key":"7e4a","action":"create","value":"{}","topic":"D"}
Where something may have been lost there is a line of action "sync", with its cause (gap,
publisher_ended, reconnected, undecodable, announced) and, if that is known, what is missing:
  {...,"action":"sync",...,"cause":"gap","missing":{"publisher":"ID","epoch":1,"topic":"D",
   "from":5,"to":7}}

With --stdin it takes {"register_topic": T}, {"unregister_topic": T}, {"register_listen_address":
URI} and {"unregister_listen_address": URI}, one a line, and answers each with one line:
  {"register_topic":"t","result":true}     true: it is new; null from unregister
  {"unregister_topic":"t","error":"why"}
The end of the standard input does not end it."#;
