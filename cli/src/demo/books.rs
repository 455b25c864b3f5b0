//! The accounts of every process, and whether they agree. Pure: no processes, no sockets.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What one publisher process knows of itself. It keeps it in a file as it goes, so that it outlives
/// a publisher that is killed, and tells it at its end.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Account {
    /// Messages taken from the workers and given a number, from 0.
    pub(crate) numbered: u64,
    /// Of these, those handed to the PUB socket.
    pub(crate) published: u64,
    /// What the PUB socket took over, message by message and subscriber.
    pub(crate) accepted: u64,
    /// What it handed to the kernel.
    pub(crate) sent: u64,
    /// What it dropped, by reason.
    pub(crate) dropped: BTreeMap<String, u64>,
    /// What came from each worker.
    pub(crate) feeds: BTreeMap<u32, Feed>,
}

/// Messages of one worker as they came to one publisher process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Feed {
    /// The number of the first.
    pub(crate) first: u64,
    /// The number that should come next.
    pub(crate) next: u64,
    /// How many came with another number than that.
    pub(crate) jumps: u64,
}

/// Messages of one publisher process as they came to the subscriber.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Seen {
    pub(crate) delivered: u64,
    /// Above every number that came.
    pub(crate) next: u64,
    /// Numbers below that that did not come.
    pub(crate) missing: u64,
    /// Messages that came twice or too late.
    pub(crate) disordered: u64,
}

/// One life of a publisher: from its start to its end, or until it was killed.
#[derive(Debug, Clone)]
pub(crate) struct Life {
    pub(crate) number: u32,
    pub(crate) publisher: char,
    pub(crate) endpoint: String,
    pub(crate) killed: bool,
    /// Whether it is a second life.
    pub(crate) again: bool,
    pub(crate) lasted: Duration,
    pub(crate) account: Account,
    pub(crate) seen: Seen,
}

/// A worker's own account.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pushed {
    pub(crate) worker: u32,
    /// Messages that its PUSH socket took over, numbered from 0.
    pub(crate) pushed: u64,
}

/// What flowed from the workers of one publisher to it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Hop {
    pub(crate) pushed: u64,
    pub(crate) taken: u64,
    /// Numbers that neither life of the publisher has seen.
    pub(crate) lost: u64,
}

impl Account {
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.values().sum()
    }

    pub(crate) fn take(&mut self, worker: u32, number: u64) {
        let fresh = Feed { first: number, next: number, jumps: 0 };
        let feed = self.feeds.entry(worker).or_insert(fresh);
        feed.jumps += u64::from(number != feed.next);
        feed.next = number + 1;
        self.numbered += 1;
    }
}

impl Feed {
    fn taken(&self) -> u64 {
        self.next.saturating_sub(self.first)
    }
}

impl Seen {
    pub(crate) fn note(&mut self, number: u64) {
        self.delivered += 1;
        match number.checked_sub(self.next) {
            Some(missing) => {
                self.missing += missing;
                self.next = number + 1;
            }
            None => self.disordered += 1,
        }
    }
}

impl Life {
    /// What died with a publisher that was killed: in its queues, and in the kernel's.
    pub(crate) fn lost(&self) -> u64 {
        if self.killed {
            let known = self.seen.delivered + self.account.dropped();
            self.account.numbered.saturating_sub(known)
        } else {
            0
        }
    }

    /// What does not agree.
    fn faults(&self) -> Vec<String> {
        let (account, seen) = (&self.account, &self.seen);
        let dropped = account.dropped();
        let mut faults = Vec::new();
        let mut check = |holds: bool, fault: String| {
            if !holds {
                faults.push(format!("{}: {fault}", self.publisher));
            }
        };
        check(seen.disordered == 0, format!("{} came twice or out of order", seen.disordered));
        check(
            seen.next <= account.numbered,
            format!("number {} came, but only {} were given", seen.next, account.numbered),
        );
        if self.killed {
            // between two entries in its file a publisher may have dropped without writing it down
            let unwritten = account.numbered.saturating_sub(account.published);
            check(
                seen.missing <= dropped + unwritten,
                format!("{} are missing in between, of which {dropped} were dropped", seen.missing),
            );
            check(
                seen.delivered + dropped <= account.numbered,
                format!(
                    "{} delivered and {dropped} dropped are more than {} sent",
                    seen.delivered, account.numbered
                ),
            );
        } else {
            check(
                account.published == account.numbered && account.accepted == account.numbered,
                format!(
                    "{} sent, {} published, {} accepted",
                    account.numbered, account.published, account.accepted
                ),
            );
            check(
                seen.delivered + dropped == account.numbered,
                format!(
                    "{} sent, but {} delivered and {dropped} dropped",
                    account.numbered, seen.delivered
                ),
            );
            check(
                seen.delivered == account.sent,
                format!("{} went to the kernel, {} came out", account.sent, seen.delivered),
            );
        }
        for (worker, feed) in &account.feeds {
            check(feed.jumps == 0, format!("worker {worker}'s numbers jump {} times", feed.jumps));
        }
        faults
    }
}

