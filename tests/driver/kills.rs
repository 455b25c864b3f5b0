//! Publishers that are killed: what they sent last is told to be missing, to the unit if a journal
//! was kept, and to be unknown if not.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use dragonwire::driver::{
    Action, DriverContext, MultiprocDriver, NetworkDriver, PubSubDriver, PublisherService,
    SubscriberEvent, SyncCause, Update, Updates,
};

use crate::side::{next, options, soon, subscriber};

/// A process that publishes; killed when this is dropped.
struct Process {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Process {
    fn start(place: &str, folder: &Path, port: u16, count: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kills::inside_publisher", "--ignored", "--nocapture"])
            .env("PLACE", place)
            .env("FOLDER", folder)
            .env("PORT", port.to_string())
            .env("COUNT", count.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (said, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).all(|line| said.send(line).is_ok())
        });
        Self { child, lines }
    }

    /// What follows that word on its next line that has it.
    fn told(&self, word: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(crate::side::DEADLINE).unwrap();
            if let Some((_, rest)) = line.split_once(word) {
                return rest.trim().to_owned();
            }
        }
    }

    fn go(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    }

    /// Kills it; returns how many events it had published at least.
    fn kill(&mut self) -> u64 {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let told = self.lines.iter().filter_map(|line| {
            line.split_once("published ").and_then(|(_, count)| count.trim().parse().ok())
        });
        told.last().unwrap_or(0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A publisher, on the network or of a host's process, that begins when it is told to.
#[test]
#[ignore = "run by the other tests of this file"]
fn inside_publisher() {
    let var = |name: &str| std::env::var(name).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut options = options();
        options.publisher_port = var("PORT").parse().unwrap();
        options.publisher_multiproc_socket = Path::new(&var("FOLDER")).join("socket");
        options.state_path = Some(Path::new(&var("FOLDER")).join("state"));
        let mut context = DriverContext::new(options);
        let publisher = match var("PLACE").as_str() {
            "network" => {
                context = context.with_process_name("killed");
                NetworkDriver::new(context).unwrap().get_publisher()
            }
            _ => MultiprocDriver::new(context).unwrap().get_publisher(),
        };
        publisher.initialize().await.unwrap();
        println!("listening {}", publisher.endpoint().map_or(0, |at| at.port().unwrap()));
        let told = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
        told.await.unwrap().unwrap();
        // one that takes the place of another begins when its subscriber is there
        while var("PLACE") == "network" && publisher.stats().subscribers == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let count: u64 = var("COUNT").parse().unwrap();
        for sent in 1..=count {
            let table = if count == u64::MAX { "first" } else { "second" };
            let update = Update::new(table, sent.to_string(), Action::Set);
            publisher.send_event(&update, None).await.unwrap();
            if sent % 1000 == 0 {
                println!("published {sent}");
                tokio::task::yield_now().await;
            }
        }
        publisher.close().await.unwrap();
        println!("closed");
    });
}

/// Delivered and missing until `delivered` events have come in all.
async fn take(updates: &mut Updates, delivered: u64) -> u64 {
    let (mut taken, mut missing) = (0, 0);
    while taken < delivered {
        match next(updates).await {
            SubscriberEvent::Update(_) => taken += 1,
            SubscriberEvent::Sync(sync) => missing += sync.missing.unwrap().count().unwrap(),
        }
    }
    missing
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_publishers_successor_says_where_it_ended() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = Process::start("network", folder.path(), 0, u64::MAX);
    let port: u16 = first.told("listening ").parse().unwrap();
    let uri = format!("tcp://127.0.0.1:{port}");
    let (_subscriber, mut updates) = subscriber(options(), &["D"], &[&uri]).await;
    first.go();
    let mut of_first = 5000 + take(&mut updates, 5000).await;
    let published = first.kill();
    let killed = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros();
    let mut second = Process::start("network", folder.path(), port, 1000);
    second.told("listening ");
    second.go();
    let mut of_second = 0;
    while of_second < 1000 {
        let (is_second, count) = match next(&mut updates).await {
            SubscriberEvent::Update(update) => (update.table.as_deref() == Some("second"), 1),
            SubscriberEvent::Sync(sync) => {
                assert_eq!(sync.cause, SyncCause::Gap, "{sync:?}");
                let missing = sync.missing.unwrap();
                // an epoch is the time of its beginning
                (u128::from(missing.epoch) > killed, missing.count().unwrap())
            }
        };
        *(if is_second { &mut of_second } else { &mut of_first }) += count;
    }
    // it tells of each thousand
    assert!((published..=published + 1001).contains(&of_first), "{of_first}, {published}");
    second.told("closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_process_that_was_killed_is_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options();
    options.publisher_multiproc_socket = folder.path().join("socket");
    let service = PublisherService::start(DriverContext::new(options.clone())).await.unwrap();
    let uri = service.stats().network.unwrap();
    let (_subscriber, mut updates) = subscriber(options, &["D"], &[&uri]).await;
    let mut process = Process::start("process", folder.path(), 0, u64::MAX);
    process.told("listening ");
    process.go();
    take(&mut updates, 5000).await;
    process.kill();
    // whatever else is missing is told first; then that it ended without a word, once
    loop {
        if let SubscriberEvent::Sync(sync) = next(&mut updates).await
            && sync.cause == SyncCause::PublisherEnded
        {
            assert_eq!(sync.missing.unwrap().to, None);
            break;
        }
    }
    assert_eq!(service.stats().processes, 0);
    soon(service.close()).await.unwrap();
}
