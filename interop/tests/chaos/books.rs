//! What became of every message: the accounts of each process, and what has to hold of them.

use std::collections::BTreeMap;
use std::time::Duration;

use dragonwire_interop::chaos::{HWM, Report, Run, Source, UNSAID, message_octets};
use dragonwire_interop::side::Maker;

use crate::plan::{LINKS, PLAYERS, Player};

/// What one life of a process has said of itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Life {
    /// No number above this one was sent.
    pub(crate) claimed: u64,
    /// Sender: slow from this number on.
    pub(crate) trickle: Option<u64>,
    /// Sender: the last numbers that were sent at once.
    pub(crate) burst: Option<(u64, u64)>,
    /// Receiver: what it got, in order.
    pub(crate) got: Vec<Run>,
    /// The last counters.
    pub(crate) report: Option<Report>,
    /// It was killed; else it has ended by itself, in good order.
    pub(crate) killed: bool,
    /// From the run's start to its own.
    pub(crate) began: Duration,
    /// From the run's start to its death.
    pub(crate) ended: Option<Duration>,
}

impl Life {
    fn overlaps(&self, other: &Self) -> bool {
        let before = |one: &Self, other: &Self| one.ended.is_some_and(|end| end < other.began);
        !before(self, other) && !before(other, self)
    }

    /// How many of these numbers it got.
    pub(crate) fn got_of(&self, source: Source, first: u64, last: u64) -> u64 {
        self.got
            .iter()
            .filter(|run| run.source == source && run.first <= last && run.last >= first)
            .map(|run| run.last.min(last) - run.first.max(first) + 1)
            .sum()
    }
}

/// What one report has to say at any moment, to the unit.
pub(crate) fn check_report(player: Player, report: &Report) -> Result<(), String> {
    if player.maker == Maker::Libzmq {
        return Ok(());
    }
    let get = |name| report.get(name);
    let (accepted, count) = (get("out.accepted"), get("count"));
    let offered = match player.kind {
        // one for each peer, and one for nobody
        "pub" => accepted >= count,
        "push" => accepted == count,
        _ => get("in.delivered") == count,
    };
    let holds = offered
        && accepted == get("out.sent") + get("out.queued") + report.sum("out.dropped.")
        && get("in.received") == get("in.delivered") + get("in.queued") + report.sum("in.dropped.");
    if holds { Ok(()) } else { Err(format!("{player}: these do not balance: {report}")) }
}

/// What has to hold between all processes when they have ended. `under_way` octets can be on a
/// connection. Says how much each sender's life was rid of that did not arrive.
pub(crate) fn check(lives: &[Vec<Life>], under_way: u64) -> Result<String, String> {
    let mut told = String::new();
    for (receiver, player) in PLAYERS.iter().enumerate() {
        for (life, account) in lives[receiver].iter().enumerate() {
            let of = |text| format!("{player}, life {}: {text}", life + 1);
            nothing_twice(&account.got).map_err(of)?;
            in_order(*player, receiver, account).map_err(of)?;
            nothing_unsent(receiver, account, lives).map_err(of)?;
            let ended = account.report.as_ref().filter(|_| !account.killed);
            if let Some(report) = ended {
                let said: u64 = account.got.iter().map(|run| run.last - run.first + 1).sum();
                if !player.sends() && said != report.get("count") {
                    return Err(of(format!("said {said} messages, counted {report}")));
                }
            }
        }
    }
    for sender in (0..PLAYERS.len()).filter(|player| PLAYERS[*player].sends()) {
        for life in 0..lives[sender].len() {
            let of = |text| format!("{}, life {}: {text}", PLAYERS[sender], life + 1);
            if let Some(text) = all_explained(sender, life, lives, under_way).map_err(of)? {
                told.push_str(&of(text));
                told.push('\n');
            }
        }
    }
    Ok(told)
}

