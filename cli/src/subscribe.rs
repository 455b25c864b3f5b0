//! `dragonwire subscribe`: events as lines of JSON, while topics and publishers may be added and taken
//! away on the standard input.

use std::future::pending;
use std::io::{self, ErrorKind};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use dragonwire::driver::{
    Action, Following, SEND_ALL_TOPIC, Subscriber, SubscriberEvent, Sync, Update, Updates, Value,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::Level;

use crate::console::{Console, grouped};
use crate::driver_options::{Chosen, DriverArgs, Side};
use crate::ending::{Ending, Failure};
use crate::json_lines::explain;
use crate::log;
use crate::publish::READY;
use crate::run::GRACE;
use crate::signals::{Signal, Signals};
use crate::stdio::{OUTPUT_BLOCK, Output, read_lines};

/// What is followed, and how.
#[derive(Debug, Clone, Args)]
pub(crate) struct SubscribeArgs {
    /// Follow a topic, over ZeroMQ all topics that begin so; repeatable [default: D, the topic of what
    /// is for everybody]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    topic: Vec<String>,
    /// End after N events have been printed, sync events not counted
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Take lines such as {"register_topic": "t"} from the standard input
    #[arg(long)]
    stdin: bool,
    #[command(flatten)]
    driver: DriverArgs,
}

/// Runs `subscribe` to its end.
pub(crate) async fn run(args: SubscribeArgs, console: &Console) -> Result<Ending, Failure> {
    let mut signals = Signals::listen()
        .map_err(|error| Failure::new(format!("cannot wait for signals: {error}")))?;
    log::start(Level::WARN, console);
    let chosen = args.driver.load(Side::Subscriber, console)?;
    let subscriber = chosen.driver.get_subscriber();
    let mut printing = Printing {
        updates: subscriber.initialize_stream()?,
        output: Output::start(console.clone()),
        page: Page { block: READY.to_vec(), room: args.count.unwrap_or(u64::MAX) },
    };
    let starting = start(&subscriber, &args, &chosen, console);
    let ended = match printing.until_started(starting, &mut signals).await {
        Ok(()) => {
            let inputs = args.stdin.then(|| read_commands(console.clone()));
            printing.until_end(&*subscriber, inputs, &mut signals).await
        }
        Err(ended) => {
            printing.page.block.clear();
            ended
        }
    };
    let ending = printing.finish(ended, &mut signals).await?;
    let _ = timeout(GRACE, subscriber.close()).await;
    if ending == Ending::Signal(Signal::Interrupt) {
        let stats = subscriber.stats();
        let (delivered, missing) = (grouped(stats.delivered), grouped(stats.missing));
        console.say(format!("received {delivered}, missing {missing}, sync {}", stats.syncs));
    }
    Ok(ending)
}

/// Begins to follow; returns when the publishers that are there have taken the topics.
async fn start(
    subscriber: &Arc<dyn Subscriber>,
    args: &SubscribeArgs,
    chosen: &Chosen,
    console: &Console,
) -> Result<(), Failure> {
    let default = args.topic.is_empty().then_some(SEND_ALL_TOPIC);
    for topic in args.topic.iter().map(String::as_str).chain(default) {
        subscriber.register_topic(topic).await?;
    }
    for uri in addresses(args, chosen) {
        subscriber.register_listen_address(&uri).await?;
    }
    subscriber.daemonize().await?;
    let listed = chosen.directory.as_ref().filter(|_| chosen.is_network()).map(|directory| {
        let (subscriber, directory) = (subscriber.clone(), directory.clone());
        let (role, timeout) = (chosen.options.role, chosen.options.publisher_timeout);
        let (told, listed) = oneshot::channel();
        tokio::spawn(async move {
            let roles = [role.counterpart()];
            let _following = Following::start(subscriber, &directory, &roles, timeout).await;
            let _ = told.send(());
            pending::<()>().await;
        });
        listed
    });
    let settled = async {
        if let Some(listed) = listed {
            let _ = listed.await;
        }
        subscriber.ready().await
    };
    match timeout(SETTLE, settled).await {
        Ok(ready) => Ok(ready?),
        // publishers that are not there are no reason not to hear the others
        Err(_) => {
            console.say("not every publisher is connected yet: those that come later are followed");
            Ok(())
        }
    }
}

/// The publishers that flags and option files name. Where nothing names any, it is this host's.
fn addresses(args: &SubscribeArgs, chosen: &Chosen) -> Vec<String> {
    let mut uris = chosen.followed(&args.driver).to_vec();
    if !chosen.is_network() {
        return uris;
    }
    let options = &chosen.options;
    let mut hosts = options.publishers_ips.clone();
    let nowhere = uris.is_empty() && chosen.directory.is_none() && !args.stdin;
    if nowhere && !args.driver.options.has_files() {
        hosts.push(options.local_ip.clone());
    }
    let (transport, port) = (&options.publisher_transport, options.publishers_port);
    uris.extend(hosts.iter().map(|host| match host.contains(':') {
        true => format!("{transport}://[{host}]:{port}"),
        false => format!("{transport}://{host}:{port}"),
    }));
    uris
}

/// Events on their way to the standard output.
struct Printing {
    updates: Updates,
    output: Output,
    page: Page,
}

/// What is handed over next.
struct Page {
    block: Vec<u8>,
    /// How many events may still be taken.
    room: u64,
}

impl Page {
    /// Whether more may be taken: while nobody reads, that is what stops the subscriber.
    fn takes(&self) -> bool {
        self.room > 0 && self.block.len() < OUTPUT_BLOCK
    }

    /// Takes an event, and those that are there as well.
    fn take(&mut self, event: SubscriberEvent, updates: &mut Updates) {
        let mut next = Some(event);
        while let Some(event) = next {
            encode(&event, &mut self.block);
            if matches!(event, SubscriberEvent::Update(_)) {
                self.room -= 1;
            }
            next = if self.takes() { updates.try_recv() } else { None };
        }
    }
}

impl Printing {
    /// Waits until the subscriber has started, or as many events as are wanted are there. Events
    /// are taken meanwhile: what publishers confirm stands behind them.
    async fn until_started(
        &mut self,
        starting: impl Future<Output = Result<(), Failure>>,
        signals: &mut Signals,
    ) -> Result<(), Result<Ending, Failure>> {
        let Self { updates, output, page } = self;
        let mut starting = pin!(starting);
        while page.room > 0 {
            tokio::select! {
                signal = signals.next() => return Err(Ok(Ending::Signal(signal))),
                () = output.closed() => return Err(Ok(Ending::ReaderGone)),
                started = &mut starting => return started.map_err(Err),
                Some(event) = updates.recv(), if page.takes() => page.take(event, updates),
            }
        }
        Ok(())
    }

    async fn until_end(
        &mut self,
        subscriber: &dyn Subscriber,
        mut inputs: Option<mpsc::Receiver<io::Result<Vec<Input>>>>,
        signals: &mut Signals,
    ) -> Result<Ending, Failure> {
        let Self { updates, output, page } = self;
        while page.room > 0 || !page.block.is_empty() {
            tokio::select! {
                signal = signals.next() => return Ok(Ending::Signal(signal)),
                () = output.closed() => return Ok(Ending::ReaderGone),
                permit = output.ready(), if !page.block.is_empty() => match permit {
                    Ok(permit) => permit.send(std::mem::take(&mut page.block)),
                    Err(_) => return Ok(Ending::ReaderGone),
                },
                event = updates.recv(), if page.takes() => match event {
                    Some(event) => page.take(event, updates),
                    None => return Ok(Ending::Done),
                },
                input = next_input(&mut inputs), if page.takes() => {
                    let inputs = input.map_err(|error| {
                        Failure::new(format!("cannot read the standard input: {error}"))
                    })?;
                    for input in inputs {
                        answer(subscriber, input, &mut page.block).await;
                    }
                }
            }
        }
        Ok(Ending::Done)
    }

    /// Writes what was taken: as long as that takes when all is well, or for a moment.
    async fn finish(
        self,
        ended: Result<Ending, Failure>,
        signals: &mut Signals,
    ) -> Result<Ending, Failure> {
        let Self { output, page: Page { block, .. }, .. } = self;
        let mut writing = pin!(async move {
            if !block.is_empty()
                && let Ok(permit) = output.ready().await
            {
                permit.send(block);
            }
            output.finish().await
        });
        let mut ending = ended.as_ref().map_or(Ending::Done, |ending| *ending);
        let mut written = None;
        if ending == Ending::Done {
            tokio::select! {
                result = &mut writing => written = Some(result),
                signal = signals.next() => ending = Ending::Signal(signal),
            }
        }
        if written.is_none() {
            written = timeout(GRACE, writing).await.ok();
        }
        ended?;
        match written {
            Some(Err(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(match ending {
                Ending::Done => Ending::ReaderGone,
                other => other,
            }),
            Some(Err(error)) => {
                Err(Failure::new(format!("cannot write the standard output: {error}")))
            }
            Some(Ok(())) | None => Ok(ending),
        }
    }
}

/// An event as a line.
fn encode(event: &SubscriberEvent, out: &mut Vec<u8>) {
    // neither writing to memory nor texts and numbers can fail
    let _ = match event {
        SubscriberEvent::Update(update) => serde_json::to_writer(&mut *out, &line_of(update)),
        SubscriberEvent::Sync(sync) => serde_json::to_writer(&mut *out, &sync_line_of(sync)),
    };
    out.push(b'\n');
}

#[derive(Serialize, Default)]
struct EventLine<'a> {
    table: Option<&'a str>,
    key: Option<&'a str>,
    action: Option<&'a str>,
    value: Option<ValueLine<'a>>,
    topic: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum ValueLine<'a> {
    Text(&'a str),
    Other(&'a serde_json::Value),
}

#[derive(Serialize)]
struct SyncLine<'a> {
    #[serde(flatten)]
    event: EventLine<'a>,
    cause: &'static str,
    missing: Option<MissingLine<'a>>,
}

#[derive(Serialize)]
struct MissingLine<'a> {
    publisher: String,
    epoch: u64,
    topic: &'a str,
    from: u64,
    to: Option<u64>,
}

fn line_of(update: &Update) -> EventLine<'_> {
    EventLine {
        table: update.table.as_deref(),
        key: update.key.as_deref(),
        action: update.action.as_ref().map(Action::as_str),
        value: update.value.as_ref().map(|value| match value {
            Value::Text(text) => ValueLine::Text(text),
            Value::Other(other) => ValueLine::Other(other),
        }),
        topic: update.topic.as_deref(),
    }
}

fn sync_line_of(sync: &Sync) -> SyncLine<'_> {
    let missing = sync.missing.as_ref().map(|missing| MissingLine {
        publisher: missing.publisher.to_string(),
        epoch: missing.epoch,
        topic: &missing.topic,
        from: missing.from,
        to: missing.to,
    });
    let event = EventLine { action: Some(Action::Sync.as_str()), ..EventLine::default() };
    SyncLine { event, cause: sync.cause.as_str(), missing }
}

