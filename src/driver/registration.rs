//! A publisher's row in the directory: written when it starts, refreshed while it publishes, removed
//! when it closes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::codec::{End, Position};
use super::config::DriverOptions;
use super::directory::{Directory, DirectoryError, PublisherRow, TABLE};

/// The row of a publisher that runs.
#[derive(Debug)]
pub(crate) struct Registration {
    directory: Arc<dyn Directory>,
    id: Uuid,
    active: Arc<Notify>,
    refreshing: AbortOnDropHandle<()>,
}

impl Registration {
    /// Writes the row, now or, if the directory cannot be reached, as soon as it can.
    pub(crate) async fn start(
        directory: Arc<dyn Directory>,
        options: &DriverOptions,
        id: Uuid,
        port: u16,
    ) -> Self {
        let row = Row {
            directory: directory.clone(),
            id,
            uri: public_uri(options, port),
            options: options.clone(),
        };
        let active = Arc::new(Notify::new());
        let (written, first) = oneshot::channel();
        let refreshing = tokio::spawn(row.keep(active.clone(), written));
        // a directory that is away does not keep a publisher from publishing
        let _ = timeout(PATIENCE, first).await;
        Self { directory, id, active, refreshing: AbortOnDropHandle::new(refreshing) }
    }

    /// An event was published: the publisher lives.
    pub(crate) fn refresh(&self) {
        self.active.notify_one();
    }

    /// Removes the row.
    pub(crate) async fn remove(&self) -> Result<(), DirectoryError> {
        self.refreshing.abort();
        self.directory.delete(TABLE, &self.id.to_string()).await.map(drop)
    }
}

struct Row {
    directory: Arc<dyn Directory>,
    id: Uuid,
    uri: String,
    options: DriverOptions,
}

impl Row {
    /// Tells whether the row was written.
    async fn write(&self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let row = PublisherRow {
            id: self.id.to_string(),
            uri: self.uri.clone(),
            role: Some(self.options.role),
            last_activity_timestamp: now.as_secs_f64(),
            ..PublisherRow::default()
        };
        let put = self.directory.put(TABLE, &row.id, &row.to_json()).await;
        if let Err(error) = &put {
            tracing::warn!(id = row.id, %error, "the publisher's row was not written; it is tried again");
        }
        put.is_ok()
    }

    /// Writes the row, and again after events, within the rate limit, and in any case well before it
    /// is stale.
    async fn keep(self, active: Arc<Notify>, written: oneshot::Sender<()>) {
        let Self { options, .. } = &self;
        let (count, window) =
            (options.publisher_rate_limit_count, options.publisher_rate_limit_timeout);
        let mut limit = RateLimit::new(count, window);
        let idle = (options.publisher_timeout / 3).max(Duration::from_millis(100));
        let mut failed = !self.write().await;
        let _ = written.send(());
        loop {
            let wait = if failed { RETRY.min(idle) } else { idle };
            let due = tokio::time::Instant::now() + wait;
            // the time runs on while events come that the limit does not let through
            while tokio::select! {
                () = active.notified(), if !failed => !limit.allows(Instant::now()),
                () = sleep_until(due) => false,
            } {}
            failed = !self.write().await;
        }
    }
}

/// How long a publisher waits for its row to be written when it starts, and how soon a row that
/// could not be written is tried again.
const PATIENCE: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(2);

/// Where others reach the publisher: the address it binds, or the management address if that one says
/// nothing to them.
pub(crate) fn public_uri(options: &DriverOptions, port: u16) -> String {
    let bound = options.publisher_bind_address.as_str();
    let address = if matches!(bound, "*" | "0.0.0.0" | "::" | "127.0.0.1") {
        options.management_ip.as_str()
    } else {
        bound
    };
    let transport = &options.publisher_transport;
    if address.contains(':') && !address.starts_with('[') {
        format!("{transport}://[{address}]:{port}")
    } else {
        format!("{transport}://{address}:{port}")
    }
}

/// At most so many calls in any window of that length.
#[derive(Debug)]
pub(crate) struct RateLimit {
    count: usize,
    window: Duration,
    calls: VecDeque<Instant>,
}

impl RateLimit {
    pub(crate) fn new(count: usize, window: Duration) -> Self {
        Self { count, window, calls: VecDeque::new() }
    }

    /// Whether a call may be made now; it then counts.
    pub(crate) fn allows(&mut self, now: Instant) -> bool {
        while self.calls.front().is_some_and(|call| now.duration_since(*call) >= self.window) {
            self.calls.pop_front();
        }
        let allowed = self.calls.len() < self.count;
        if allowed {
            self.calls.push_back(now);
        }
        allowed
    }
}