/// What flowed to each publisher from its workers, and all that does not agree.
pub(crate) fn balance(
    lives: &[Life],
    workers: &BTreeMap<char, Vec<Pushed>>,
) -> (BTreeMap<char, Hop>, Vec<String>) {
    let mut faults: Vec<String> = lives.iter().flat_map(Life::faults).collect();
    let mut hops = BTreeMap::new();
    for (publisher, workers) in workers {
        let lives: Vec<&Life> = lives.iter().filter(|life| life.publisher == *publisher).collect();
        let killed = lives.iter().any(|life| life.killed);
        let mut hop = Hop::default();
        for pushed in workers {
            let feeds = lives.iter().filter_map(|life| life.account.feeds.get(&pushed.worker));
            let mut next = 0;
            for feed in feeds {
                hop.taken += feed.taken();
                match feed.first.checked_sub(next) {
                    Some(lost) => hop.lost += lost,
                    None => faults.push(format!(
                        "{publisher}: worker {}'s number {} came again",
                        pushed.worker, feed.first
                    )),
                }
                next = feed.next;
            }
            if next != pushed.pushed {
                faults.push(format!(
                    "{publisher}: worker {} pushed {}, the last that came was number {next}",
                    pushed.worker, pushed.pushed
                ));
            }
            hop.pushed += pushed.pushed;
        }
        if hop.lost > 0 && !killed {
            faults.push(format!("{publisher}: {} lost between workers and publisher", hop.lost));
        }
        let numbered: u64 = lives.iter().map(|life| life.account.numbered).sum();
        if hop.pushed != hop.taken + hop.lost || hop.taken != numbered {
            faults.push(format!(
                "{publisher}: {} pushed, {} taken, {} numbered, {} lost on the way",
                hop.pushed, hop.taken, numbered, hop.lost
            ));
        }
        hops.insert(*publisher, hop);
    }
    (hops, faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A publisher that took `n` messages of worker 1 from number `first` on, dropped every fifth and
    /// sent the others.
    fn life(first: u64, n: u64) -> Life {
        let mut account = Account::default();
        let mut seen = Seen::default();
        for number in first..first + n {
            account.take(1, number);
            account.published += 1;
            account.accepted += 1;
            if account.numbered % 5 == 0 {
                *account.dropped.entry("no_subscriber".into()).or_default() += 1;
            } else {
                account.sent += 1;
                seen.note(account.numbered - 1);
            }
        }
        Life {
            number: 1,
            publisher: 'A',
            endpoint: String::new(),
            killed: false,
            again: false,
            lasted: Duration::from_secs(1),
            account,
            seen,
        }
    }

    fn faults(lives: &[Life], pushed: u64) -> Vec<String> {
        balance(lives, &BTreeMap::from([('A', vec![Pushed { worker: 1, pushed }])])).1
    }

    #[test]
    fn a_quiet_life_balances() {
        assert_eq!(faults(&[life(0, 103)], 103), Vec::<String>::new());
        assert_eq!(faults(&[life(0, 0)], 0), Vec::<String>::new());
    }

    #[test]
    fn a_killed_one_balances_with_what_was_lost() {
        let mut first = life(0, 100);
        first.killed = true;
        // the last ten numbers are known from the file only
        for number in 100..110 {
            first.account.take(1, number);
        }
        let second = Life { again: true, ..life(130, 50) };
        let lives = [first, second];
        let workers = BTreeMap::from([('A', vec![Pushed { worker: 1, pushed: 180 }])]);
        let (hops, faults) = balance(&lives, &workers);
        assert_eq!(faults, Vec::<String>::new());
        assert_eq!(hops[&'A'], Hop { pushed: 180, taken: 160, lost: 20 });
        assert_eq!(lives[0].lost(), 10);
        assert_eq!(lives[1].lost(), 0);
    }

    #[test]
    fn each_kind_of_fault_is_found() {
        let broken: [fn(&mut Life); 9] = [
            |life| life.seen.delivered -= 1,
            |life| life.seen.disordered = 1,
            |life| life.seen.next = 1000,
            |life| life.account.sent += 1,
            |life| life.account.accepted += 1,
            |life| life.account.published -= 1,
            |life| *life.account.dropped.get_mut("no_subscriber").unwrap() += 1,
            |life| life.account.feeds.get_mut(&1).unwrap().jumps = 1,
            |life| life.account.feeds.get_mut(&1).unwrap().first = 1,
        ];
        for (i, damage) in broken.into_iter().enumerate() {
            let mut life = life(0, 100);
            damage(&mut life);
            assert_ne!(faults(&[life], 100), Vec::<String>::new(), "{i}");
        }
        assert_ne!(faults(&[life(0, 100)], 101), Vec::<String>::new());

        // a killed publisher explains no gap in between
        let mut killed = life(0, 104);
        killed.killed = true;
        assert_eq!(faults(std::slice::from_ref(&killed), 104), Vec::<String>::new());
        killed.seen.missing += 1;
        killed.seen.delivered -= 1;
        assert_ne!(faults(&[killed], 104), Vec::<String>::new());
    }

    #[test]
    fn what_comes_twice_is_disorder() {
        let mut seen = Seen::default();
        for number in [0, 1, 4, 4, 3, 5] {
            seen.note(number);
        }
        assert_eq!(seen, Seen { delivered: 6, next: 6, missing: 2, disordered: 2 });
    }
}
