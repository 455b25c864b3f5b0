//! Turns the changes of a directory's table into events, for subscribers that do not look into the
//! directory themselves; and removes the rows of publishers that have died.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::sleep;
use uuid::Uuid;

use super::Publisher;
use super::directory::{Directory, DirectoryError, PublisherRow, Rows, TABLE};
use super::registration::{ENDS, age_of_end};
use super::update::{Action, Update};

/// Looks at a table at each period and publishes what has changed: upstream's `TableMonitor`.
///
/// The first look is after one period; every row that there is then is announced as new.
#[derive(Debug)]
pub struct TableMonitor {
    table: String,
    directory: Arc<dyn Directory>,
    publisher: Arc<dyn Publisher>,
    known: Rows,
}

impl TableMonitor {
    /// A monitor that has not looked yet.
    #[must_use]
    pub fn new(
        table: impl Into<String>,
        directory: Arc<dyn Directory>,
        publisher: Arc<dyn Publisher>,
    ) -> Self {
        Self { table: table.into(), directory, publisher, known: Rows::new() }
    }

    /// Looks at the table once and publishes what has changed since the last time. Tells how many
    /// events that were.
    ///
    /// # Errors
    /// [`DirectoryError`] if the table cannot be read: nothing is published, and nothing forgotten.
    ///
    /// # Cancel safety
    /// When cancelled, events may have been published that are published again the next time.
    pub async fn poll(&mut self) -> Result<usize, DirectoryError> {
        let mut rows = self.directory.list(&self.table).await?;
        let updates = changes(&self.table, &self.known, &rows);
        let mut published = 0;
        for update in updates {
            match self.publisher.send_event(&update, None).await {
                Ok(()) => published += 1,
                Err(error) => {
                    tracing::warn!(table = self.table, %error, "a change was not published");
                    // it is one the next time too
                    let Some(key) = update.key else { continue };
                    match self.known.remove(&key) {
                        Some(before) => drop(rows.insert(key, before)),
                        None => drop(rows.remove(&key)),
                    }
                }
            }
        }
        self.known = rows;
        Ok(published)
    }

    /// Polls for ever. A directory that cannot be reached is asked again at the next period.
    pub async fn run(mut self, period: Duration) {
        loop {
            sleep(period).await;
            if let Err(error) = self.poll().await {
                tracing::warn!(table = self.table, %error, "the table cannot be looked at");
            }
        }
    }
}

/// The events by which `new` can be made of `old`, in the order of keys.
fn changes(table: &str, old: &Rows, new: &Rows) -> Vec<Update> {
    let set = new.iter().filter_map(|(key, value)| {
        let action = match old.get(key) {
            Some(known) if known == value => return None,
            Some(_) => Action::Set,
            None => Action::Create,
        };
        Some(Update::new(table, key, action).with_value(value))
    });
    let gone = old.keys().filter(|key| !new.contains_key(*key));
    set.chain(gone.map(|key| Update::new(table, key, Action::Delete))).collect()
}

/// Removes the rows of publishers that were not active for `timeout`, but for the row of `own`:
/// upstream's `StalePublisherMonitor`. Tells whose rows were removed.
///
/// # Errors
/// [`DirectoryError`] if the table cannot be read or changed.
///
/// # Cancel safety
/// Safe: rows that were not looked at stay for the next time.
pub async fn remove_stale_publishers(
    directory: &dyn Directory,
    own: Uuid,
    timeout: Duration,
) -> Result<Vec<String>, DirectoryError> {
    let mut removed = Vec::new();
    let now = SystemTime::now();
    for (key, value) in directory.list(TABLE).await? {
        if key == own.to_string() {
            continue;
        }
        let row = PublisherRow::from_json(&key, &value);
        if row.is_ok_and(|row| row.is_stale(seconds(now), timeout)) {
            // a row that is gone already was removed by another service
            directory.delete(TABLE, &key).await?;
            removed.push(key);
        }
    }
    // ends are of use to those who were away for a while; nobody is for much longer than that
    for (key, value) in directory.list(ENDS).await? {
        if age_of_end(&value, now).is_none_or(|age| age > timeout * 2) {
            directory.delete(ENDS, &key).await?;
        }
    }
    Ok(removed)
}

/// Seconds since 1970.
pub(crate) fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[(&str, &str)]) -> Rows {
        rows.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn changes_are_creations_sets_and_deletions() {
        let old = rows(&[("a", "1"), ("b", "1"), ("c", "1")]);
        let new = rows(&[("a", "1"), ("b", "2"), ("d", "1")]);
        let told: Vec<_> = changes("chassis", &old, &new)
            .into_iter()
            .map(|update| {
                let text = update.value.as_ref().and_then(|value| value.as_text());
                (update.key.unwrap(), update.action.unwrap(), text.map(str::to_owned))
            })
            .collect();
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(
            told,
            [
                ("b".to_owned(), Action::Set, text("2")),
                ("d".to_owned(), Action::Create, text("1")),
                ("c".to_owned(), Action::Delete, None),
            ]
        );
    }
}
