//! The report as plots, in SVG: which there are, and what each draws of the rows.

mod axis;
mod chart;
mod svg;

use axis::{Axis, number, octets};
use chart::{Chart, Line, Mark};

use super::{Cell, Machine, Parameters, Report, Row, Spread};

/// File names and their contents.
pub fn plots(report: &Report) -> Vec<(String, String)> {
    let mut plots = Vec::new();
    for (kind, scenarios) in [
        (&THROUGHPUT, &["push-pull", "pub-sub", "pub-drop"][..]),
        (&THROUGHPUT, &["pipeline", "pipeline-window"]),
        (&CPU, &["push-pull", "pub-sub", "pub-drop"]),
        (&RELAY_CPU, &["pipeline", "pipeline-window"]),
        (&FAN_OUT, &["fan-out"]),
        (&MATCHING, &["matching"]),
    ] {
        for scenario in scenarios {
            for rows in by_transport(report, scenario) {
                plots.extend(over_parameter(report, kind, &rows));
            }
        }
    }
    let timed = ["ping-pong", "pipeline-latency"];
    for row in report.rows.iter().filter(|row| timed.contains(&row.scenario.as_str())) {
        plots.extend(latency(report, row));
    }
    plots
}

/// What has a figure of each row over one parameter of the rows.
struct Kind {
    /// What the file's name begins with.
    file: &'static str,
    across: Across,
    x_title: &'static str,
    /// What the figure is, for the title of the plot.
    figure: &'static str,
    y_title: &'static str,
    y: fn(&Cell) -> Spread,
    better: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Across {
    Size,
    Subscribers,
    Prefixes,
}

impl Across {
    fn of(self, row: &Row) -> f64 {
        let value = match self {
            Self::Size => row.size,
            Self::Subscribers => row.parameters.subscribers,
            Self::Prefixes => row.parameters.prefixes,
        };
        value as f64
    }
}

const THROUGHPUT: Kind = Kind {
    file: "throughput",
    across: Across::Size,
    x_title: "payload of a message",
    figure: "messages per second",
    y_title: "messages received per second",
    y: |cell| cell.rate,
    better: "more is better",
};

const CPU: Kind = Kind {
    file: "cpu",
    figure: "CPU seconds per million messages",
    y_title: "CPU seconds per million messages",
    y: |cell| cell.cpu_per_million,
    better: "sender and receiver together, less is better",
    ..THROUGHPUT
};

const RELAY_CPU: Kind = Kind {
    file: "relay-cpu",
    figure: "CPU seconds of the relay per million events",
    y_title: "CPU seconds per million events that it took",
    y: |cell| cell.relay_cpu.unwrap_or_default(),
    better: "less is better",
    ..THROUGHPUT
};

const FAN_OUT: Kind = Kind {
    file: "fan-out",
    across: Across::Subscribers,
    x_title: "subscribers",
    figure: "messages delivered per second",
    y_title: "messages delivered per second, in sum",
    ..THROUGHPUT
};

const MATCHING: Kind = Kind {
    file: "matching",
    across: Across::Prefixes,
    x_title: "prefixes of each subscriber",
    figure: "messages published per second",
    y_title: "messages published per second",
    ..THROUGHPUT
};

/// The rows of a scenario, those of each transport together.
fn by_transport<'a>(report: &'a Report, scenario: &str) -> Vec<Vec<&'a Row>> {
    let mut groups: Vec<Vec<&Row>> = Vec::new();
    for row in report.rows.iter().filter(|row| row.scenario == scenario) {
        match groups.iter_mut().find(|group| group[0].transport == row.transport) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups
}

/// `None` if no library has a figure for it.
fn over_parameter(report: &Report, kind: &Kind, rows: &[&Row]) -> Option<(String, String)> {
    let first = *rows.first()?;
    let lines = lines(report, rows, |library| {
        let of = |row: &Row| mark(kind.across.of(row), (kind.y)(cell(row, library)?));
        let mut marks: Vec<Mark> = rows.iter().filter_map(|row| of(row)).collect();
        marks.sort_by(|one, other| one.x.total_cmp(&other.x));
        Some((marks.iter().map(|mark| (mark.x, mark.y)).collect(), marks))
    })?;
    let name = match kind.across {
        Across::Size => format!("{}-{}-{}.svg", kind.file, first.scenario, first.transport),
        _ => format!("{}-{}.svg", kind.file, first.transport),
    };
    let label = if kind.across == Across::Size { octets } else { number };
    let chart = Chart {
        title: format!("{}: {}", heading(first), kind.figure),
        subtitle: subtitle(rows, kind.better),
        footer: footer(report),
        x: Axis::measured(kind.x_title, &xs(&lines), label),
        y: Axis::steps(kind.y_title, &ys(&lines), number),
        lines,
    };
    Some((name, chart.svg()))
}

