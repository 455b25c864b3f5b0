//! What was measured, as data: `report.json` is this, and the table and the plots are made from it.

pub mod plot;
pub mod table;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::{fs, io};

use serde::{Deserialize, Serialize};

use crate::tally::Latencies;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    pub machine: Machine,
    /// Library to version.
    pub versions: BTreeMap<String, String>,
    /// Library to a line of text.
    pub settings: BTreeMap<String, String>,
    /// What this report was made with.
    pub command: String,
    pub rows: Vec<Row>,
}

impl Report {
    /// From a folder in which one was written.
    pub fn read(folder: &Path) -> io::Result<Self> {
        Ok(serde_json::from_reader(fs::File::open(folder.join(DATA))?)?)
    }

    /// The data, the tables and the plots, in a folder.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        fs::write(folder.join(DATA), serde_json::to_string_pretty(self)? + "\n")?;
        fs::write(folder.join("table.md"), table::markdown(self))?;
        for (name, svg) in plot::plots(self) {
            fs::write(folder.join(name), svg)?;
        }
        Ok(())
    }
}

const DATA: &str = "report.json";

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub kernel: String,
    pub rustc: String,
    /// As in `2026-01-31`, UTC.
    pub date: String,
    /// The load average of a minute before the first run: what else ran.
    pub load: String,
}

impl Machine {
    /// The one that this runs on; what cannot be found out is left empty.
    pub fn this() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let said = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output();
            let text = output.map(|output| output.stdout).unwrap_or_default();
            String::from_utf8_lossy(&text).trim().to_owned()
        };
        let cpus = read("/proc/cpuinfo");
        let model = cpus.lines().find(|line| line.starts_with("model name"));
        let model = model.and_then(|line| line.split_once(':'));
        let load = read("/proc/loadavg");
        Self {
            cpu: model.map_or(String::new(), |(_, model)| model.trim().to_owned()),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            rustc: said("rustc", &["--version"]),
            date: said("date", &["-u", "+%F"]),
            load: load.split(' ').next().unwrap_or_default().to_owned(),
        }
    }
}

/// One line of the table: the same task for each library.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// One of `scenario::SCENARIOS`.
    pub scenario: String,
    /// `tcp` or `ipc`; in pipelines the consumer's.
    pub transport: String,
    /// Octets of payload; in pipelines of the event's value.
    pub size: usize,
    pub parameters: Parameters,
    /// In the order of `peers::LIBRARIES`.
    pub cells: Vec<Cell>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    pub subscribers: usize,
    /// Of the subscribers.
    pub stalled: usize,
    pub topics: usize,
    /// For each subscriber.
    pub prefixes: usize,
    /// `current-thread`, `main-task`, or `threads-N`.
    pub runtime: String,
}

/// What one library made of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Cell {
    pub library: String,
    /// That came to a result. If there are none, the note tells why, and all else is 0.
    pub runs: usize,
    /// A second: messages received (by all subscribers together), but in `matching` messages
    /// published, in `ping-pong` and `pipeline-latency` round trips, in `idle` subscribers that have come.
    pub rate: Spread,
    /// Payload a second, in units of 10^6 octets.
    pub megabytes: Spread,
    /// CPU seconds of all processes per million of what `rate` counts.
    pub cpu_per_million: Spread,
    /// Messages a second that the publisher was rid of: `pub-drop`, `stalled`, `matching` and
    /// `pipeline`.
    pub published: Option<Spread>,
    /// CPU seconds of the relay per million events that it took.
    pub relay_cpu: Option<Spread>,
    /// Events that the consumer was told to be missing, in all runs, if it can be told.
    pub told: Option<u64>,
    /// Octets by which the publisher grew for each subscriber: `idle`.
    pub memory_each: Option<Spread>,
    /// Seconds from the first connect until all subscribers were there: `idle`.
    pub storm: Option<Spread>,
    /// Messages that should have come, in all runs.
    pub expected: u64,
    /// Messages that should have come and did not, in all runs.
    pub lost: u64,
    /// Octets, of the largest of the processes, the largest of all runs.
    pub peak_rss: u64,
    /// `ping-pong` and `pipeline-latency`: for each figure the median of the runs.
    pub latencies: Option<Latencies>,
    /// The same two: of the median round trips of the runs, in nanoseconds.
    pub p50: Option<Spread>,
    /// What went wrong, or what a reader should know.
    pub note: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// Of nothing it is 0.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (values.first(), values.last()) else {
            return Self::default();
        };
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            1 => values[middle],
            _ => f64::midpoint(values[middle - 1], values[middle]),
        };
        Self { median, min, max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        let spread = Spread::of(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!(spread, Spread { median: 2.5, min: 1.0, max: 4.0 });
    }
}
