//! `dragonwire publish`: events from the command line, or from the standard input as lines of JSON.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use clap::Args;
use dragonwire::driver::{Action, DriverError, Publisher, SEND_ALL_TOPIC, Update, Value};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tracing::Level;

use crate::console::{Console, counted};
use crate::driver_options::{DriverArgs, Side};
use crate::ending::{Ending, Failure};
use crate::json_lines::explain;
use crate::log;
use crate::run::{GRACE, PATIENCE};
use crate::signals::Signals;
use crate::stdio::{Output, read_lines};

/// What is published, and how.
#[derive(Debug, Clone, Args)]
#[command(override_usage = "dragonwire publish TABLE KEY ACTION [VALUE] [OPTION]...\n       \
    dragonwire publish --stdin [OPTION]...")]
pub(crate) struct PublishArgs {
    /// The table's name
    #[arg(required_unless_present = "stdin")]
    table: Option<String>,
    /// The object's key
    #[arg(required_unless_present = "stdin")]
    key: Option<String>,
    /// create, set, delete, log, sync or another word
    #[arg(required_unless_present = "stdin")]
    action: Option<String>,
    /// The object, as a rule JSON; sent as text
    #[arg(allow_hyphen_values = true)]
    value: Option<String>,
    /// Whom the event concerns
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, default_value = SEND_ALL_TOPIC)]
    topic: String,
    /// Publish each line of the standard input; ends when that ends
    #[arg(long, conflicts_with_all = ["table", "key", "action", "value", "topic"])]
    stdin: bool,
    /// How long the first event waits for a subscriber of its topic to connect; with driver zmq
    /// [default: 1000, with --stdin 0]
    #[arg(long, value_name = "MS")]
    wait: Option<u64>,
    #[command(flatten)]
    driver: DriverArgs,
}

/// Runs `publish` to its end.
pub(crate) async fn run(args: PublishArgs, console: &Console) -> Result<Ending, Failure> {
    let mut signals = Signals::listen()
        .map_err(|error| Failure::new(format!("cannot wait for signals: {error}")))?;
    log::start(Level::WARN, console);
    let chosen = args.driver.load(Side::Publisher, console)?;
    let publisher = chosen.driver.get_publisher();
    // a service or a broker is there for events that nobody hears yet
    let wait = match args.wait {
        _ if !chosen.is_network() => 0,
        Some(wait) => wait,
        None if args.stdin => 0,
        None => WAIT,
    };
    let wait = Duration::from_millis(wait);
    let mut sender = Sender { publisher: &*publisher, wait, repeated: 0 };
    let refused = Arc::new(AtomicU64::new(0));
    let sending = async {
        publisher.initialize().await?;
        if let Some(endpoint) = publisher.endpoint().filter(|_| chosen.is_network()) {
            console.say(format!("bound {endpoint}"));
        }
        say_ready(console).await;
        if args.stdin {
            sender.send_lines(read_events(refused.clone(), console.clone())).await
        } else {
            Ok(sender.send(&event_of(args)).await?)
        }
    };
    let (ending, sent) = tokio::select! {
        sent = sending => (Ending::Done, sent),
        signal = signals.next() => (Ending::Signal(signal), Ok(())),
    };
    // what was published before something failed is sent all the same
    let ending = close(&*publisher, ending, &mut signals, console).await?;
    sent?;
    tell_losses(&*publisher, sender.repeated, console);
    match refused.load(Ordering::Relaxed) {
        lines if lines > 0 && ending == Ending::Done => {
            let lines = counted(lines, "line");
            Err(Failure {
                status: 2,
                reason: format!("{lines} of the standard input not published"),
            })
        }
        _ => Ok(ending),
    }
}

/// Says that what comes now is published.
async fn say_ready(console: &Console) {
    let output = Output::start(console.clone());
    if let Ok(permit) = output.ready().await {
        permit.send(READY.to_vec());
    }
    // whoever does not read it does not need it
    let _ = timeout(GRACE, output.finish()).await;
}

/// Sends what is queued: as long as that takes when all is well, or for a moment.
async fn close(
    publisher: &dyn Publisher,
    ending: Ending,
    signals: &mut Signals,
    console: &Console,
) -> Result<Ending, Failure> {
    let closing = async {
        match publisher.close().await {
            // what was published is sent, and the row will be stale before long
            Err(DriverError::Directory(error)) => {
                console.say(format!("dragonwire: the directory was not told of its end: {error}"));
                Ok(ending)
            }
            closed => closed.map(|()| ending),
        }
    };
    if ending != Ending::Done {
        return Ok(timeout(GRACE, closing).await.unwrap_or(Ok(ending))?);
    }
    let impatience = async {
        sleep(PATIENCE).await;
        console.say("not all is sent yet: waiting; Ctrl-C gives up");
        std::future::pending().await
    };
    tokio::select! {
        closed = closing => Ok(closed?),
        signal = signals.next() => Ok(Ending::Signal(signal)),
        never = impatience => never,
    }
}

/// Says what was published and came to nobody.
fn tell_losses(publisher: &dyn Publisher, repeated: u64, console: &Console) {
    let stats = publisher.stats();
    let unheard = stats.unheard.saturating_sub(repeated);
    if unheard > 0 {
        let events = counted(unheard, "event");
        console.say(format!("{events} reached nobody: no subscriber of the topic was connected"));
    }
    if stats.dropped > 0 {
        let events = counted(stats.dropped, "event");
        console.say(format!("{events} dropped: a subscriber was too slow, and is told by sync"));
    }
}

