//! The report as tables: a row for the terminal when it is measured, all of it in Markdown.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::{Cell, Report, Row, Spread};
use crate::peers::LIBRARIES;

/// A figure of a cell, as a column of a row's table and as a table of a scenario.
struct Metric {
    title: &'static str,
    /// Short, with the unit.
    head: &'static str,
    of: fn(&Cell) -> Option<Spread>,
    /// What the figures are divided by, and what follows them.
    unit: Unit,
    more_is_better: bool,
}

#[derive(Clone, Copy)]
enum Unit {
    /// With a thousand (k) or a million (M).
    Count,
    Each(f64),
}

const RECEIVED: Metric = Metric {
    title: "Messages received a second",
    head: "received/s",
    of: |cell| Some(cell.rate),
    unit: Unit::Count,
    more_is_better: true,
};
const DELIVERED: Metric =
    Metric { title: "Messages received a second by all subscribers together", ..RECEIVED };
const MATCHED: Metric =
    Metric { title: "Messages published a second", head: "published/s", ..RECEIVED };
const PUBLISHED: Metric = Metric { of: |cell| cell.published, ..MATCHED };
const MEGABYTES: Metric = Metric {
    title: "Payload received, in MB a second",
    head: "MB/s",
    of: |cell| Some(cell.megabytes),
    unit: Unit::Each(1.0),
    more_is_better: true,
};
const CPU: Metric = Metric {
    title: "CPU seconds of both processes per million messages",
    head: "CPU s/M",
    of: |cell| Some(cell.cpu_per_million),
    unit: Unit::Each(1.0),
    more_is_better: false,
};
const CPU_OF_TRIPS: Metric =
    Metric { title: "CPU seconds of both processes per million round trips", ..CPU };
const P50: Metric = Metric {
    title: "Half of the round trips take at most, in µs",
    head: "p50 µs",
    of: |cell| cell.p50,
    unit: Unit::Each(1000.0),
    more_is_better: false,
};
const P90: Metric = Metric {
    title: "90 % of the round trips take at most, in µs",
    head: "p90 µs",
    of: |cell| cell.latencies.as_ref().map(|of| Spread::of(vec![of.p90 as f64])),
    ..P50
};
const P99: Metric = Metric {
    title: "99 % of the round trips take at most, in µs",
    head: "p99 µs",
    of: |cell| cell.latencies.as_ref().map(|of| Spread::of(vec![of.p99 as f64])),
    ..P50
};
const P999: Metric = Metric {
    title: "99.9 % of the round trips take at most, in µs",
    head: "p99.9 µs",
    of: |cell| cell.latencies.as_ref().map(|of| Spread::of(vec![of.p999 as f64])),
    ..P50
};
const TAKEN: Metric = Metric {
    title: "Events a second that the relay took",
    head: "taken/s",
    of: |cell| cell.published,
    ..RECEIVED
};
const RELAY_CPU: Metric = Metric {
    title: "CPU seconds of the relay per million events that it took",
    head: "relay CPU s/M",
    of: |cell| cell.relay_cpu,
    ..CPU
};
const CPU_OF_PIPELINE: Metric =
    Metric { title: "CPU seconds of all three processes per million events received", ..CPU };
const CPU_OF_ANSWERED: Metric =
    Metric { title: "CPU seconds of all three processes per million round trips", ..CPU };
const LOST: Metric = Metric {
    title: "Events that were lost, in %",
    head: "lost %",
    of: |cell| Some(Spread::of(vec![cell.lost as f64 / cell.expected as f64 * 100.0])),
    ..CPU
};
const STORM: Metric = Metric {
    title: "Until all have connected and subscribed, in seconds",
    head: "all there s",
    of: |cell| cell.storm,
    unit: Unit::Each(1.0),
    more_is_better: false,
};
const MEMORY: Metric = Metric {
    title: "Memory of the publisher for each subscriber, in KiB",
    head: "KiB each",
    of: |cell| cell.memory_each,
    unit: Unit::Each(1024.0),
    more_is_better: false,
};

fn metrics(scenario: &str) -> &'static [Metric] {
    match scenario {
        "pub-drop" => &[RECEIVED, PUBLISHED, CPU],
        "stalled" => &[DELIVERED, PUBLISHED, CPU],
        "fan-out" => &[DELIVERED, CPU],
        "matching" => &[MATCHED, CPU],
        "ping-pong" => &[P50, P90, P99, P999, CPU_OF_TRIPS],
        "idle" => &[STORM, MEMORY],
        "pipeline" => &[RECEIVED, TAKEN, LOST, RELAY_CPU, CPU_OF_PIPELINE],
        "pipeline-window" => &[RECEIVED, RELAY_CPU, CPU_OF_PIPELINE],
        "pipeline-latency" => &[P50, P99, P999, CPU_OF_ANSWERED],
        _ => &[RECEIVED, MEGABYTES, CPU],
    }
}