/// Of round trips: how many took how long. `None` if no library has latencies.
fn latency(report: &Report, row: &Row) -> Option<(String, String)> {
    let x = Axis::nines("quantile of the round trips");
    let lines = lines(report, &[row], |library| {
        let cell = cell(row, library)?;
        let latencies = cell.latencies.as_ref()?;
        let drawn = latencies.points.iter().filter(|(quantile, _)| x.holds(*quantile));
        let path = drawn.map(|&(quantile, time)| (quantile, microseconds(time as f64))).collect();
        let named = [
            (0.5, latencies.p50),
            (0.9, latencies.p90),
            (0.99, latencies.p99),
            (0.999, latencies.p999),
        ];
        let mut marks =
            named.map(|(x, time)| Mark { x, y: microseconds(time as f64), range: None });
        let spread = cell.p50.and_then(whisker);
        marks[0].range = spread.map(|(min, max)| (microseconds(min), microseconds(max)));
        Some((path, marks.into()))
    })?;
    let chart = Chart {
        title: format!("{}: latency in µs", heading(row)),
        subtitle: subtitle(&[row], "lower is better"),
        footer: footer(report),
        y: Axis::steps("time of a round trip, µs", &ys(&lines), number),
        x,
        lines,
    };
    let name = match row.scenario.as_str() {
        "ping-pong" => format!("latency-{}-{}.svg", row.transport, row.parameters.runtime),
        scenario => format!("{scenario}-{}.svg", row.size),
    };
    Some((name, chart.svg()))
}

/// A line for each library that `draw` has a path and marks for; `None` if that is none at all.
fn lines(
    report: &Report,
    rows: &[&Row],
    draw: impl Fn(&str) -> Option<(Vec<(f64, f64)>, Vec<Mark>)>,
) -> Option<Vec<Line>> {
    let mut lines: Vec<Line> = Vec::new();
    for Cell { library, .. } in rows.iter().flat_map(|row| &row.cells) {
        if lines.iter().any(|line| line.library == *library) {
            continue;
        }
        if let Some((path, marks)) = draw(library)
            && !path.is_empty()
        {
            let version = version(report, library);
            lines.push(Line { library: library.clone(), version, path, marks });
        }
    }
    (!lines.is_empty()).then_some(lines)
}

/// What a library made of a row, if it came to a result.
fn cell<'a>(row: &'a Row, library: &str) -> Option<&'a Cell> {
    row.cells.iter().find(|cell| cell.library == library && cell.runs > 0)
}

/// `None` for what has no place on its axes.
fn mark(x: f64, y: Spread) -> Option<Mark> {
    let drawable = is_drawable(x) && is_drawable(y.median);
    drawable.then(|| Mark { x, y: y.median, range: whisker(y) })
}

/// On a logarithmic axis. A rate is infinite if a single message came.
fn is_drawable(value: f64) -> bool {
    value.is_finite() && value > 0.0
}

fn whisker(spread: Spread) -> Option<(f64, f64)> {
    (spread.min < spread.max).then_some((spread.min, spread.max))
}

fn xs(lines: &[Line]) -> Vec<f64> {
    lines.iter().flat_map(|line| &line.path).map(|&(x, _)| x).collect()
}

/// Of the paths and the whiskers.
fn ys(lines: &[Line]) -> Vec<f64> {
    let whiskers = |line: &Line| -> Vec<f64> {
        line.marks.iter().filter_map(|mark| mark.range).flat_map(<[f64; 2]>::from).collect()
    };
    let paths = lines.iter().flat_map(|line| &line.path).map(|&(_, y)| y);
    paths.chain(lines.iter().flat_map(whiskers)).filter(|y| is_drawable(*y)).collect()
}

fn microseconds(nanoseconds: f64) -> f64 {
    nanoseconds / 1000.0
}

