//! A table as each of several directories has it, put together to one stream of changes. Without IO.

use super::{Change, Rows};

/// A table as each directory has it, and which of them is followed.
#[derive(Debug)]
pub(super) struct Views {
    views: Vec<View>,
    followed: Option<usize>,
    /// [`Change::Lost`] was told and nothing since.
    lost: bool,
}

#[derive(Debug)]
enum View {
    Unknown,
    Lost,
    Here(Rows),
}

impl Views {
    pub(super) fn new(count: usize) -> Self {
        let views = (0..count).map(|_| View::Unknown).collect();
        Self { views, followed: None, lost: false }
    }

    /// What a change in one directory is for the table as a whole.
    pub(super) fn take(&mut self, index: usize, change: Change) -> Option<Change> {
        let view = self.views.get_mut(index)?;
        let mut fault = None;
        match (&change, &mut *view) {
            (Change::All(rows), _) => *view = View::Here(rows.clone()),
            (Change::Set { key, value }, View::Here(rows)) => {
                rows.insert(key.clone(), value.clone());
            }
            (Change::Deleted { key }, View::Here(rows)) => {
                rows.remove(key);
            }
            (Change::Lost { reason }, _) => {
                *view = View::Lost;
                fault = Some(reason.clone());
            }
            // no directory tells changes of what it has not told
            (Change::Set { .. } | Change::Deleted { .. }, _) => return None,
        }
        match (self.followed, fault) {
            (Some(followed), None) => (followed == index).then_some(change),
            (Some(followed), Some(_)) if followed != index => None,
            (_, fault) => self.move_on(fault.unwrap_or_default()),
        }
    }

    /// Follows the first directory that is there.
    pub(super) fn move_on(&mut self, fault: String) -> Option<Change> {
        self.followed = None;
        for (index, view) in self.views.iter().enumerate() {
            if let View::Here(rows) = view {
                (self.followed, self.lost) = (Some(index), false);
                return Some(Change::All(rows.clone()));
            }
        }
        let all_lost = self.views.iter().all(|view| matches!(view, View::Lost));
        let told = !all_lost || std::mem::replace(&mut self.lost, true);
        (!told).then_some(Change::Lost { reason: fault })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(keys: &[&str]) -> Rows {
        keys.iter().map(|key| ((*key).to_owned(), String::new())).collect()
    }

    fn all(keys: &[&str]) -> Change {
        Change::All(rows(keys))
    }

    fn deleted(key: &str) -> Change {
        Change::Deleted { key: key.to_owned() }
    }

    fn lost() -> Change {
        Change::Lost { reason: "gone".to_owned() }
    }

    #[test]
    fn one_directory_is_followed_until_it_is_lost() {
        let mut views = Views::new(2);
        assert_eq!(views.take(1, all(&["a", "b"])), Some(all(&["a", "b"])));
        assert_eq!(views.take(0, all(&["a", "b", "c"])), None);
        assert_eq!(views.take(0, deleted("c")), None);
        assert_eq!(views.take(1, deleted("b")), Some(deleted("b")));
        assert_eq!(views.take(0, deleted("a")), None);
        // with what the other has told meanwhile
        assert_eq!(views.take(1, lost()), Some(all(&["b"])));
        assert_eq!(views.take(1, all(&["x"])), None);
        assert_eq!(views.take(0, deleted("b")), Some(deleted("b")));
    }

    #[test]
    fn the_loss_of_all_is_told_once() {
        let mut views = Views::new(2);
        assert_eq!(views.take(0, lost()), None);
        assert_eq!(views.take(1, lost()), Some(lost()));
        assert_eq!(views.take(0, lost()), None);
        assert_eq!(views.take(0, all(&["a"])), Some(all(&["a"])));
        assert_eq!(views.take(0, lost()), Some(lost()));
        assert_eq!(views.take(1, all(&[])), Some(all(&[])));
        assert!(Views::new(0).move_on("none".to_owned()).is_some());
    }
}