/// No receiver is given the same message twice, whatever became of the connections.
fn nothing_twice(got: &[Run]) -> Result<(), String> {
    let mut sorted: Vec<&Run> = got.iter().collect();
    sorted.sort_by_key(|run| (run.source, run.first));
    for pair in sorted.windows(2) {
        if pair[0].source == pair[1].source && pair[0].last >= pair[1].first {
            return Err(format!("twice: {:?} and {:?}", pair[0], pair[1]));
        }
    }
    Ok(())
}

/// What comes by one connection comes in order. libzmq does not say what came by which: then it has
/// to be possible to deal it out to as many connections as there were.
fn in_order(player: Player, receiver: usize, account: &Life) -> Result<(), String> {
    let mut last: BTreeMap<(u64, Source), Vec<u64>> = BTreeMap::new();
    for run in &account.got {
        let ends = last.entry((run.connection, run.source)).or_default();
        // the closest of those that it can follow
        match ends.iter_mut().filter(|end| **end < run.first).max() {
            Some(end) => *end = run.last,
            None => ends.push(run.last),
        }
    }
    let connections = match (player.maker, &account.report) {
        (Maker::Dragonwire, _) => 1,
        (Maker::Libzmq, report) => {
            let told = report.as_ref().map_or(0, |report| report.get("handshakes"));
            told + if account.killed { receivers_links(receiver) } else { 0 }
        }
    };
    match last.iter().find(|(_, ends)| ends.len() as u64 > connections) {
        Some((of, ends)) => Err(format!("out of order: {of:?} came in {} rows", ends.len())),
        None => Ok(()),
    }
}

fn receivers_links(receiver: usize) -> u64 {
    LINKS.iter().filter(|link| link.1 == receiver).count() as u64
}

/// Nothing comes that was not sent, or not to this receiver.
fn nothing_unsent(receiver: usize, account: &Life, lives: &[Vec<Life>]) -> Result<(), String> {
    for run in &account.got {
        let (sender, life) = (run.source.sender as usize, run.source.life as usize);
        let sent = lives.get(sender).and_then(|lives| lives.get(life.wrapping_sub(1)));
        let known = LINKS.contains(&(sender, receiver));
        if !known || sent.is_none_or(|sent| run.first == 0 || run.last > sent.claimed) {
            return Err(format!("never sent: {run:?}"));
        }
    }
    Ok(())
}

/// What a sender is rid of and no receiver got, is explained by lost connections, each of which can
/// have taken along what was under way, and by killed receivers, which had more in hand than they said.
fn all_explained(
    sender: usize,
    life: usize,
    lives: &[Vec<Life>],
    under_way: u64,
) -> Result<Option<String>, String> {
    let (player, account) = (PLAYERS[sender], &lives[sender][life]);
    let Some(report) = &account.report else { return Ok(None) };
    let count = report.get("count");
    let receivers: Vec<usize> =
        LINKS.iter().filter(|link| link.0 == sender).map(|link| link.1).collect();
    let source = Source { sender: sender as u32, life: life as u32 + 1 };
    let mut all: Vec<Run> = Vec::new();
    for receiver in &receivers {
        all.extend(lives[*receiver].iter().flat_map(|life| &life.got));
    }
    all.retain(|run| run.source == source);
    if player.kind == "push" {
        nothing_twice(&all)?;
    }
    let got: u64 = all
        .iter()
        .filter(|run| run.first <= count)
        .map(|run| run.last.min(count) - run.first + 1)
        .sum();
    let sent = match (player.maker, player.kind) {
        (Maker::Dragonwire, _) => report.get("out.sent"),
        (Maker::Libzmq, "push") => count,
        // it does not say what it has dropped
        (Maker::Libzmq, _) => return Ok(None),
    };
    if !account.killed && got > sent {
        return Err(format!("{got} came, but {report}"));
    }
    let missing = sent.saturating_sub(got);
    let octets = message_octets(sender as u32);
    let lost = report.get("lost") + if account.killed { receivers.len() as u64 } else { 0 };
    // libzmq drops what is queued for a connection that it has accepted
    let queued = if player.maker == Maker::Libzmq { HWM as u64 } else { 0 };
    let deaths = receivers
        .iter()
        .flat_map(|receiver| &lives[*receiver])
        .filter(|life| life.killed && life.overlaps(account))
        .count();
    let in_hand = HWM as u64 + 2 * UNSAID + READ_BLOCK / octets;
    let explained =
        lost * (queued + (under_way + READ_AHEAD) / octets + 1) + deaths as u64 * in_hand;
    if missing > explained {
        return Err(format!("{missing} messages are missing, {explained} explained: {report}"));
    }
    Ok(Some(format!("sent {sent}, missing {missing}, explained up to {explained}")))
}

