//! Tasks that wait for one kind of change: all are woken, and look again.

use std::task::Waker;

/// Wakers by ticket, so that who gives up waiting leaves nothing behind.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    next: u64,
    list: Vec<(u64, Waker)>,
}

impl Waiters {
    /// Puts a waker into the list, or into the place that its ticket already has there.
    pub(crate) fn register(&mut self, ticket: &mut Option<u64>, waker: &Waker) {
        if let Some((_, old)) = self.list.iter_mut().find(|(id, _)| Some(*id) == *ticket) {
            old.clone_from(waker);
            return;
        }
        self.next += 1;
        *ticket = Some(self.next);
        self.list.push((self.next, waker.clone()));
    }

    pub(crate) fn leave(&mut self, ticket: u64) {
        self.list.retain(|(id, _)| *id != ticket);
    }

    /// Empties the list; the wakers are to be woken, outside of any lock.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Waker> + '_ {
        self.list.drain(..).map(|(_, waker)| waker)
    }
}