/// What a line of the standard input asks for.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Command {
    RegisterTopic(String),
    UnregisterTopic(String),
    RegisterListenAddress(String),
    UnregisterListenAddress(String),
}

/// A command, or why the line with this number is none.
type Input = Result<Command, (u64, String)>;

fn read_commands(console: Console) -> mpsc::Receiver<io::Result<Vec<Input>>> {
    read_lines(move |number, line| {
        let line = line.trim_ascii();
        if line.is_empty() {
            return None;
        }
        let command = serde_json::from_slice(line).map_err(|error| {
            let fault = explain(&error);
            console.say_surely(format!(
                "dragonwire: line {number} of the standard input is ignored: {fault}"
            ));
            (number, fault)
        });
        Some(command)
    })
}

/// The next of the input; for ever nothing after its end.
async fn next_input(
    inputs: &mut Option<mpsc::Receiver<io::Result<Vec<Input>>>>,
) -> io::Result<Vec<Input>> {
    if let Some(some) = inputs {
        if let Some(input) = some.recv().await {
            return input;
        }
        *inputs = None;
    }
    pending().await
}

/// Does what a line asks for and appends the one line that answers it.
async fn answer(subscriber: &dyn Subscriber, input: Input, out: &mut Vec<u8>) {
    let (word, argument, result) = match input {
        Ok(Command::RegisterTopic(topic)) => {
            let result = subscriber.register_topic(&topic).await.map(Some);
            ("register_topic", topic, result)
        }
        Ok(Command::UnregisterTopic(topic)) => {
            let result = subscriber.unregister_topic(&topic).await.map(|()| None);
            ("unregister_topic", topic, result)
        }
        Ok(Command::RegisterListenAddress(uri)) => {
            let result = subscriber.register_listen_address(&uri).await.map(Some);
            ("register_listen_address", uri, result)
        }
        Ok(Command::UnregisterListenAddress(uri)) => {
            let result = subscriber.unregister_listen_address(&uri).await.map(|()| None);
            ("unregister_listen_address", uri, result)
        }
        Err((line, fault)) => {
            return append(out, &format!("{{\"line\":{line},\"error\":{}}}", json!(fault)));
        }
    };
    let argument = json!(argument);
    append(
        out,
        &match result {
            Ok(result) => format!("{{\"{word}\":{argument},\"result\":{}}}", json!(result)),
            Err(error) => {
                format!("{{\"{word}\":{argument},\"error\":{}}}", json!(error.to_string()))
            }
        },
    );
}

