//! What is wrong with option files, and where.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::driver::directory::without_password;

/// Where a value was set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In a file.
    File {
        /// The file, as it was named when it was added.
        name: Arc<str>,
        /// The line, from 1.
        line: usize,
    },
    /// By [`Config::set`](super::Config::set).
    Code,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { name, line } => write!(f, "{name}:{line}"),
            Self::Code => f.write_str("set by the program"),
        }
    }
}

/// Why option files give no options.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file or a folder cannot be read.
    #[error("{}: cannot be read: {reason}", path.display())]
    Unreadable {
        /// Which one.
        path: PathBuf,
        /// What the operating system said.
        reason: String,
    },
    /// A line is in no form that is understood.
    #[error("{file}:{line}: {fault}")]
    Syntax {
        /// The file, as it was named when it was added.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong, and what was expected.
        fault: String,
    },
    /// A value is not of the option's type.
    #[error("{written}{}: expected {expected}", became(.written, .value))]
    Value {
        /// The value, its option and its place.
        written: Box<Written>,
        /// The value with its `$name`s replaced.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// A `$name` in a value has none.
    #[error("{written}: {fault}")]
    Interpolation {
        /// The value, its option and its place.
        written: Box<Written>,
        /// What is wrong.
        fault: InterpolationFault,
    },
}

/// A value as it was written, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Where it was set.
    pub place: Place,
    /// The section, in lower case and with underscores.
    pub section: String,
    /// The option, with underscores.
    pub option: String,
    /// The value, without quotes around it.
    pub value: String,
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, section, option, value } = self;
        // addresses may hold passwords
        let value = without_password(value);
        write!(f, "{place}: [{section}] {option} = {value:?}")
    }
}

fn became(written: &Written, value: &str) -> String {
    if written.value == value { String::new() } else { format!(", which is {value:?}") }
}

/// Why a `$name` in a value cannot be replaced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InterpolationFault {
    /// No file sets such an option, and it has no default that is known here.
    #[error("there is no option {name:?} to take the place of ${name}; a dollar itself is $$")]
    UnknownOption {
        /// What stands after the dollar.
        name: String,
    },
    /// The value of an option needs the option itself.
    #[error("the value needs itself: {}", chain.join(" -> "))]
    Loop {
        /// The options on the way, each `[section] option`; the last one was there before.
        chain: Vec<String>,
    },
    /// The values that take part are too many, too deep in each other, or too long together.
    #[error(
        "more than {} options in each other, {} in all or {} octets",
        super::interpolate::MOST_DEEP,
        super::interpolate::MOST_REFERENCES,
        super::interpolate::MOST_OCTETS
    )]
    TooMuch,
}