/// What is read of a connection without room in the queue, in octets.
const READ_AHEAD: u64 = 64 * 1024;

/// What is read of a connection at once, in octets.
const READ_BLOCK: u64 = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    /// Both are calm: a dragonwire PUSH and its libzmq PULL.
    const PUSH: usize = 10;
    const PULL: usize = 11;

    fn run(first: u64, last: u64) -> Run {
        let source = Source { sender: PUSH as u32, life: 1 };
        Run { connection: 0, source, first, last }
    }

    fn report(counters: &[(&str, u64)]) -> Report {
        let mut report = Report::default();
        for (name, value) in counters {
            report.set(*name, *value);
        }
        report
    }

    /// The books of a run in which one sender has sent ten messages.
    fn books(got: &[Run], lost: u64) -> Vec<Vec<Life>> {
        let mut lives = vec![Vec::new(); PLAYERS.len()];
        let counted: u64 = got.iter().map(|run| run.last - run.first + 1).sum();
        lives[PUSH].push(Life {
            claimed: 10,
            report: Some(report(&[("count", 10), ("out.sent", 10), ("lost", lost)])),
            ..Life::default()
        });
        lives[PULL].push(Life {
            got: got.to_vec(),
            report: Some(report(&[("count", counted), ("handshakes", 1 + lost)])),
            ..Life::default()
        });
        lives
    }

    #[track_caller]
    fn fails(lives: &[Vec<Life>], why: &str) {
        let failure = check(lives, 1000).unwrap_err();
        assert!(failure.contains(why), "{failure}");
    }

    #[test]
    fn books_that_balance_do() {
        check(&books(&[run(1, 4), run(5, 10)], 0), 1000).unwrap();
        check(&books(&[run(1, 4), run(9, 10)], 1), 1000).unwrap();
        // the rest of a lost connection beside the beginning of the next
        check(&books(&[run(1, 3), run(6, 8), run(4, 5), run(9, 10)], 1), 1000).unwrap();
    }

    #[test]
    fn what_is_wrong_is_found() {
        fails(&books(&[run(1, 5), run(5, 10)], 0), "twice");
        fails(&books(&[run(1, 3), run(6, 10), run(4, 5)], 0), "out of order");
        fails(&books(&[run(1, 11)], 0), "never sent");
        fails(&books(&[run(1, 4), run(6, 10)], 0), "missing");
        let mut killed = books(&[run(1, 10)], 0);
        killed[PULL][0].got.clear();
        killed[PULL][0].killed = true;
        check(&killed, 1000).unwrap();
        killed[PULL][0].killed = false;
        fails(&killed, "counted");
    }

    #[test]
    fn a_report_that_does_not_balance_is_found() {
        let good = [
            ("count", 7),
            ("out.accepted", 7),
            ("out.sent", 4),
            ("out.queued", 1),
            ("out.dropped.linger", 2),
            ("in.received", 0),
            ("in.delivered", 0),
            ("in.queued", 0),
        ];
        check_report(PLAYERS[PUSH], &report(&good)).unwrap();
        for counter in 0..good.len() {
            let mut bad = good;
            bad[counter].1 += 1;
            assert!(check_report(PLAYERS[PUSH], &report(&bad)).is_err(), "{bad:?}");
        }
    }
}