fn heading(row: &Row) -> String {
    let over = format!("over {}", row.transport.to_uppercase());
    let size = octets(row.size as f64);
    match row.scenario.as_str() {
        "push-pull" => format!("PUSH/PULL {over}"),
        "pub-sub" => format!("PUB/SUB without loss {over}"),
        "pub-drop" => format!("PUB/SUB with drops {over}"),
        "fan-out" => format!("Fan-out of {size} {over}"),
        "matching" => format!("Matching of subscriptions {over}"),
        "ping-pong" => format!("Ping-pong of {size} {over}, {}", runtime(row)),
        "pipeline" => "Pipeline at full speed".to_owned(),
        "pipeline-window" => "Pipeline without loss".to_owned(),
        "pipeline-latency" => format!("Pipeline, value of {size}"),
        other => format!("{other} {over}"),
    }
}

fn runtime(row: &Row) -> String {
    match row.parameters.runtime.as_str() {
        "current-thread" => "current-thread runtime".to_owned(),
        "main-task" => "main task of #[tokio::main]".to_owned(),
        other => other.replace("threads-", "runtime threads: "),
    }
}

/// What stands below the library's name in the legend.
fn version(report: &Report, library: &str) -> String {
    let version = report.versions.get(library).map_or("", String::as_str);
    match library {
        "raw" => "no library: the floor".to_owned(),
        "tokio-stream" => format!("tokio {version} alone"),
        _ => version.to_owned(),
    }
}

/// What else there is to know about the rows.
fn subtitle(rows: &[&Row], better: &str) -> String {
    let mut parts = Vec::new();
    let scenario = rows.first().map_or("", |row| &row.scenario);
    if let ("matching", Some(row)) = (scenario, rows.first()) {
        let Parameters { subscribers, topics, .. } = row.parameters;
        parts.push(format!("{subscribers} subscribers, {} topics", number(topics as f64)));
    }
    let runs = rows.iter().flat_map(|row| &row.cells).map(|cell| cell.runs).max();
    if let Some(runs @ 2..) = runs {
        let timed = ["ping-pong", "pipeline-latency"].contains(&scenario);
        let whiskers = if timed { "whiskers at 50 %" } else { "whiskers" };
        parts.push(format!("median of {runs} runs, {whiskers} from minimum to maximum"));
    }
    parts.push(better.to_owned());
    parts.join("; ")
}

