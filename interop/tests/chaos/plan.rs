//! Who plays, and what happens to them when: all of it follows from the seed.

use std::fmt;
use std::time::Duration;

use dragonwire_interop::chaos::{Dice, HEARTBEAT_TIMEOUT};
use dragonwire_interop::side::Maker;

/// A process with one socket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Player {
    pub(crate) maker: Maker,
    /// `pub`, `sub`, `push` or `pull`.
    pub(crate) kind: &'static str,
    /// Nothing is done to it or to its path.
    pub(crate) calm: bool,
}

impl Player {
    pub(crate) fn sends(&self) -> bool {
        matches!(self.kind, "pub" | "push")
    }
}

impl fmt::Display for Player {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calm = if self.calm { "calm " } else { "" };
        write!(f, "{calm}{:?} {}", self.maker, self.kind.to_uppercase())
    }
}

const fn player(maker: Maker, kind: &'static str, calm: bool) -> Player {
    Player { maker, kind, calm }
}

/// Those that faults happen to first.
pub(crate) const PLAYERS: [Player; 14] = [
    player(Maker::Dragonwire, "pub", false),
    player(Maker::Dragonwire, "push", false),
    player(Maker::Libzmq, "pub", false),
    player(Maker::Libzmq, "push", false),
    player(Maker::Dragonwire, "sub", false),
    player(Maker::Dragonwire, "pull", false),
    player(Maker::Libzmq, "sub", false),
    player(Maker::Libzmq, "pull", false),
    player(Maker::Dragonwire, "pub", true),
    player(Maker::Libzmq, "sub", true),
    player(Maker::Dragonwire, "push", true),
    player(Maker::Libzmq, "pull", true),
    player(Maker::Libzmq, "push", true),
    player(Maker::Dragonwire, "pull", true),
];

/// Who sends to whom. The first [`FAULTY`] cross the network.
pub(crate) const LINKS: [(usize, usize); 9] =
    [(0, 6), (0, 4), (2, 4), (1, 7), (1, 5), (3, 5), (8, 9), (10, 11), (12, 13)];

/// How many links have faults.
pub(crate) const FAULTY: usize = 6;

/// What is done, until it is undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// `kill -9`, and another life after a while.
    Kill(usize),
    /// `SIGSTOP`, `SIGCONT`.
    Pause(usize),
    /// Nothing passes on these links, either way.
    Cut(Vec<usize>),
    /// What passes on these links takes longer.
    Delay(Vec<usize>),
    /// Some of the packets on these links are lost; without a network of its own: their connections
    /// are broken once.
    Loss(Vec<usize>),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, links) = match self {
            Self::Kill(player) => return write!(f, "kill {}", PLAYERS[*player]),
            Self::Pause(player) => return write!(f, "pause {}", PLAYERS[*player]),
            Self::Cut(links) => ("cut", links),
            Self::Delay(links) => ("delay", links),
            Self::Loss(links) => ("loss", links),
        };
        write!(f, "{what} on links {links:?}")
    }
}

/// A fault and its time from the start.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) from: Duration,
    pub(crate) to: Duration,
    pub(crate) fault: Fault,
}

impl Step {
    /// Whether packets meet it for long enough, beside these others: whether one of its links is not
    /// cut then, and has nobody at its ends who is dead or stopped.
    fn is_felt(&self, others: &[Self]) -> bool {
        let (Fault::Delay(links) | Fault::Loss(links)) = &self.fault else { return true };
        let silent = |link: usize, time: Duration| {
            let now = |step: &&Self| step.from <= time && time < step.to;
            others.iter().filter(now).any(|step| match &step.fault {
                Fault::Kill(player) | Fault::Pause(player) => {
                    LINKS[link].0 == *player || LINKS[link].1 == *player
                }
                Fault::Cut(links) => links.contains(&link),
                Fault::Delay(_) | Fault::Loss(_) => false,
            })
        };
        let instants = (0..).map(|i| self.from + GRAIN * i).take_while(|time| *time < self.to);
        let felt = instants.filter(|time| links.iter().any(|link| !silent(*link, *time)));
        GRAIN * felt.count() as u32 >= FELT
    }
}

fn time_between(dice: &mut Dice, from: Duration, to: Duration) -> Duration {
    let [from, to] = [from, to].map(|time| time.as_millis() as u64);
    Duration::from_millis(dice.between(from, to.max(from + 1)))
}

/// The plan of a run.
#[derive(Debug)]
pub(crate) struct Plan {
    /// For each link, whether its sender listens; else its receiver does.
    pub(crate) sender_binds: Vec<bool>,
    pub(crate) steps: Vec<Step>,
}

