//! The command line.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Parser, Subcommand};
use dragonwire::Budget;

#[cfg(feature = "all-verbs")]
use crate::all_verbs::{self, EXAMPLES, KINDS, USAGE};
use crate::publisher_service::ServiceArgs;
use crate::status::StatusArgs;

/// What the command is to do.
#[derive(Debug)]
pub(crate) enum Job {
    #[cfg(feature = "all-verbs")]
    Other(all_verbs::Job),
    PublisherService(Box<ServiceArgs>),
    Status(StatusArgs),
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
    override_usage = USAGE
)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[cfg(feature = "all-verbs")]
    #[command(flatten)]
    Other(Box<all_verbs::Verb>),
    /// Publish the events of this host's processes on the network
    #[command(after_help = SERVES)]
    PublisherService(Box<ServiceArgs>),
    /// Print how the publisher service of this host is
    Status(StatusArgs),
}

/// The budget of a process that may take so many MiB.
pub(crate) fn memory_budget(mebibytes: u32) -> Budget {
    Budget::process((mebibytes as usize).saturating_mul(1 << 20))
}

impl Command {
    fn into_job(self) -> Result<Job, String> {
        match self {
            #[cfg(feature = "all-verbs")]
            Self::Other(verb) => verb.into_job().map(Job::Other),
            Self::PublisherService(args) => Ok(Job::PublisherService(args)),
            Self::Status(args) => Ok(Job::Status(args)),
        }
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

/// Socket types of ZeroMQ that people will ask for.
const LATER_KINDS: [&str; 5] = ["req", "rep", "dealer", "router", "pair"];

const SERVES: &str = r#"Takes events of this host's publishers from the local socket and publishes them on the network,
each publisher's in their order; says on the standard error when it is up. SIGTERM and SIGINT: what
processes have sent is sent on, and the exit status is 0. SIGHUP: the option files are read anew.
Takes a socket that systemd hands over (LISTEN_FDS) for the local one, and tells systemd when it
is ready (NOTIFY_SOCKET). `dragonwire status` asks it how it is."#;

/// Of a build without the feature `all-verbs`.
#[cfg(not(feature = "all-verbs"))]
const KINDS: &str = "this build has publisher-service and status alone";

#[cfg(not(feature = "all-verbs"))]
const USAGE: &str = "dragonwire (publisher-service | status) [OPTION]...";

#[cfg(not(feature = "all-verbs"))]
const EXAMPLES: &str = "`dragonwire TYPE --help` tells the options.
Exit status: 0 done, 1 failed, 2 bad arguments.";

#[cfg(all(test, feature = "all-verbs"))]
mod tests {
    use dragonwire::SocketType;

    use super::*;
    use crate::all_verbs::{Direction, SocketJob};

    fn parse_line(line: &str) -> Result<Job, NoJob> {
        let words = line.split(' ').map(|word| OsString::from(word.trim_matches('\'')));
        parse([OsString::from("dragonwire")].into_iter().chain(words))
    }

    fn socket(line: &str) -> SocketJob {
        match parse_line(line) {
            Ok(Job::Other(all_verbs::Job::Socket(job))) => *job,
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
