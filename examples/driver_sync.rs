//! What a consumer does about `sync`: a copy of a table that is kept by events, and read anew where
//! events are missing.
//!
//! `cargo run --example driver_sync`

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dragonwire::driver::config::DriverOptions;
use dragonwire::driver::directory::{Directory, DirectoryError, MemoryDirectory};
use dragonwire::driver::{Action, DriverContext, Drivers, SubscriberEvent, Sync, Update, Value};
use tokio::time::{Instant, sleep_until};

/// A copy of the table `lport`. The directory stands for the database that has the truth.
struct Ports {
    truth: Arc<dyn Directory>,
    rows: BTreeMap<String, String>,
    /// When to read anew: losses that come together are made good together.
    due: Option<Instant>,
}

impl Ports {
    fn take(&mut self, event: SubscriberEvent) {
        match event {
            SubscriberEvent::Update(update) => self.apply(update),
            SubscriberEvent::Sync(Sync { missing: Some(missing), cause }) => {
                // who has rows by topics would read those of `missing.topic` only
                println!("sync, {cause}: {missing}");
                self.read_soon();
            }
            // it may be anything
            SubscriberEvent::Sync(Sync { missing: None, cause }) => {
                println!("sync, {cause}: not known what");
                self.read_soon();
            }
        }
    }

    fn read_soon(&mut self) {
        self.due.get_or_insert(Instant::now() + TOGETHER);
    }

    fn apply(&mut self, update: Update) {
        let (Some("lport"), Some(key)) = (update.table.as_deref(), update.key) else { return };
        match (update.action, update.value) {
            (Some(Action::Delete), _) => drop(self.rows.remove(&key)),
            (Some(Action::Create | Action::Set), Some(Value::Text(row))) => {
                self.rows.insert(key, row);
            }
            // `trigger_only` leaves values out: the row is to be read
            (Some(Action::Create | Action::Set), None) => self.read_soon(),
            _ => {}
        }
    }

    /// Reads anew. Events that come meanwhile wait in the subscriber, and are applied after it.
    async fn make_good(&mut self) -> Result<(), DirectoryError> {
        self.rows = self.truth.list("lport").await?.into_iter().collect();
        self.due = None;
        Ok(())
    }
}

/// More than a subscriber has room for.
const ROWS: usize = 5000;

/// How long a loss may wait for others.
const TOGETHER: Duration = Duration::from_millis(100);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut options = DriverOptions::default();
    options.publisher_bind_address = "127.0.0.1".to_owned();
    options.publisher_port = 0;
    let driver = Drivers::new().load("zmq_pubsub_driver", DriverContext::new(options))?;
    let (publisher, subscriber) = (driver.get_publisher(), driver.get_subscriber());
    publisher.initialize().await?;
    let uri = publisher.endpoint().ok_or("not bound")?.to_string();

    let truth: Arc<dyn Directory> = Arc::new(MemoryDirectory::new());
    let mut ports = Ports { truth: truth.clone(), rows: BTreeMap::new(), due: None };
    let mut events = subscriber.initialize_stream()?;
    subscriber.register_topic("D").await?;
    subscriber.register_listen_address(&uri).await?;
    subscriber.daemonize().await?;
    subscriber.ready().await?;
    // first subscribe, then read: what changes in between comes as an event
    ports.make_good().await?;

    truth.put("lport", "1", "{}").await?;
    let first = Update::new("lport", "1", Action::Create).with_value("{}");
    publisher.send_event(&first, None).await?;
    // nothing is taken meanwhile
    let row = "x".repeat(8 << 10);
    for number in 2..=ROWS {
        let key = number.to_string();
        truth.put("lport", &key, &row).await?;
        let update = Update::new("lport", key, Action::Create).with_value(&row);
        publisher.send_event(&update, None).await?;
    }
    println!("dropped: {}", publisher.stats().dropped);

    while ports.rows.len() < ROWS {
        let due = async {
            match ports.due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => ports.take(event),
                None => break,
            },
            () = due => ports.make_good().await?,
        }
    }
    println!("{} rows", ports.rows.len());
    subscriber.close().await?;
    publisher.close().await?;
    Ok(())
}