impl Plan {
    /// The plan for a time of at least one [`STRETCH`]. Each stretch holds every kind of fault, and at
    /// least one cut, one sender's and one receiver's pause that are longer than a heartbeat may be late.
    pub(crate) fn new(seed: u64, time: Duration) -> Self {
        let mut dice = Dice::new(seed);
        let sender_binds = LINKS.iter().map(|_| dice.roll().is_multiple_of(2)).collect();
        let mut steps = Vec::new();
        let stretches = time.as_secs() / STRETCH.as_secs();
        let length = time / stretches as u32;
        for stretch in 0..stretches as u32 {
            let mut drawn: Vec<Step> = Vec::new();
            for (shortest, longest, fault) in faults(&mut dice) {
                // a slow or lossy link is drawn after what could leave nothing to pass on it
                let step = loop {
                    let lasts = time_between(&mut dice, shortest, longest);
                    let from = time_between(&mut dice, FIRST, length.saturating_sub(lasts));
                    let step = Step { from, to: from + lasts, fault: fault.clone() };
                    if step.is_felt(&drawn) {
                        break step;
                    }
                };
                drawn.push(step);
            }
            steps.extend(drawn.into_iter().map(|step| Step {
                from: step.from + length * stretch,
                to: step.to + length * stretch,
                ..step
            }));
        }
        steps.sort_by_key(|step| step.from);
        Self { sender_binds, steps }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, ((sender, receiver), binds)) in
            LINKS.iter().zip(&self.sender_binds).enumerate()
        {
            let listens = if *binds { "sender" } else { "receiver" };
            let (sender, receiver) = (PLAYERS[*sender], PLAYERS[*receiver]);
            writeln!(f, "link {number}: {sender} to {receiver}, the {listens} listens")?;
        }
        for Step { from, to, fault } in &self.steps {
            writeln!(f, "{:6.2} s to {:6.2} s: {fault}", from.as_secs_f64(), to.as_secs_f64())?;
        }
        Ok(())
    }
}

/// The faults of one stretch, each with the shortest and the longest time it lasts. Of each two
/// players that are of the same maker and both send or both receive one is killed, and the other one
/// stopped: so that there are always pairs of which nobody was killed.
fn faults(dice: &mut Dice) -> Vec<(Duration, Duration, Fault)> {
    let ms = Duration::from_millis;
    let mut faults = Vec::new();
    let mut others = Vec::new();
    for [one, other] in [[0, 1], [2, 3], [4, 5], [6, 7]] {
        let (killed, spared) =
            if dice.roll().is_multiple_of(2) { (one, other) } else { (other, one) };
        others.push(spared);
        faults.push((ms(1), ms(800), Fault::Kill(killed)));
    }
    let beyond = HEARTBEAT_TIMEOUT + ms(600);
    // a sender and a receiver for long, the other two not
    for two in others.chunks(2) {
        let long = dice.between(0, 2) as usize;
        faults.push((beyond, beyond + ms(1_000), Fault::Pause(two[long])));
        faults.push((ms(100), ms(1_500), Fault::Pause(two[1 - long])));
    }
    let all: Vec<usize> = (0..FAULTY).collect();
    let mut some = || -> Vec<usize> {
        let chosen = dice.between(1, 1 << FAULTY);
        all.iter().copied().filter(|link| chosen & (1 << link) != 0).collect()
    };
    faults.push((beyond, beyond + ms(1_500), Fault::Cut(all.clone())));
    faults.push((ms(100), ms(1_500), Fault::Cut(some())));
    for _ in 0..2 {
        faults.push((ms(1_500), ms(4_000), Fault::Delay(some())));
        faults.push((ms(1_500), ms(4_000), Fault::Loss(some())));
    }
    faults
}

/// The time in which each kind of fault happens: with room beside all that silences a link.
pub(crate) const STRETCH: Duration = Duration::from_secs(20);

/// How long a slow or lossy link has to have something to pass.
const FELT: Duration = Duration::from_millis(1_000);

const GRAIN: Duration = Duration::from_millis(50);

/// Before this nothing does.
const FIRST: Duration = Duration::from_millis(500);

#[test]
fn a_seed_decides_the_plan() {
    let plan = |seed| Plan::new(seed, STRETCH).to_string();
    assert_eq!(plan(1), plan(1));
    assert_ne!(plan(1), plan(2));
}

#[test]
fn every_plan_has_every_fault_felt_and_ends_in_time() {
    for seed in 0..500 {
        let time = STRETCH;
        let plan = Plan::new(seed, time);
        assert!(plan.steps.iter().all(|step| step.from < step.to && step.to <= time), "{plan}");
        let long = |step: &&Step| step.to - step.from > HEARTBEAT_TIMEOUT;
        let count =
            |wanted: fn(&Fault) -> bool| plan.steps.iter().filter(|s| wanted(&s.fault)).count();
        assert!(plan.steps.iter().all(|step| step.is_felt(&plan.steps)), "{plan}");
        assert_eq!(count(|fault| matches!(fault, Fault::Kill(_))), 4, "{plan}");
        assert_eq!(count(|fault| matches!(fault, Fault::Delay(_))), 2, "{plan}");
        assert_eq!(count(|fault| matches!(fault, Fault::Loss(_))), 2, "{plan}");
        let cut = |step: &&Step| matches!(step.fault, Fault::Cut(_));
        let pause = |step: &&Step| matches!(step.fault, Fault::Pause(_));
        assert!(plan.steps.iter().filter(cut).any(|step| long(&step)), "{plan}");
        assert!(plan.steps.iter().filter(pause).filter(long).count() >= 2, "{plan}");
    }
}