/// One row, a line for each library.
pub fn terminal(row: &Row) -> String {
    let metrics = metrics(&row.scenario);
    let mut lines = vec![vec!["library".to_owned()]];
    lines[0].extend(metrics.iter().map(|metric| metric.head.to_owned()));
    lines[0].extend(["lost", "peak MiB", ""].map(str::to_owned));
    for cell in &row.cells {
        let mut line = vec![cell.library.clone()];
        line.extend(metrics.iter().map(|metric| figure(metric, cell)));
        line.push(lost(cell).map(|lost| lost + &told(cell)).unwrap_or_default());
        line.push(match cell.runs {
            0 => "-".to_owned(),
            _ => significant(cell.peak_rss as f64 / f64::from(1 << 20)),
        });
        line.push(cell.note.clone().unwrap_or_default());
        lines.push(line);
    }
    let width = |column: usize| {
        lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<_> = (0..lines[0].len()).map(width).collect();
    let mut text = format!("{} {}\n", row.scenario, name(row));
    for line in &lines {
        let mut columns = line.iter().zip(&widths);
        let Some((library, width)) = columns.next() else { continue };
        write!(text, "  {library:<width$}").ok();
        for (value, width) in columns {
            write!(text, "  {value:>width$}").ok();
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// All of it: for each scenario and figure a table with a line for each row and a column for each
/// library, and what dragonwire's figure is to others'.
pub fn markdown(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "{}, {} cores, Linux {}, {}; {}; load average before the first run {}.\n\n```sh\n{}\n```\n",
        machine.cpu,
        machine.cores,
        machine.kernel,
        machine.rustc,
        machine.date,
        machine.load,
        report.command
    );
    let mut scenarios: Vec<&str> = report.rows.iter().map(|row| row.scenario.as_str()).collect();
    scenarios.dedup();
    for scenario in scenarios {
        write!(text, "\n### {scenario}\n").ok();
        let rows: Vec<_> = report.rows.iter().filter(|row| row.scenario == scenario).collect();
        for metric in metrics(scenario).iter().filter(|metric| metric.head != MEGABYTES.head) {
            text.push_str(&table(metric, &rows));
        }
        text.push_str(&notes(&rows));
    }
    text.push_str("\n### Versions and settings\n\n");
    for library in LIBRARIES.iter().filter(|library| report.versions.contains_key(library.name)) {
        let of = |map: &std::collections::BTreeMap<_, String>| {
            map.get(library.name).cloned().unwrap_or_default()
        };
        let (version, settings) = (of(&report.versions), of(&report.settings));
        writeln!(text, "- **{}** ({version}): {settings}.", library.name).ok();
    }
    text
}

fn table(metric: &Metric, rows: &[&Row]) -> String {
    let present: BTreeSet<_> =
        rows.iter().flat_map(|row| row.cells.iter().map(|cell| cell.library.as_str())).collect();
    let libraries: Vec<_> = LIBRARIES
        .iter()
        .map(|library| library.name)
        .filter(|name| present.contains(name))
        .collect();
    let compared: Vec<_> = COMPARED
        .iter()
        .filter(|(_, ours, them)| {
            // a ratio of losses says nothing
            metric.head != LOST.head
                && present.contains(ours)
                && them.iter().any(|name| present.contains(name))
        })
        .collect();
    let mut text = format!("\n{}:\n\n| |", metric.title);
    for library in &libraries {
        write!(text, " {library} |").ok();
    }
    for (title, ..) in &compared {
        write!(text, " {title} |").ok();
    }
    write!(text, "\n| --- |{}\n", " ---: |".repeat(libraries.len() + compared.len())).ok();
    for row in rows {
        write!(text, "| {} |", name(row)).ok();
        let cell = |name: &str| row.cells.iter().find(|cell| cell.library == name);
        for library in &libraries {
            let figure = cell(library).map_or(String::new(), |cell| figure(metric, cell));
            write!(text, " {figure} |").ok();
        }
        let median = |name: &&str| {
            let median = (metric.of)(cell(name).filter(|cell| cell.runs > 0)?)?.median;
            (median > 0.0).then_some(median)
        };
        for (_, ours, them) in &compared {
            let better = |a: f64, b: f64| if metric.more_is_better { a.max(b) } else { a.min(b) };
            let best = them.iter().filter_map(median).reduce(better);
            let ratio = median(ours).zip(best).map(|(ours, theirs)| ours / theirs);
            write!(text, " {} |", ratio.map_or(String::new(), significant)).ok();
        }
        text.push('\n');
    }
    text
}

fn notes(rows: &[&Row]) -> String {
    let mut text = String::new();
    for row in rows {
        for cell in &row.cells {
            let lost = lost(cell).map(|lost| format!("lost {lost}{}", told(cell)));
            let what: Vec<_> = lost.into_iter().chain(cell.note.clone()).collect();
            if !what.is_empty() {
                writeln!(text, "- {}, {}: {}", name(row), cell.library, what.join("; ")).ok();
            }
        }
    }
    if text.is_empty() { text } else { format!("\n{text}") }
}

/// What distinguishes a row from the others of its scenario.
fn name(row: &Row) -> String {
    let (parameters, transport) = (&row.parameters, &row.transport);
    let subscribers = grouped(parameters.subscribers);
    match row.scenario.as_str() {
        "fan-out" => format!("{transport}, {subscribers} subscribers"),
        "stalled" if parameters.stalled > 0 => {
            format!("{transport}, {subscribers} subscribers, {} stalled", parameters.stalled)
        }
        "stalled" => format!("{transport}, {subscribers} subscribers"),
        "matching" => format!("{transport}, {} prefixes each", grouped(parameters.prefixes)),
        "ping-pong" => format!("{transport}, {}", parameters.runtime),
        "idle" => format!("{transport}, {subscribers}"),
        "pipeline" | "pipeline-window" | "pipeline-latency" => {
            format!("value of {} B", grouped(row.size))
        }
        "runtimes" => format!("{transport}, {} B, {}", grouped(row.size), parameters.runtime),
        _ => format!("{transport}, {} B", grouped(row.size)),
    }
}

fn figure(metric: &Metric, cell: &Cell) -> String {
    let Some(spread) = (metric.of)(cell).filter(|_| cell.runs > 0) else { return "-".to_owned() };
    let (unit, suffix) = match metric.unit {
        Unit::Count if spread.median >= 1e6 => (1e6, " M"),
        Unit::Count if spread.median >= 1e3 => (1e3, " k"),
        Unit::Count => (1.0, ""),
        Unit::Each(unit) => (unit, ""),
    };
    let [median, min, max] =
        [spread.median, spread.min, spread.max].map(|figure| significant(figure / unit));
    if spread.min == spread.max {
        format!("{median}{suffix}")
    } else {
        format!("{median}{suffix} ({min}–{max})")
    }
}

fn lost(cell: &Cell) -> Option<String> {
    let percent = cell.lost as f64 / cell.expected as f64 * 100.0;
    (cell.lost > 0).then(|| format!("{} %", significant(percent)))
}

/// Whether the subscriber knows of it.
fn told(cell: &Cell) -> String {
    match cell.told {
        Some(told) if told == cell.lost => ", and the consumer was told of each".to_owned(),
        Some(told) => format!(", of {} messages {told} told", cell.lost),
        None => String::new(),
    }
}

/// Three digits or so.
fn significant(figure: f64) -> String {
    match figure {
        figure if figure >= 100.0 => format!("{figure:.0}"),
        figure if figure >= 10.0 => format!("{figure:.1}"),
        figure if figure >= 0.1 || figure == 0.0 => format!("{figure:.2}"),
        figure => format!("{figure:.4}"),
    }
}

/// With a space between thousands.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) && digits.len() > 4 {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// Whose figure is divided by that of the best of which.
const COMPARED: [(&str, &str, &[&str]); 9] = [
    ("dragonwire / libzmq", "dragonwire", &["libzmq"]),
    ("/ best Rust library", "dragonwire", &["zeromq", "omq", "rzmq"]),
    ("/ raw", "dragonwire", &["raw"]),
    ("/ tokio stream", "dragonwire", &["tokio-stream"]),
    ("static / dragonwire", "dragonwire-static", &["dragonwire"]),
    ("service-raw / bare", "service-raw", &["bare"]),
    ("driver / libzmq", "driver", &["libzmq"]),
    ("driver / redis-driver", "driver", &["redis-driver"]),
    ("static / driver", "driver-static", &["driver"]),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Parameters;

    fn row() -> Row {
        let cell = |library: &str, median| Cell {
            library: library.to_owned(),
            runs: 3,
            rate: Spread { median, min: median / 2.0, max: median },
            ..Cell::default()
        };
        let failed = Cell {
            library: "omq".to_owned(),
            note: Some("failed: it ended".to_owned()),
            ..Cell::default()
        };
        Row {
            scenario: "push-pull".to_owned(),
            transport: "tcp".to_owned(),
            size: 65_536,
            parameters: Parameters {
                subscribers: 1,
                stalled: 0,
                topics: 1,
                prefixes: 1,
                runtime: "current-thread".to_owned(),
            },
            cells: vec![cell("libzmq", 2e6), cell("dragonwire", 9e6), cell("rzmq", 4e3), failed],
        }
    }

    #[test]
    fn a_table_compares_with_what_there_is() {
        let text = table(&RECEIVED, &[&row()]);
        let line = text.lines().last().unwrap();
        assert_eq!(
            line,
            "| tcp, 65 536 B | 2.00 M (1.00–2.00) | 9.00 M (4.50–9.00) | - | 4.00 k (2.00–4.00) \
             | 4.50 | 2250 |"
        );
        assert_eq!(notes(&[&row()]), "\n- tcp, 65 536 B, omq: failed: it ended\n");
    }

    #[test]
    fn the_terminal_has_a_line_for_each_library() {
        assert_eq!(terminal(&row()).lines().count(), 2 + row().cells.len());
    }
}
