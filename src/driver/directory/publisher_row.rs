//! The rows of the table `publisher`: who publishes where. They are Dragonflow's, with one field more
//! for the role.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::driver::Role;

/// The table of publishers.
pub const TABLE: &str = "publisher";

/// A publisher, as it is told in the directory.
///
/// ```
/// use dragonwire::driver::Role;
/// use dragonwire::driver::directory::PublisherRow;
///
/// let text = r#"{"id": "1", "uri": "tcp://192.168.0.5:8866", "last_activity_timestamp": 17.5}"#;
/// let row = PublisherRow::from_json("1", text)?;
/// assert_eq!(row.followed_as(), Some(Role::NeutronServer));
/// # Ok::<(), dragonwire::driver::directory::RowError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PublisherRow {
    /// The row's key: [`publisher_id`], or Dragonflow's.
    pub id: String,
    /// Where it publishes, such as `tcp://192.168.0.5:8866`; empty if the row does not say.
    pub uri: String,
    /// Its role, if the row names one that is known.
    pub role: Option<Role>,
    /// What the row has in the place of a role if that is none: see
    /// [`followed_as`](Self::followed_as).
    pub unknown_role: Option<String>,
    /// When it was last active, in seconds since 1970; 0 if the row does not say.
    pub last_activity_timestamp: f64,
    /// A name for people. Dragonflow never sets it.
    pub name: Option<String>,
}

/// A row that is none of a publisher.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the row of publisher {key:?} is malformed: {reason}")]
pub struct RowError {
    /// The row's key.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}

/// The fields as they are in JSON. What else there is in a row is passed over.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Fields {
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uri: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_activity_timestamp: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

impl PublisherRow {
    /// Reads the row of a key. One without an id has the key's; other fields may be missing or null.
    ///
    /// # Errors
    /// [`RowError`] if it is no JSON object or a field has another type.
    pub fn from_json(key: &str, text: &str) -> Result<Self, RowError> {
        let malformed = |reason: String| RowError { key: key.to_owned(), reason };
        // serde would take an array for the fields in their order
        if !text.trim_start().starts_with('{') {
            return Err(malformed("it is no JSON object".to_owned()));
        }
        let fields: Fields =
            serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
        let (role, unknown_role) = match fields.role {
            None => (None, None),
            Some(Value::String(word)) => match word.parse() {
                Ok(role) => (Some(role), None),
                Err(_) => (None, Some(word)),
            },
            Some(other) => (None, Some(other.to_string())),
        };
        Ok(Self {
            id: fields.id.unwrap_or_else(|| key.to_owned()),
            uri: fields.uri.unwrap_or_default(),
            role,
            unknown_role,
            last_activity_timestamp: fields.last_activity_timestamp.unwrap_or_default(),
            name: fields.name,
        })
    }

    /// The row as JSON, with Dragonflow's names of fields. What is not known is left out.
    #[must_use]
    pub fn to_json(&self) -> String {
        let role = self.role.map(Role::as_str).or(self.unknown_role.as_deref());
        let known = |timestamp: &f64| *timestamp != 0.0 && timestamp.is_finite();
        let fields = Fields {
            id: Some(self.id.clone()),
            uri: Some(self.uri.clone()).filter(|uri| !uri.is_empty()),
            role: role.map(Value::from),
            last_activity_timestamp: Some(self.last_activity_timestamp).filter(known),
            name: self.name.clone(),
        };
        // a struct of text and numbers always has a form in JSON
        serde_json::to_string(&fields).unwrap_or_default()
    }

    /// As whose publisher a subscriber counts it: a row without a role is an API server's, and one
    /// with an unknown role is nobody's.
    #[must_use]
    pub fn followed_as(&self) -> Option<Role> {
        match self.unknown_role {
            None => Some(self.role.unwrap_or_default()),
            Some(_) => None,
        }
    }

