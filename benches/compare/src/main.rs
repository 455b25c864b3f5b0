//! Measures dragonwire against libzmq and the other Rust libraries, in two processes for each run, and pipelines of
//! three: the driver layer's beside those over bare sockets, libzmq and Redis.
//!
//! ```text
//! compare [--quick] [--scenarios a,b] [--peers a,b] [--transports tcp,ipc] [--sizes 16,64]
//!         [--runs N] [--seconds S] [--report FOLDER]
//! compare render FOLDER      makes tables and plots anew from the folder's report.json
//! compare peer LIBRARY ROLE  is one measured process, see `role.rs`
//! ```
//!
//! Each run should take `--seconds` (0.7); a row's figures are the medians of `--runs` (5) runs of
//! each library, which take turns. `docs/benchmarks.md` tells what is measured, and how.

mod measure;
mod peers;
mod receipt;
mod report;
mod role;
mod scenario;
mod signals;
mod tally;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use peers::{LIBRARIES, Library};
use report::{Machine, Report, table};
use role::Role;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use scenario::{Plan, SCENARIOS};

/// As in the static command.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["peer", library, role] => peer(library, role),
        ["render", folder] => render(Path::new(folder)),
        _ => Options::parse(&arguments).and_then(|options| options.measure()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}; see the top of benches/compare/src/main.rs");
            ExitCode::FAILURE
        }
    }
}

/// One measured process.
fn peer(library: &str, role: &str) -> Result<(), String> {
    let role = Role::from_argument(role).map_err(|error| error.to_string())?;
    let library = peers::library(library).ok_or_else(|| format!("{library}: unknown library"))?;
    // the kernel shares the processor among sessions first; a session's leader has its own already
    rustix::process::setsid().ok();
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).ok();
    raise_file_limit();
    (library.run)(&role).print();
    Ok(())
}

/// Sockets are files: as many as the 10 000 connections of a row need with any library, or if that
/// is not allowed as many as are.
fn raise_file_limit() {
    let current = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: Some(FILES), maximum: Some(FILES) };
    if current.maximum.is_some_and(|most| most < FILES)
        && setrlimit(Resource::Nofile, wanted).is_ok()
    {
        return;
    }
    let most = Rlimit { current: current.maximum, ..current };
    setrlimit(Resource::Nofile, most).ok();
}

/// A libzmq socket needs two.
const FILES: u64 = 32_768;

struct Options {
    plan: Plan,
    report: Option<PathBuf>,
    command: String,
}

impl Options {
    fn parse(arguments: &[&str]) -> Result<Self, String> {
        let mut plan = Plan {
            scenarios: Vec::new(),
            peers: Vec::new(),
            transports: Vec::new(),
            sizes: Vec::new(),
            quick: false,
            runs: 5,
            time: Duration::from_millis(700),
        };
        let (mut report, mut runs) = (None, None);
        let mut rest = arguments.iter();
        while let Some(&option) = rest.next() {
            if option == "--quick" {
                plan.quick = true;
                continue;
            }
            let value =
                *rest.next().ok_or_else(|| format!("{option}: no such option or no value"))?;
            let wrong = |problem: &dyn std::fmt::Display| format!("{option} {value}: {problem}");
            match option {
                "--scenarios" => plan.scenarios = names(value, &SCENARIOS)?,
                "--peers" => {
                    let known: Vec<_> = LIBRARIES.iter().map(|library| library.name).collect();
                    plan.peers = names(value, &known)?;
                }
                "--transports" => plan.transports = names(value, &["tcp", "ipc"])?,
                "--sizes" => {
                    let sizes = value.split(',').map(str::parse).collect::<Result<_, _>>();
                    plan.sizes = sizes.map_err(|error| wrong(&error))?;
                }
                "--runs" => runs = Some(value.parse().map_err(|error| wrong(&error))?),
                "--seconds" => {
                    let seconds = value.parse().map_err(|error| wrong(&error))?;
                    plan.time =
                        Duration::try_from_secs_f64(seconds).map_err(|error| wrong(&error))?;
                }
                "--report" => report = Some(PathBuf::from(value)),
                _ => return Err(format!("{option}: no such option")),
            }
        }
        plan.runs = runs.unwrap_or(if plan.quick { 1 } else { plan.runs });
        let command =
            COMMAND.to_owned() + &arguments.iter().fold(String::new(), |all, one| all + " " + one);
        Ok(Self { plan, report, command })
    }

    fn measure(self) -> Result<(), String> {
        let tasks = self.plan.tasks();
        let in_any = |library: &&Library| {
            let all = tasks.iter().flat_map(|task| self.plan.libraries(task));
            all.into_iter().any(|used| used.name == library.name)
        };
        let used = LIBRARIES.iter().filter(in_any);
        let mut report = Report {
            machine: Machine::this(),
            versions: used.clone().map(|l| (l.name.to_owned(), (l.version)())).collect(),
            settings: used.map(|l| (l.name.to_owned(), l.settings.to_owned())).collect(),
            command: self.command,
            rows: Vec::new(),
        };
        for task in &tasks {
            let row = measure::row(&self.plan, task);
            if row.cells.is_empty() {
                continue;
            }
            println!("{}", table::terminal(&row));
            report.rows.push(row);
            // what is there is kept, should the rest not come to an end
            if let Some(folder) = &self.report {
                report.write(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
            }
        }
        Ok(())
    }
}

fn names(value: &str, known: &[&str]) -> Result<Vec<String>, String> {
    let unknown = value.split(',').find(|name| !known.contains(name));
    match unknown {
        Some(name) => Err(format!("{name}: not one of {}", known.join(", "))),
        None => Ok(value.split(',').map(str::to_owned).collect()),
    }
}

fn render(folder: &Path) -> Result<(), String> {
    let report = Report::read(folder).and_then(|report| report.write(folder));
    report.map_err(|error| format!("{}: {error}", folder.display()))
}

const COMMAND: &str = "cargo run --release --manifest-path benches/compare/Cargo.toml --";
