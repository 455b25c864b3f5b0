//! Chaos: processes of dragonwire's and of libzmq's on both sides of a network, which are killed and
//! stopped while it is cut, slow and losing packets. At the end the books balance.
//!
//! A seed decides what happens when; `docs/chaos.md` says what has to hold.
//!
//! - [`plan`]: who plays, and the faults.
//! - [`network`], [`relay`]: what is between them.
//! - [`books`]: what has to hold.

mod books;
mod network;
mod plan;
mod relay;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dragonwire_interop::chaos::{Line, REPORTS, Source};
use dragonwire_interop::{DEADLINE, GLANCE};
use rustix::process::{Pid, Signal, kill_process};

use books::{Life, check, check_report};
use network::{Network, Weather};
use plan::{FAULTY, Fault, LINKS, PLAYERS, Plan, STRETCH};

#[test]
fn after_chaos_every_pair_is_whole_again_and_the_books_balance() {
    let seed = number_from("CHAOS_SEED").unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_micros() as u64)
    });
    let time = number_from("CHAOS_SECONDS").map_or(STRETCH, Duration::from_secs).max(STRETCH);
    let plan = Plan::new(seed, time);
    println!("CHAOS_SEED={seed} CHAOS_SECONDS={}\n{plan}", time.as_secs());
    let mut network = Network::new(&plan.sender_binds);
    let mut company = Company::start(seed, &plan, &mut network);
    company.suffer();
    company.recover();
    company.burst();
    company.finish();
    company.print();
    let accounts = company.accounts();
    network.print();
    match check(&accounts, network.octets_under_way()) {
        Ok(missing) => print!("{missing}"),
        Err(fault) => panic!("seed {seed}: {fault}"),
    }
}

fn number_from(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value} is not a number")))
}

/// All processes, and what they have said.
struct Company<'a> {
    /// Decides all that happens, and is in every message.
    seed: u64,
    started: Instant,
    plan: &'a Plan,
    network: &'a mut Network,
    members: Vec<Member>,
    said: Receiver<Said>,
    sayer: Sender<Said>,
}

#[derive(Default)]
struct Member {
    child: Option<Child>,
    stdin: Option<ChildStdin>,
    finishing: bool,
    /// When its current life has reported last.
    reported: Option<Instant>,
    lives: Vec<Life>,
    /// Outputs that have not ended.
    open: usize,
}

/// A line of one life, or the end of its output.
struct Said {
    player: usize,
    life: usize,
    line: Option<String>,
}

impl<'a> Company<'a> {
    fn start(seed: u64, plan: &'a Plan, network: &'a mut Network) -> Self {
        let (sayer, said) = channel();
        let members = PLAYERS.iter().map(|_| Member::default()).collect();
        let mut company =
            Self { seed, started: Instant::now(), plan, network, members, said, sayer };
        for player in 0..PLAYERS.len() {
            company.spawn(player);
        }
        company.until("every process has begun to report", |company| {
            company.members.iter().all(|member| member.reported.is_some())
        });
        company
    }

