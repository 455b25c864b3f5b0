//! What a subscriber is told when something may have been lost.

use std::fmt;

use uuid::Uuid;

/// Something may have been lost: the subscriber is to look for itself at what it follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sync {
    /// Which events are missing; `None` if that is not known, as with publishers that do not number
    /// their events.
    pub missing: Option<Missing>,
    /// How it came to light.
    pub cause: SyncCause,
}

/// Events of one publisher on one topic that did not come.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Missing {
    /// Who published them.
    pub publisher: Uuid,
    /// In which of its lives.
    pub epoch: u64,
    /// The topic they were sent on.
    pub topic: String,
    /// The first that is missing.
    pub from: u64,
    /// The last that is missing; `None` if the publisher ended without saying how far it came. Should
    /// that be learnt later it is told then.
    pub to: Option<u64>,
}

impl Missing {
    /// How many events are missing; `None` if that is not known.
    #[must_use]
    pub fn count(&self) -> Option<u64> {
        self.to.map(|to| to.saturating_add(1).saturating_sub(self.from))
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { publisher, epoch, topic, from, to } = self;
        match to {
            Some(to) => write!(f, "{from} to {to}")?,
            None => write!(f, "perhaps some from {from} on")?,
        }
        write!(f, " on {topic:?} of publisher {publisher} (epoch {epoch})")
    }
}

/// How it came to light that something may have been lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SyncCause {
    /// The numbers of a publisher's events have a gap, or it says that it has come further.
    Gap,
    /// The publisher ended without saying how far it came: its successor is there, or it was given
    /// up.
    PublisherEnded,
    /// A publisher that does not number its events was away, or the broker was.
    Reconnected,
    /// A message could not be read.
    Undecodable,
    /// A peer said so: an event with the action `sync`.
    Announced,
    /// The callback panicked on an event.
    CallbackPanicked,
}

impl SyncCause {
    /// The word for logs and for the command's lines.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gap => "gap",
            Self::PublisherEnded => "publisher_ended",
            Self::Reconnected => "reconnected",
            Self::Undecodable => "undecodable",
            Self::Announced => "announced",
            Self::CallbackPanicked => "callback_panicked",
        }
    }
}

impl fmt::Display for SyncCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
