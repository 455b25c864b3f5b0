//! What the server's news mean to somebody who follows a table: the next change, nothing new, or that
//! something is missing. Without IO.

use super::Change;
use super::protocol::wire;

/// What the server publishes about a table.
#[derive(Debug, Clone)]
pub(super) enum News {
    Changed(wire::Change),
    /// The table is there.
    At(Place),
}

/// A table at a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) epoch: u64,
    pub(super) revision: u64,
}

/// What a piece of news means to somebody who has a table as it was at a place.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing new.
    Known,
    /// The next change.
    Next(Place, Change),
    /// Something is missing: the table has to be listed.
    Gap,
}

pub(super) fn step(place: Place, news: News) -> Step {
    match news {
        News::Changed(change) if change.epoch != place.epoch => Step::Gap,
        News::Changed(change) if change.revision <= place.revision => Step::Known,
        News::Changed(change) if change.previous != place.revision => Step::Gap,
        News::Changed(wire::Change { epoch, revision, key, value, .. }) => {
            let change = match value {
                Some(value) => Change::Set { key, value },
                None => Change::Deleted { key },
            };
            Step::Next(Place { epoch, revision }, change)
        }
        News::At(now) if now == place => Step::Known,
        // an older one is from before the list; 0 may be a table that was emptied and forgotten
        News::At(Place { epoch, revision })
            if epoch == place.epoch && revision < place.revision && revision > 0 =>
        {
            Step::Known
        }
        News::At(_) => Step::Gap,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { epoch: 1, revision: 5 };

    fn changed(epoch: u64, previous: u64, revision: u64) -> News {
        let (table, key) = ("t".to_owned(), "k".to_owned());
        News::Changed(wire::Change { epoch, table, previous, revision, key, value: None })
    }

    #[test]
    fn the_next_change_is_told() {
        let told = Change::Deleted { key: "k".to_owned() };
        let place = Place { epoch: 1, revision: 8 };
        assert_eq!(step(PLACE, changed(1, 5, 8)), Step::Next(place, told));
    }

    #[test]
    fn what_is_in_the_list_already_is_not_told() {
        assert_eq!(step(PLACE, changed(1, 3, 5)), Step::Known);
        assert_eq!(step(PLACE, changed(1, 0, 3)), Step::Known);
        assert_eq!(step(PLACE, News::At(PLACE)), Step::Known);
        assert_eq!(step(PLACE, News::At(Place { epoch: 1, revision: 3 })), Step::Known);
    }

    #[test]
    fn what_is_missing_is_noticed() {
        assert_eq!(step(PLACE, changed(1, 6, 8)), Step::Gap);
        assert_eq!(step(PLACE, changed(2, 5, 8)), Step::Gap);
        assert_eq!(step(PLACE, changed(2, 0, 1)), Step::Gap);
        assert_eq!(step(PLACE, News::At(Place { epoch: 1, revision: 8 })), Step::Gap);
        assert_eq!(step(PLACE, News::At(Place { epoch: 2, revision: 5 })), Step::Gap);
        assert_eq!(step(PLACE, News::At(Place { epoch: 1, revision: 0 })), Step::Gap);
    }
}
