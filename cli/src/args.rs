//! The command line.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use bytes::Bytes;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, Parser, Subcommand};
use dragonwire::{Budget, Endpoint, SocketOptions, SocketType, XPubVerbose};

use crate::demo;
use crate::directory::DirectoryArgs;
use crate::json_lines::parse_hex;
use crate::lines::Format;
use crate::publish::PublishArgs;
use crate::publisher_service::ServiceArgs;
use crate::status::StatusArgs;
use crate::subscribe::SubscribeArgs;

/// What the command is to do.
#[derive(Debug)]
pub(crate) enum Job {
    Socket(Box<SocketJob>),
    Demo(demo::DemoArgs),
    DemoPublisher(demo::PublisherArgs),
    DemoWorker(demo::WorkerArgs),
    Publish(Box<PublishArgs>),
    Subscribe(Box<SubscribeArgs>),
    PublisherService(Box<ServiceArgs>),
    Status(StatusArgs),
    Directory(DirectoryArgs),
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

/// Why there is no [`Job`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoJob {
    /// Help or the version was asked for: print this.
    Told(String),
    /// The arguments are wrong; one line says how.
    Refused(String),
}

/// Reads the arguments; the first is the command's own name.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Job, NoJob> {
    match CommandLine::try_parse_from(arguments) {
        Ok(line) => line.command.into_job().map_err(NoJob::Refused),
        Err(error) => Err(explain(&error)),
    }
}

#[derive(Debug, Parser)]
#[command(
    name = "dragonwire",
    version,
    about = "ZeroMQ sockets and Dragonflow's publish/subscribe at the shell, one message a line",
    after_help = EXAMPLES,
    arg_required_else_help = true,
    subcommand_value_name = "TYPE",
    subcommand_help_heading = "Types",
    override_usage = "dragonwire TYPE (--bind ENDPOINT | --connect ENDPOINT)... [OPTION]...\n       \
        dragonwire (publish | subscribe | publisher-service | status | directory) [OPTION]..."
)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

macro_rules! usage {
    ($kind:literal) => {
        concat!("dragonwire ", $kind, " (--bind ENDPOINT | --connect ENDPOINT)... [OPTION]...")
    };
}

#[derive(Debug, Subcommand)]
enum Command {
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
    /// Publish the events of this host's processes on the network
    #[command(after_help = SERVES)]
    PublisherService(Box<ServiceArgs>),
    /// Print how the publisher service of this host is
    Status(StatusArgs),
    /// Serve the directory where publishers and subscribers find each other, or look into it
    Directory(DirectoryArgs),
}

#[derive(Debug, Args)]
struct Sends {
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Receives {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    count: Count,
}

#[derive(Debug, Args)]
struct Publishes {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    count: Count,
    /// Report every subscription, not only the first to each topic
    #[arg(long)]
    verbose: bool,
}

#[derive(Debug, Args)]
struct Subscribes {
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

impl Command {
    fn into_job(self) -> Result<Job, String> {
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
            Self::PublisherService(args) => return Ok(Job::PublisherService(args)),
            Self::Status(args) => return Ok(Job::Status(args)),
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

/// The budget of a process that may take so many MiB.
pub(crate) fn memory_budget(mebibytes: u32) -> Budget {
    Budget::process((mebibytes as usize).saturating_mul(1 << 20))
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

/// One line out of what the parser has to say on several.
fn explain(error: &clap::Error) -> NoJob {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => NoJob::Told(text),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            NoJob::Refused(format!("a TYPE is missing: {KINDS}; or see `dragonwire --help`"))
        }
        ErrorKind::InvalidSubcommand => {
            let name = match error.get(ContextKind::InvalidSubcommand) {
                Some(ContextValue::String(name)) => name.as_str(),
                _ => "",
            };
            let reason = if LATER_KINDS.contains(&name) {
                "this version of dragonwire does not have it yet"
            } else {
                "there is no such TYPE"
            };
            NoJob::Refused(format!("{name:?}: {reason}; {KINDS}"))
        }
        _ => {
            let said: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).collect();
            let said = said.join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
            NoJob::Refused(said.trim_start_matches("error: ").to_owned())
        }
    }
}

/// Messages that are handed over in one go: half the high-water mark that is the default.
const BURST: usize = 500;

const KINDS: &str = "choose pub, sub, xpub, xsub, push, pull, demo, publish, subscribe, \
                     publisher-service, status or directory";

/// Socket types of ZeroMQ that people will ask for.
const LATER_KINDS: [&str; 5] = ["req", "rep", "dealer", "router", "pair"];

const EXAMPLES: &str = r#"Try it in two terminals:
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

const SERVES: &str = r#"Takes events of this host's publishers from the local socket and publishes them on the network,
each publisher's in their order; says on the standard error when it is up. SIGTERM and SIGINT: what
processes have sent is sent on, and the exit status is 0. SIGHUP: the option files are read anew.
Takes a socket that systemd hands over (LISTEN_FDS) for the local one, and tells systemd when it
is ready (NOTIFY_SOCKET). `dragonwire status` asks it how it is."#;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Result<Job, NoJob> {
        let words = line.split(' ').map(|word| OsString::from(word.trim_matches('\'')));
        parse([OsString::from("dragonwire")].into_iter().chain(words))
    }

