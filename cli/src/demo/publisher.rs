//! A publisher process: takes what workers push over a Unix socket, numbers it and publishes it over
//! TCP.

use std::fmt::Write;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use dragonwire::{Endpoint, Message, PubSocket, PullSocket, SocketOptions};

use crate::demo::books::Account;
use crate::demo::child::{Said, end_of_input, say};
use crate::demo::{END, LINGER, TOPICS};
use crate::ending::{Ending, Failure};

/// How a publisher process is started.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PublisherArgs {
    /// The number of this life of the publisher
    #[arg(long)]
    pub(crate) life: u32,
    /// Where subscribers connect to
    #[arg(long)]
    pub(crate) publish: Endpoint,
    /// Where workers connect to
    #[arg(long)]
    pub(crate) pull: Endpoint,
    /// How many workers will say that they are done
    #[arg(long)]
    pub(crate) workers: usize,
    /// The file for the account
    #[arg(long)]
    pub(crate) ledger: PathBuf,
}

/// Publishes until every worker has said that it is done.
pub(crate) async fn publish(args: PublisherArgs) -> Result<Ending, Failure> {
    tokio::select! {
        published = relay(args) => published,
        _ = end_of_input() => Err(Failure::new("the demo is gone")),
    }
}

async fn relay(args: PublisherArgs) -> Result<Ending, Failure> {
    let mut ledger = Ledger::create(&args.ledger)?;
    let publisher = PubSocket::with_options(SocketOptions::new().linger(Some(LINGER)))?;
    let mut workers = PullSocket::new();
    let endpoint = publisher.bind(&args.publish).await?;
    workers.bind(&args.pull).await?;
    say::<Account>(&Said::Listening(endpoint.to_string()))?;
    for topic in TOPICS {
        publisher.wait_for_subscribers(topic, 1).await?;
    }
    say::<Account>(&Said::Flowing)?;

    let mut account = Account::default();
    let mut working = args.workers;
    let mut messages = Vec::new();
    let mut payload = String::new();
    while working > 0 {
        workers
            .recv_many(&mut messages, BATCH)
            .await
            .map_err(|error| Failure::new(error.to_string()))?;
        // in the file before a single one of them is published
        let first = account.numbered;
        messages.retain(|message| match worker_and_number(message) {
            Some((worker, number)) => {
                account.take(worker, number);
                true
            }
            None => {
                working -= usize::from(message.topic() == END.as_bytes());
                false
            }
        });
        ledger.write(&account)?;
        for (number, message) in (first..).zip(messages.drain(..)) {
            payload.clear();
            let body = message.frame(1).unwrap_or_default();
            // writing to a string cannot fail
            let _ = write!(payload, "{} {number} {}", args.life, String::from_utf8_lossy(body));
            publisher.publish(message.topic(), &payload).await?;
        }
        account.published = account.numbered;
        note_stats(&mut account, &publisher);
        ledger.write(&account)?;
    }
    publisher.close().await;
    note_stats(&mut account, &publisher);
    ledger.write(&account)?;
    say(&Said::Finished(account))?;
    Ok(Ending::Done)
}

/// `None`: not a worker's message, but its last word.
fn worker_and_number(message: &Message) -> Option<(u32, u64)> {
    if message.topic() == END.as_bytes() {
        return None;
    }
    let body = std::str::from_utf8(message.frame(1)?).ok()?;
    let mut words = body.split(' ');
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

fn note_stats(account: &mut Account, publisher: &PubSocket) {
    let outgoing = publisher.stats().outgoing;
    account.accepted = outgoing.accepted;
    account.sent = outgoing.sent;
    for (reason, count) in outgoing.dropped.iter() {
        account.dropped.insert(reason.as_str().to_owned(), count);
    }
}

/// The account in a file. What was written stays when the process is killed.
struct Ledger {
    file: File,
    page: Vec<u8>,
}

impl Ledger {
    fn create(path: &Path) -> Result<Self, Failure> {
        let file = File::create(path)
            .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
        Ok(Self { file, page: Vec::new() })
    }

    fn write(&mut self, account: &Account) -> Result<(), Failure> {
        let failed = |error: String| Failure::new(format!("cannot write the ledger: {error}"));
        self.page.clear();
        serde_json::to_writer(&mut self.page, account)
            .map_err(|error| failed(error.to_string()))?;
        // always over the whole of what was there before, in one call
        self.page.resize(self.page.len().max(LEDGER), b' ');
        self.file.write_all_at(&self.page, 0).map_err(|error| failed(error.to_string()))
    }
}

/// The account of a publisher that was killed.
pub(crate) fn read_ledger(path: &Path) -> Result<Account, Failure> {
    let failed = |error: String| Failure::new(format!("{}: {error}", path.display()));
    let page = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    if page.trim_ascii().is_empty() {
        return Ok(Account::default());
    }
    serde_json::from_slice(page.trim_ascii()).map_err(|error| failed(error.to_string()))
}

/// Messages between two entries in the ledger.
const BATCH: usize = 256;

/// More octets than an account of a few workers has.
const LEDGER: usize = 2048;