fn append(out: &mut Vec<u8>, line: &str) {
    out.extend_from_slice(line.as_bytes());
    out.push(b'\n');
}

/// How long publishers that are connected to may take until others are not waited for.
const SETTLE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use dragonwire::driver::{Missing, SyncCause};

    use super::*;

    fn line(event: &SubscriberEvent) -> String {
        let mut out = Vec::new();
        encode(event, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_event_is_a_line_of_its_five_fields() {
        let update = Update::new("lport", "ü\n", Action::Create).with_value("{\"id\": 1}");
        assert_eq!(
            line(&SubscriberEvent::Update(update)),
            "{\"table\":\"lport\",\"key\":\"ü\\n\",\"action\":\"create\",\
             \"value\":\"{\\\"id\\\": 1}\",\"topic\":\"D\"}\n"
        );
        let other = Some(Value::Other(json!({"a": [1, null]})));
        let update = Update { value: other, action: None, ..Update::sync("t") };
        assert_eq!(
            line(&SubscriberEvent::Update(update)),
            "{\"table\":null,\"key\":null,\"action\":null,\"value\":{\"a\":[1,null]},\"topic\":\"t\"}\n"
        );
    }

    #[test]
    fn a_sync_tells_its_cause_and_what_is_missing() {
        let sync = Sync { missing: None, cause: SyncCause::Undecodable };
        let empty = "\"table\":null,\"key\":null,\"action\":\"sync\",\"value\":null,\"topic\":null";
        assert_eq!(
            line(&SubscriberEvent::Sync(sync)),
            format!("{{{empty},\"cause\":\"undecodable\",\"missing\":null}}\n")
        );
        let publisher = "6ba7b810-9dad-11d1-80b4-00c04fd430c8".parse().unwrap();
        let missing = Missing { publisher, epoch: 7, topic: "t".to_owned(), from: 2, to: None };
        let sync = Sync { missing: Some(missing), cause: SyncCause::Gap };
        assert_eq!(
            line(&SubscriberEvent::Sync(sync)),
            format!(
                "{{{empty},\"cause\":\"gap\",\"missing\":{{\"publisher\":\"{publisher}\",\
                 \"epoch\":7,\"topic\":\"t\",\"from\":2,\"to\":null}}}}\n"
            )
        );
    }

    #[test]
    fn a_command_has_one_name_and_one_text() {
        let parse = |line: &str| serde_json::from_str::<Command>(line);
        assert!(matches!(parse(r#"{"register_topic":"t"}"#), Ok(Command::RegisterTopic(_))));
        for line in [
            "{}",
            r#"{"register_topic":1}"#,
            r#"{"register_topic":"a","unregister_topic":"b"}"#,
            r#"{"subscribe":"a"}"#,
            r#""register_topic""#,
            "[]",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