    /// Whether its last activity is longer ago than `timeout`; `now` is in seconds since 1970.
    #[must_use]
    pub fn is_stale(&self, now: f64, timeout: Duration) -> bool {
        self.last_activity_timestamp < now - timeout.as_secs_f64()
    }
}

/// The id of a publisher: of its role, its process's name (`MainProcess` for a process that no other
/// started) and its host's full name. It is the same after a restart.
#[must_use]
pub fn publisher_id(role: Role, process: &str, fqdn: &str) -> Uuid {
    named(&format!("{role}.{process}.{fqdn}"))
}

/// The id that Dragonflow gives its publisher service: of `<process>.<fqdn>` from 4.0.0 on, and of the
/// host's name alone, without a process, up to 3.0.0.
#[must_use]
pub fn dragonflow_publisher_id(process: Option<&str>, fqdn: &str) -> Uuid {
    match process {
        Some(process) => named(&format!("{process}.{fqdn}")),
        None => named(fqdn),
    }
}

fn named(name: &str) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_DNS, name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_every_release_are_read() {
        let row = PublisherRow::from_json("k", "{}").unwrap();
        assert_eq!((row.id.as_str(), row.uri.as_str()), ("k", ""));
        assert_eq!(row.last_activity_timestamp, 0.0);
        let text = r#"{"uri": null, "id": "i", "last_activity_timestamp": null, "name": null,
            "version": 3, "topic": {"a": []}}"#;
        assert_eq!(PublisherRow::from_json("k", text).unwrap().id, "i");
        let text = r#"{"last_activity_timestamp": 1466584371, "uri": "tcp://1.2.3.4:8866"}"#;
        let row = PublisherRow::from_json("k", text).unwrap();
        assert_eq!(row.last_activity_timestamp, 1_466_584_371.0);
        assert_eq!(row.uri, "tcp://1.2.3.4:8866");
    }

    #[test]
    fn what_is_written_is_read() {
        let row = PublisherRow {
            id: "i".to_owned(),
            uri: "tcp://1.2.3.4:8867".to_owned(),
            role: Some(Role::DfLocalController),
            unknown_role: None,
            last_activity_timestamp: 1_466_584_371.25,
            name: Some("ü".to_owned()),
        };
        let text = row.to_json();
        assert_eq!(
            text,
            "{\"id\":\"i\",\"uri\":\"tcp://1.2.3.4:8867\",\"role\":\"df-local-controller\",\
             \"last_activity_timestamp\":1466584371.25,\"name\":\"ü\"}"
        );
        assert_eq!(PublisherRow::from_json("i", &text), Ok(row));
        let bare = PublisherRow { id: "i".to_owned(), ..PublisherRow::default() };
        assert_eq!(bare.to_json(), r#"{"id":"i"}"#);
    }

    #[test]
    fn an_unknown_role_is_nobodys_and_is_kept() {
        let role = |text: &str| PublisherRow::from_json("k", text).unwrap();
        assert_eq!(role("{}").followed_as(), Some(Role::NeutronServer));
        assert_eq!(role(r#"{"role": null}"#).followed_as(), Some(Role::NeutronServer));
        let controller = role(r#"{"role": "df-local-controller"}"#);
        assert_eq!(controller.followed_as(), Some(Role::DfLocalController));
        let other = role(r#"{"role": "other"}"#);
        assert_eq!((other.role, other.followed_as()), (None, None));
        assert_eq!(other.to_json(), r#"{"id":"k","role":"other"}"#);
        assert_eq!(role(r#"{"role": 7}"#).unknown_role.as_deref(), Some("7"));
    }

    #[test]
    fn what_is_no_row_is_an_error() {
        for text in ["", "[]", "7", "null", "{", "\"a\"", r#"{"uri": 5}"#, r#"["i", "u"]"#] {
            let error = PublisherRow::from_json("k", text).unwrap_err();
            assert_eq!(error.key, "k", "{text}");
        }
        let text = r#"{"last_activity_timestamp": "yesterday"}"#;
        assert!(PublisherRow::from_json("k", text).is_err());
    }

    #[test]
    fn ids_are_those_of_the_names() {
        // python3 -c 'import uuid; print(uuid.uuid5(uuid.NAMESPACE_DNS, NAME))'
        let main = dragonflow_publisher_id(Some("MainProcess"), "host.example.org");
        assert_eq!(main.to_string(), "ec191152-482d-50a4-8523-72d6c5bbad8b");
        let host = dragonflow_publisher_id(None, "host.example.org");
        assert_eq!(host.to_string(), "65ee2a92-e2a5-5f2f-93e2-2d3c41fbdd72");
        let role = publisher_id(Role::NeutronServer, "MainProcess", "host.example.org");
        assert_eq!(role.to_string(), "5eecab7e-b5a2-5d7d-b85a-cc36e7765f93");
    }

    #[test]
    fn a_row_without_a_time_is_stale() {
        let mut row = PublisherRow::default();
        let timeout = Duration::from_secs(300);
        assert!(row.is_stale(1000.0, timeout));
        row.last_activity_timestamp = 700.0;
        assert!(!row.is_stale(1000.0, timeout));
        assert!(row.is_stale(1000.5, timeout));
    }
}
