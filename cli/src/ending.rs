//! How the command came to its end, and what its exit status is then.

use dragonwire::Error;

use crate::signals::Signal;

/// How the command came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// What was asked for is done.
    Done,
    /// Nobody reads the standard output any more.
    ReaderGone,
    /// A signal said so.
    Signal(Signal),
}

/// Why the command could not do what was asked for.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit status.
    pub(crate) status: u8,
    /// One line for a person.
    pub(crate) reason: String,
}

impl Failure {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self { status: 1, reason: reason.into() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        // what no other state of the machine would make right is a bad argument
        let status = if matches!(error, Error::Endpoint(_) | Error::Option { .. }) { 2 } else { 1 };
        Self { status, reason: error.to_string() }
    }
}