/// An event and what `send_event` is given with it.
#[derive(Debug, PartialEq)]
struct Event {
    update: Update,
    topic: Option<String>,
}

struct Sender<'a> {
    publisher: &'a dyn Publisher,
    /// How long the next event is sent again while nobody hears it.
    wait: Duration,
    /// How often that was done.
    repeated: u64,
}

impl Sender<'_> {
    async fn send_lines(
        &mut self,
        mut blocks: mpsc::Receiver<io::Result<Vec<Event>>>,
    ) -> Result<(), Failure> {
        while let Some(block) = blocks.recv().await {
            let events = block.map_err(|error| {
                Failure::new(format!("cannot read the standard input: {error}"))
            })?;
            for event in &events {
                self.send(event).await?;
            }
        }
        Ok(())
    }

    async fn send(&mut self, event: &Event) -> Result<(), DriverError> {
        let until = Instant::now() + std::mem::take(&mut self.wait);
        while !self.is_heard(event).await? && Instant::now() < until {
            sleep(AGAIN).await;
            self.repeated += 1;
        }
        Ok(())
    }

    async fn is_heard(&self, event: &Event) -> Result<bool, DriverError> {
        let unheard = self.publisher.stats().unheard;
        self.publisher.send_event(&event.update, event.topic.as_deref()).await?;
        Ok(self.publisher.stats().unheard == unheard)
    }
}

fn event_of(args: PublishArgs) -> Event {
    let update = Update {
        table: args.table,
        key: args.key,
        action: args.action.map(Action::from),
        value: args.value.map(Value::Text),
        topic: Some(args.topic),
        timestamp: Some(SystemTime::now()),
    };
    Event { update, topic: None }
}

/// The events on the standard input; lines that are none are told and counted.
fn read_events(
    refused: Arc<AtomicU64>,
    console: Console,
) -> mpsc::Receiver<io::Result<Vec<Event>>> {
    read_lines(move |number, line| {
        let line = line.trim_ascii();
        if line.is_empty() {
            return None;
        }
        parse(line)
            .inspect_err(|fault| {
                refused.fetch_add(1, Ordering::Relaxed);
                console.say_surely(format!(
                    "dragonwire: line {number} of the standard input is ignored: {fault}"
                ));
            })
            .ok()
    })
}

/// A line of the standard input. What is left out is null, but for the topic.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    table: Option<String>,
    key: Option<String>,
    action: Option<String>,
    value: Option<serde_json::Value>,
    #[serde(default = "send_all")]
    topic: Option<String>,
    topic_argument: Option<String>,
}

fn send_all() -> Option<String> {
    Some(SEND_ALL_TOPIC.to_owned())
}

fn parse(line: &[u8]) -> Result<Event, String> {
    if line.first() != Some(&b'{') {
        return Err("an event is an object: {\"table\": ..., \"key\": ..., \"action\": ...}".into());
    }
    let line: Line = serde_json::from_slice(line).map_err(|error| explain(&error))?;
    let value = line.value.map(|value| match value {
        serde_json::Value::String(text) => Value::Text(text),
        other => Value::Other(other),
    });
    let update = Update {
        table: line.table,
        key: line.key,
        action: line.action.map(Action::from),
        value,
        topic: line.topic,
        timestamp: Some(SystemTime::now()),
    };
    Ok(Event { update, topic: line.topic_argument })
}

/// What both verbs say when they are bound or connected.
pub(crate) const READY: &[u8] = b"{\"ready\":true}\n";

/// How long a single event waits for somebody to hear it, in milliseconds: ten times the time after
/// which a subscriber connects again.
const WAIT: u64 = 1000;

/// How soon an event that nobody has heard is sent again.
const AGAIN: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_line_leaves_out_is_null_and_the_topic_that_of_all() {
        let Event { update, topic } = parse(br#"{"table":"lport","value":null}"#).unwrap();
        assert_eq!(
            (update.table.as_deref(), update.key, update.action),
            (Some("lport"), None, None)
        );
        assert_eq!((update.value, update.topic.as_deref(), topic), (None, Some("D"), None));
        let Event { update, topic } =
            parse(br#"{"action":"log","value":"{}","topic":null,"topic_argument":"t"}"#).unwrap();
        assert_eq!(update.action, Some(Action::Log));
        assert_eq!(update.value, Some(Value::Text("{}".to_owned())));
        assert_eq!((update.topic, topic.as_deref()), (None, Some("t")));
        let Event { update, .. } = parse(br#"{"value":{"a":[1]}}"#).unwrap();
        assert_eq!(update.value, Some(Value::Other(serde_json::json!({"a": [1]}))));
    }

    #[test]
    fn lines_that_are_no_event_say_what_is_wrong() {
        for (line, part) in [
            (&b"[]"[..], "an event is an object"),
            (b"x", "an event is an object"),
            (b"{", "EOF while parsing"),
            (br#"{"tabel":"x"}"#, "unknown field `tabel`, expected one of `table`"),
            (br#"{"table":1}"#, "invalid type: integer `1`, expected a string at column"),
            (b"{\"table\":\"\xff\"}", "invalid unicode"),
            (br#"{"table":"a"} {}"#, "trailing characters"),
        ] {
            let fault = parse(line).unwrap_err();
            assert!(fault.contains(part), "{fault}");
        }
    }
}