    /// Begins the next life of a process.
    fn spawn(&mut self, player: usize) {
        let Self { seed, plan, network, members, sayer, .. } = self;
        let (member, who) = (&mut members[player], PLAYERS[player]);
        let life = member.lives.len();
        let receiver = !who.sends();
        let mut command = network.command(receiver && !who.calm, env!("CARGO_BIN_EXE_chaos_peer"));
        command.args([&format!("{:?}", who.maker).to_lowercase(), who.kind]);
        command.args([seed.to_string(), player.to_string(), (life + 1).to_string()]);
        if who.calm {
            command.arg("--calm");
        }
        for (link, ends) in LINKS.iter().enumerate() {
            if ends.0 == player || ends.1 == player {
                if who.sends() == plan.sender_binds[link] {
                    command.args(["--bind", &network.bind(link, who.sends())]);
                } else {
                    command.args(["--connect", &network.connect(link, who.sends())]);
                }
            }
        }
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.expect("a process");
        member.stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("it is piped");
        member.child = Some(child);
        member.reported = None;
        member.lives.push(Life { began: self.started.elapsed(), ..Life::default() });
        member.open += 1;
        let sayer = sayer.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sayer.send(Said { player, life, line: Some(line) }).is_err() {
                    return;
                }
            }
            let _ = sayer.send(Said { player, life, line: None });
        });
    }

    /// Carries the plan out, and undoes all of it.
    fn suffer(&mut self) {
        let start = Instant::now();
        // what is to be done or undone, and when
        let mut deeds: Vec<(Duration, &Fault, bool)> = Vec::new();
        for step in &self.plan.steps {
            deeds.push((step.from, &step.fault, true));
            deeds.push((step.to, &step.fault, false));
        }
        deeds.sort_by_key(|deed| deed.0);
        let mut in_force: Vec<&Fault> = Vec::new();
        for (time, fault, begins) in deeds {
            self.listen(start + time);
            match fault {
                Fault::Kill(player) if begins => self.kill(*player),
                Fault::Kill(player) => self.spawn(*player),
                Fault::Pause(player) => {
                    self.signal(*player, if begins { Signal::STOP } else { Signal::CONT });
                }
                Fault::Cut(_) | Fault::Delay(_) | Fault::Loss(_) => {
                    if begins {
                        in_force.push(fault);
                    } else {
                        let ended = in_force.iter().position(|other| *other == fault);
                        in_force.swap_remove(ended.expect("it has begun"));
                    }
                    self.network.set(&weather(&in_force));
                }
            }
        }
    }

    /// Every pair speaks again, and of no connection one end is dead.
    fn recover(&mut self) {
        let healed = Instant::now();
        self.tell_senders("trickle");
        self.until("every pair is whole again", |company| {
            let whole = |player: usize| {
                let links = LINKS.iter().filter(|link| link.0 == player || link.1 == player);
                let member = &company.members[player];
                let fresh = member.reported.is_some_and(|time| time > healed + REPORTS);
                let alive = |life: &Life| life.report.as_ref().map(|report| report.get("alive"));
                fresh && alive(member.life()) == Some(links.count() as u64)
            };
            let speaks = |&(sender, receiver): &(usize, usize)| {
                let from = company.members[sender].life().trickle;
                let source = company.source(sender);
                let got = |from| company.members[receiver].life().got_of(source, from, u64::MAX);
                from.is_some_and(|from| got(from) > 0)
            };
            LINKS.iter().all(speaks) && (0..PLAYERS.len()).all(whole)
        });
        println!("whole again after {:.2} s", healed.elapsed().as_secs_f64());
    }

    /// Many messages at once, of which none may be missing.
    fn burst(&mut self) {
        self.tell_senders("burst");
        self.until("every receiver has all of the last messages", |company| {
            (0..PLAYERS.len()).filter(|player| PLAYERS[*player].sends()).all(|sender| {
                let Some((first, last)) = company.members[sender].life().burst else {
                    return false;
                };
                let receivers = LINKS.iter().filter(|link| link.0 == sender).map(|link| link.1);
                let mut got = receivers.map(|receiver| {
                    company.members[receiver].life().got_of(company.source(sender), first, last)
                });
                let all = last - first + 1;
                match PLAYERS[sender].kind {
                    "push" => got.sum::<u64>() == all,
                    _ => got.all(|got| got == all),
                }
            })
        });
    }

    /// Lets every process end by itself, senders first.
    fn finish(&mut self) {
        for sends in [true, false] {
            let those = |player: &usize| PLAYERS[*player].sends() == sends;
            for player in (0..PLAYERS.len()).filter(those) {
                let member = &mut self.members[player];
                member.finishing = true;
                member.stdin = None;
            }
            self.until("they have ended", |company| {
                (0..PLAYERS.len()).filter(those).all(|player| company.members[player].open == 0)
            });
            for player in (0..PLAYERS.len()).filter(those) {
                let child = self.members[player].child.take();
                let status = child.expect("it runs").wait().expect("a process of ours");
                assert!(status.success(), "{}: {status}", PLAYERS[player]);
            }
        }
    }

    fn kill(&mut self, player: usize) {
        let member = &mut self.members[player];
        let life = member.life_mut();
        life.killed = true;
        life.ended = Some(self.started.elapsed());
        let mut child = member.child.take().expect("it runs");
        child.kill().expect("a process of ours");
        child.wait().expect("it ends");
    }

    fn signal(&self, player: usize, signal: Signal) {
        let child = self.members[player].child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).expect("a process of ours");
    }

    fn tell_senders(&mut self, order: &str) {
        for (member, _) in self.members.iter_mut().zip(PLAYERS).filter(|(_, who)| who.sends()) {
            let stdin = member.stdin.as_mut().expect("open until it is finished");
            writeln!(stdin, "{order}").expect("the process runs");
        }
    }

    /// Listens to them until a condition holds.
    #[track_caller]
    fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let end = Instant::now() + DEADLINE;
        while !condition(self) {
            if Instant::now() > end {
                self.print();
                panic!("seed {}: not within {DEADLINE:?}: {what}", self.seed);
            }
            self.listen(Instant::now() + GLANCE);
        }
    }

    /// Listens to them for a time.
    fn listen(&mut self, end: Instant) {
        loop {
            match self.said.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(said) => self.hear(said),
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => unreachable!("one sayer is here"),
            }
        }
    }

    fn hear(&mut self, Said { player, life, line }: Said) {
        let (member, who, seed) = (&mut self.members[player], PLAYERS[player], self.seed);
        let account = &mut member.lives[life];
        let Some(line) = line else {
            member.open -= 1;
            assert!(account.killed || member.finishing, "seed {seed}: {who} has ended by itself");
            return;
        };
        let parsed: Result<Line, String> = line.parse();
        match parsed.unwrap_or_else(|wrong| {
            // a killed process may leave half a line
            assert!(account.killed, "seed {seed}: {who}: {wrong}");
            Line::Ready
        }) {
            Line::Ready => {}
            Line::Claim(number) => account.claimed = number,
            Line::Trickle(number) => account.trickle = Some(number),
            Line::Burst(first, last) => account.burst = Some((first, last)),
            Line::Got(run) => account.got.push(run),
            Line::Report(report) => {
                if let Err(wrong) = check_report(who, &report) {
                    panic!("seed {seed}: {wrong}");
                }
                account.report = Some(report);
                if life + 1 == member.lives.len() {
                    member.reported = Some(Instant::now());
                }
            }
        }
    }

    /// The current life of a sender.
    fn source(&self, sender: usize) -> Source {
        Source { sender: sender as u32, life: self.members[sender].lives.len() as u32 }
    }

    fn accounts(&self) -> Vec<Vec<Life>> {
        self.members.iter().map(|member| member.lives.clone()).collect()
    }

    /// What became of each life.
    fn print(&self) {
        for (player, member) in self.members.iter().enumerate() {
            for (life, account) in member.lives.iter().enumerate() {
                let end = if account.killed { " (killed)" } else { "" };
                print!("{player} {}, life {}{end}:", PLAYERS[player], life + 1);
                for (sender, _) in LINKS.iter().filter(|link| link.1 == player) {
                    let got: Vec<u64> = (1..=self.members[*sender].lives.len() as u32)
                        .map(|life| Source { sender: *sender as u32, life })
                        .map(|source| account.got_of(source, 0, u64::MAX))
                        .collect();
                    print!(" {got:?} from {sender};");
                }
                match &account.report {
                    Some(report) => println!(" {report}"),
                    None => println!(" no report"),
                }
            }
        }
    }
}

impl Member {
    fn life(&self) -> &Life {
        self.lives.last().expect("it was started")
    }

    fn life_mut(&mut self) -> &mut Life {
        self.lives.last_mut().expect("it was started")
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // a run that failed; it may be stopped
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// All that is in force together.
fn weather(in_force: &[&Fault]) -> Weather {
    let with = |wanted: fn(&Fault) -> Option<&Vec<usize>>| -> Vec<usize> {
        (0..FAULTY)
            .filter(|link| {
                in_force.iter().filter_map(|fault| wanted(fault)).any(|links| links.contains(link))
            })
            .collect()
    };
    Weather {
        cut: with(|fault| if let Fault::Cut(links) = fault { Some(links) } else { None }),
        delay: with(|fault| if let Fault::Delay(links) = fault { Some(links) } else { None }),
        loss: with(|fault| if let Fault::Loss(links) = fault { Some(links) } else { None }),
    }
}