/// The table of where publishers that have closed had come, for subscribers that did not hear it.
pub(crate) const ENDS: &str = "publisher_end";

/// A row of [`ENDS`].
#[derive(Debug, Serialize, Deserialize)]
struct EndRow {
    epoch: u64,
    /// Topic and number of the last event.
    topics: Vec<(String, u64)>,
    /// Seconds since 1970.
    timestamp: f64,
}

/// Writes down where the streams of a publisher have ended.
pub(crate) async fn tell_ends(
    directory: &Arc<dyn Directory>,
    publisher: Uuid,
    ends: &[Position],
) -> Result<(), DirectoryError> {
    let own = || ends.iter().filter(|end| end.publisher == publisher);
    let Some(epoch) = own().map(|end| end.epoch).max() else { return Ok(()) };
    let topic = |end: &Position| String::from_utf8(end.topic.to_vec()).ok();
    let topics = own().filter(|end| end.epoch == epoch);
    let topics = topics.filter_map(|end| Some((topic(end)?, end.last))).collect();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let end = EndRow { epoch, topics, timestamp: now.as_secs_f64() };
    // numbers and text, which is always JSON
    let row = serde_json::to_string(&end).unwrap_or_default();
    directory.put(ENDS, &publisher.to_string(), &row).await
}

/// The positions in a row of [`ENDS`]; none if it is not one.
pub(crate) fn read_ends(key: &str, row: &str) -> Vec<Position> {
    let (Ok(publisher), Ok(end)) = (Uuid::parse_str(key), serde_json::from_str::<EndRow>(row))
    else {
        return Vec::new();
    };
    let EndRow { epoch, topics, .. } = end;
    let position = |(topic, last): (String, u64)| Position {
        publisher,
        epoch,
        topic: topic.into_bytes().into(),
        first: 1,
        last,
        end: End::Final,
    };
    topics.into_iter().map(position).collect()
}

/// How old a row of [`ENDS`] is; `None` if it is not one.
pub(crate) fn age_of_end(row: &str, now: SystemTime) -> Option<Duration> {
    let end: EndRow = serde_json::from_str(row).ok()?;
    let now = now.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Duration::try_from_secs_f64((now.as_secs_f64() - end.timestamp).max(0.0)).ok()
}

/// This host's name, for ids that stay the same over restarts.
pub(crate) fn host_name() -> String {
    for file in ["/proc/sys/kernel/hostname", "/etc/hostname"] {
        let name = std::fs::read_to_string(file).unwrap_or_default();
        if let Some(name) = name.lines().map(str::trim).find(|name| !name.is_empty()) {
            return name.to_owned();
        }
    }
    tracing::warn!("this host's name cannot be read: ids of publishers are made of \"localhost\"");
    "localhost".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::role::Role;

    /// Of five calls at once three pass, and three more after the window; of eleven that are a
    /// second apart, seven.
    #[test]
    fn the_rate_limit_lets_so_many_pass_in_a_window() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut limit = RateLimit::new(3, Duration::from_secs(5));
        assert_eq!((0..5).filter(|_| limit.allows(at(0))).count(), 3);
        assert_eq!((0..5).filter(|_| limit.allows(at(5))).count(), 3);
        let mut limit = RateLimit::new(3, Duration::from_secs(5));
        assert_eq!((0..11).filter(|second| limit.allows(at(*second))).count(), 7);
    }

    #[test]
    fn a_wildcard_is_reached_by_the_management_address() {
        let mut options = DriverOptions::for_role(Role::NeutronServer);
        options.management_ip = "192.0.2.7".to_owned();
        assert_eq!(public_uri(&options, 8866), "tcp://192.0.2.7:8866");
        options.publisher_bind_address = "192.0.2.9".to_owned();
        assert_eq!(public_uri(&options, 8866), "tcp://192.0.2.9:8866");
        options.publisher_bind_address = "::1".to_owned();
        assert_eq!(public_uri(&options, 8866), "tcp://[::1]:8866");
    }

    #[test]
    fn ends_are_read_as_they_were_written() {
        assert_eq!(read_ends("nobody", "{}"), []);
        let key = Uuid::from_u128(7).to_string();
        let ends = read_ends(&key, r#"{"epoch": 3, "topics": [["D", 9]], "timestamp": 1.5}"#);
        assert_eq!((ends.len(), ends[0].epoch, ends[0].last), (1, 3, 9));
        let row = r#"{"epoch": 3, "topics": [], "timestamp": 10}"#;
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(25);
        assert_eq!(age_of_end(row, now), Some(Duration::from_secs(15)));
    }
}
