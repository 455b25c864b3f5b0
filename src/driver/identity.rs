//! Who a publisher is in the numbers of its events.

use std::sync::{Mutex, PoisonError};

use uuid::Uuid;

use super::DriverContext;

/// The id of a publisher that was given none: drawn when it is asked for, and anew in a process that
/// was forked since, which is another publisher.
#[derive(Debug, Default)]
pub(crate) struct Identity(Mutex<Option<(Uuid, u32)>>);

impl Identity {
    /// The id of the context's publisher in this process.
    pub(crate) fn of(&self, context: &DriverContext) -> Uuid {
        if let Some(id) = context.id() {
            return id;
        }
        let here = std::process::id();
        let mut drawn = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *drawn {
            Some((id, process)) if process == here => id,
            _ => drawn.insert((Uuid::new_v4(), here)).0,
        }
    }
}