    fn socket(line: &str) -> SocketJob {
        match parse_line(line) {
            Ok(Job::Socket(job)) => *job,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn refused(line: &str) -> String {
        match parse_line(line) {
            Err(NoJob::Refused(reason)) => reason,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn endpoints_keep_their_order() {
        use Direction::{Bind, Connect};
        let job = socket(
            "pull --connect ipc://a --bind tcp://*:0 --hwm 5 --connect=tcp://x:1 --bind ipc://@b",
        );
        let texts: Vec<_> = job.endpoints.iter().map(|(d, e)| (*d, e.to_string())).collect();
        let expected =
            [(Connect, "ipc://a"), (Bind, "tcp://*:0"), (Connect, "tcp://x:1"), (Bind, "ipc://@b")];
        assert_eq!(texts, expected.map(|(d, e)| (d, e.to_owned())));
        assert_eq!(job.kind, SocketType::Pull);
        assert_eq!(job.count, None);
    }

    #[test]
    fn subscriptions_may_be_empty_or_begin_with_a_hyphen() {
        let job = socket(
            "sub --connect ipc://a --subscribe '' --subscribe -x --subscribe-hex 00ff --count 3",
        );
        assert_eq!(job.subscriptions, [&b""[..], b"-x", b"\0\xff"]);
        assert_eq!(job.count, Some(3));
    }

    #[test]
    fn values_that_switch_something_off() {
        let job = socket(
            "push --bind ipc://a --heartbeat-ivl 0 --heartbeat-timeout 0 --heartbeat-ttl 0 \
             --handshake-ivl 0 --linger 0 --hwm 0"
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
                .as_str(),
        );
        let shown = format!("{:?}", job.options);
        for part in [
            "heartbeat_interval: None",
            "heartbeat_timeout: None",
            "heartbeat_ttl: None",
            "handshake_timeout: None",
            "linger: Some(0ns)",
            "send_hwm: 0",
            "recv_hwm: 0",
        ] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        let shown = format!("{:?}", socket("push --bind ipc://a").options);
        assert!(shown.contains("linger: None"), "{shown}");
    }

    #[test]
    fn refusals_are_one_line_that_names_the_fault() {
        for (line, part) in [
            ("pub", "no endpoint: give --bind"),
            ("req --bind ipc://a", "\"req\": this version of dragonwire does not have it yet"),
            ("pubb --bind ipc://a", "\"pubb\": there is no such TYPE; choose pub"),
            ("--bind ipc://a", "unexpected argument '--bind'"),
            ("pub --bind nonsense", "bad endpoint \"nonsense\": it has no transport"),
            ("pub --bind tcp://x:99999", "\"99999\" is not a port"),
            ("pub --bind", "a value is required for '--bind <ENDPOINT>'"),
            ("pub --bind ipc://a --count 3", "unexpected argument '--count'"),
            ("pull --bind ipc://a --subscribe x", "unexpected argument '--subscribe'"),
            ("pull --bind ipc://a --count 0", "invalid value '0' for '--count <N>'"),
            ("pull --bind ipc://a --count x", "invalid value 'x' for '--count <N>'"),
            ("pull --bind ipc://a --format xml", "invalid value 'xml' for '--format"),
            ("pull --bind ipc://a --identity a --identity-hex 00", "cannot be used with"),
            ("sub --bind ipc://a --subscribe-hex 0", "not hexadecimal"),
            ("pull --bind ipc://a --reconnect-ivl 0", "'--reconnect-ivl <MS>'"),
            ("pull --bind ipc://a extra", "unexpected argument 'extra'"),
        ] {
            let reason = refused(line);
            assert!(reason.contains(part), "{line}: {reason}");
            assert!(!reason.contains('\n'), "{line}: {reason}");
        }
    }

    #[test]
    fn help_is_told() {
        for line in ["--help", "--version", "pub --help", "demo --help"] {
            assert!(matches!(parse_line(line), Err(NoJob::Told(_))), "{line}");
        }
        use clap::CommandFactory;
        CommandLine::command().debug_assert();
    }
}
