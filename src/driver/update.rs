//! The event that publishers send and subscribers get: Dragonflow's `DbUpdate`.

use std::borrow::Cow;
use std::fmt;
use std::time::SystemTime;

/// The topic of what every subscriber is to have: Dragonflow's `SEND_ALL_TOPIC`.
pub const SEND_ALL_TOPIC: &str = "D";

/// One change of one object: Dragonflow's `DbUpdate`.
///
/// ```
/// use dragonwire::driver::{Action, Update};
///
/// let update = Update::new("lport", "7e4a", Action::Create).with_value(r#"{"id": "7e4a"}"#);
/// assert_eq!(update.topic.as_deref(), Some("D"));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// The table's name.
    pub table: Option<String>,
    /// The object's key.
    pub key: Option<String>,
    /// What happened to it.
    pub action: Option<Action>,
    /// The object, as a rule as JSON text.
    pub value: Option<Value>,
    /// Whom it concerns; [`SEND_ALL_TOPIC`] unless it is set.
    pub topic: Option<String>,
    /// When it was made. Only the protobuf codec carries it.
    pub timestamp: Option<SystemTime>,
}

impl Update {
    /// A change without a value, for everybody, made now.
    #[must_use]
    pub fn new(table: impl Into<String>, key: impl Into<String>, action: Action) -> Self {
        Self {
            table: Some(table.into()),
            key: Some(key.into()),
            action: Some(action),
            value: None,
            topic: Some(SEND_ALL_TOPIC.to_owned()),
            timestamp: Some(SystemTime::now()),
        }
    }

    /// The event that asks those who follow a topic to look for themselves: only the action and the
    /// topic are set.
    #[must_use]
    pub fn sync(topic: impl Into<String>) -> Self {
        Self {
            table: None,
            key: None,
            action: Some(Action::Sync),
            value: None,
            topic: Some(topic.into()),
            timestamp: None,
        }
    }

    /// The same change with the object's text.
    #[must_use]
    pub fn with_value(mut self, value: impl Into<String>) -> Self {
        self.value = Some(Value::Text(value.into()));
        self
    }

    /// The same change for those who subscribe to `topic`.
    #[must_use]
    pub fn with_topic(mut self, topic: impl Into<String>) -> Self {
        self.topic = Some(topic.into());
        self
    }

    /// The memory that its texts and its value take.
    pub(super) fn octets(&self) -> usize {
        let texts = [&self.table, &self.key, &self.topic];
        let texts: usize = texts.into_iter().flatten().map(String::len).sum();
        let action = match &self.action {
            Some(Action::Other(word)) => word.len(),
            _ => 0,
        };
        let value = match &self.value {
            Some(Value::Text(text)) => text.len(),
            Some(Value::Other(value)) => octets_of(value),
            None => 0,
        };
        texts + action + value
    }

    /// The topic it is sent on: `topic` if that is given and not empty, else the update's own, else
    /// [`SEND_ALL_TOPIC`].
    #[must_use]
    pub fn topic_to_send_on<'a>(&'a self, topic: Option<&'a str>) -> &'a str {
        let given = topic.filter(|topic| !topic.is_empty());
        let own = self.topic.as_deref().filter(|topic| !topic.is_empty());
        given.or(own).unwrap_or(SEND_ALL_TOPIC)
    }
}

/// What happened to an object. Words that are not known are kept as they came.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Action {
    /// It is new.
    Create,
    /// It has changed.
    Set,
    /// It is gone.
    Delete,
    /// Nothing: a line for the subscribers' logs.
    Log,
    /// Something may have been missed: everything is to be read anew.
    Sync,
    /// Another word.
    Other(String),
}

impl Action {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Create => "create",
            Self::Set => "set",
            Self::Delete => "delete",
            Self::Log => "log",
            Self::Sync => "sync",
            Self::Other(word) => word,
        }
    }
}

impl<'a, T: Into<Cow<'a, str>>> From<T> for Action {
    fn from(word: T) -> Self {
        let word = word.into();
        match &*word {
            "create" => Self::Create,
            "set" => Self::Set,
            "delete" => Self::Delete,
            "log" => Self::Log,
            "sync" => Self::Sync,
            _ => Self::Other(word.into_owned()),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The object that an [`Update`] carries.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Text, as a rule JSON.
    Text(String),
    /// Anything else, which upstream passes on as it is. Text within it is text, octets are an array
    /// of numbers.
    Other(serde_json::Value),
}

impl Value {
    /// The text, if it is text.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Other(_) => None,
        }
    }
}

/// The memory that a value takes beside itself.
fn octets_of(value: &serde_json::Value) -> usize {
    use serde_json::Value;
    match value {
        Value::String(text) => text.len(),
        Value::Array(values) => {
            values.iter().map(|value| size_of::<Value>() + octets_of(value)).sum()
        }
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| size_of::<(String, Value)>() + name.len() + octets_of(value))
            .sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topic_is_the_given_one_else_the_own_one_else_that_of_all() {
        let update = Update::new("lport", "1", Action::Set).with_topic("tenant-1");
        assert_eq!(update.topic_to_send_on(Some("tenant-2")), "tenant-2");
        assert_eq!(update.topic_to_send_on(None), "tenant-1");
        assert_eq!(update.topic_to_send_on(Some("")), "tenant-1");
        let nobody = Update { topic: None, ..update.clone() };
        assert_eq!(nobody.topic_to_send_on(None), SEND_ALL_TOPIC);
        let empty = Update { topic: Some(String::new()), ..update };
        assert_eq!(empty.topic_to_send_on(None), SEND_ALL_TOPIC);
    }

    #[test]
    fn unknown_actions_are_kept() {
        for word in ["create", "set", "delete", "log", "sync", "dbrestart", ""] {
            assert_eq!(Action::from(word).as_str(), word);
        }
    }
}