fn footer(report: &Report) -> String {
    let Machine { cpu, cores, kernel, date, .. } = &report.machine;
    format!("{cpu}, {cores} cores, Linux {kernel}, {date}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::peers::LIBRARIES;
    use crate::tally::Latencies;

    fn report(rows: Vec<Row>) -> Report {
        let versions = [("dragonwire", "0.1.0"), ("libzmq", "4.3.5"), ("raw", "<&>")];
        Report {
            machine: Machine { cpu: "A & B \"<1>\"".to_owned(), ..Machine::default() },
            versions: versions.map(|(name, version)| (name.to_owned(), version.to_owned())).into(),
            settings: BTreeMap::new(),
            command: String::new(),
            rows,
        }
    }

    /// Of all libraries, the n-th of which is n times as slow as the first.
    fn row(scenario: &str, transport: &str, size: usize) -> Row {
        let timed = ["ping-pong", "pipeline-latency"].contains(&scenario);
        let cells = LIBRARIES.iter().zip(1u32..).map(|(library, n)| {
            let n = f64::from(n);
            let spread = |median: f64| Spread { median, min: median * 0.8, max: median * 1.3 };
            let trips = (1..=5000u32).map(|trip| (n * f64::from(trip) * 10.0) as u64 + 10_000);
            Cell {
                library: library.name.to_owned(),
                runs: 5,
                rate: spread(3e8 / (size as f64 + 20.0) / n),
                cpu_per_million: spread(n * (size as f64 + 60.0) / 2000.0),
                relay_cpu: scenario.starts_with("pipeline").then(|| spread(n / 10.0)),
                latencies: timed.then(|| Latencies::of(trips.collect())),
                p50: timed.then(|| spread(n * 25_000.0 + 10_000.0)),
                ..Cell::default()
            }
        });
        let parameters = Parameters {
            subscribers: 1,
            stalled: 0,
            topics: 1,
            prefixes: 1,
            runtime: "current-thread".to_owned(),
        };
        Row {
            scenario: scenario.to_owned(),
            transport: transport.to_owned(),
            size,
            parameters,
            cells: cells.collect(),
        }
    }

    fn everything() -> Report {
        let mut rows = Vec::new();
        for transport in ["tcp", "ipc"] {
            for scenario in ["push-pull", "pub-sub", "pub-drop"] {
                let sizes = [16, 64, 256, 1024, 8192, 65536, 1_048_576];
                rows.extend(sizes.map(|size| row(scenario, transport, size)));
            }
            for subscribers in [1, 8, 64] {
                let mut row = row("fan-out", transport, 256);
                row.parameters.subscribers = subscribers;
                rows.push(row);
            }
            for prefixes in [1, 1000, 100_000] {
                let mut row = row("matching", transport, 64);
                row.parameters =
                    Parameters { subscribers: 8, topics: 10_000, prefixes, ..row.parameters };
                rows.push(row);
            }
            for runtime in ["current-thread", "main-task"] {
                let mut row = row("ping-pong", transport, 64);
                row.parameters.runtime = runtime.to_owned();
                rows.push(row);
            }
        }
        for scenario in ["pipeline", "pipeline-window", "pipeline-latency"] {
            rows.extend([32, 1024].map(|size| row(scenario, "tcp", size)));
        }
        report(rows)
    }

    fn names(report: &Report) -> Vec<String> {
        plots(report).into_iter().map(|(name, _)| name).collect()
    }

    /// The elements of a well-formed SVG that have this name.
    fn elements(svg: &str, name: &str) -> usize {
        let document = roxmltree::Document::parse(svg).unwrap();
        document
            .descendants()
            .filter(|node| node.has_tag_name(("http://www.w3.org/2000/svg", name)))
            .count()
    }

    #[test]
    fn every_plot_is_well_formed_and_all_libraries_are_in_it() {
        let plots = plots(&everything());
        assert_eq!(plots.len(), 26);
        for (name, svg) in plots {
            let texts = roxmltree::Document::parse(&svg).unwrap();
            for library in LIBRARIES {
                let found = texts.descendants().any(|node| node.text() == Some(library.name));
                assert!(found, "{} in {name}", library.name);
            }
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{name}");
        }
    }

    #[test]
    fn files_are_named_after_what_they_show() {
        let mut names = names(&everything());
        names.retain(|name| name.contains("tcp"));
        assert_eq!(
            names,
            [
                "throughput-push-pull-tcp.svg",
                "throughput-pub-sub-tcp.svg",
                "throughput-pub-drop-tcp.svg",
                "throughput-pipeline-tcp.svg",
                "throughput-pipeline-window-tcp.svg",
                "cpu-push-pull-tcp.svg",
                "cpu-pub-sub-tcp.svg",
                "cpu-pub-drop-tcp.svg",
                "relay-cpu-pipeline-tcp.svg",
                "relay-cpu-pipeline-window-tcp.svg",
                "fan-out-tcp.svg",
                "matching-tcp.svg",
                "latency-tcp-current-thread.svg",
                "latency-tcp-main-task.svg",
            ]
        );
    }

    #[test]
    fn what_has_no_place_on_the_axes_is_left_out() {
        let mut rows = [16, 64, 256].map(|size| row("push-pull", "tcp", size));
        rows[0].cells[0].rate.min = 0.0;
        rows[0].cells[2].rate.max = f64::INFINITY;
        rows[1].cells[0].rate = Spread::default();
        rows[2].cells[0].rate.median = f64::NAN;
        rows[1].cells[1] = Cell { library: LIBRARIES[1].name.to_owned(), ..Cell::default() };
        let (_, svg) = plots(&report(rows.into())).swap_remove(0);
        let in_legend = LIBRARIES.len();
        let marks = elements(&svg, "circle") + elements(&svg, "polygon");
        assert_eq!(marks, 3 * LIBRARIES.len() - 3 + in_legend);
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn without_results_there_is_no_plot() {
        let mut empty = row("push-pull", "tcp", 16);
        empty.cells.iter_mut().for_each(|cell| cell.runs = 0);
        let mut silent = row("ping-pong", "tcp", 64);
        silent.cells.iter_mut().for_each(|cell| cell.latencies = None);
        let other = row("idle", "tcp", 64);
        assert_eq!(names(&report(vec![empty, silent, other])), [""; 0]);
    }
}
