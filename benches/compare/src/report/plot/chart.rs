//! One chart: a title, two axes, a line for each library, and a legend to the right of them.

use super::axis::Axis;
use super::svg::{Letters, Shape, Stroke, Svg};

#[derive(Debug)]
pub struct Chart {
    pub title: String,
    /// What the title leaves open, and which way is better.
    pub subtitle: String,
    /// Where and when it was measured.
    pub footer: String,
    pub x: Axis,
    pub y: Axis,
    pub lines: Vec<Line>,
}

#[derive(Debug)]
pub struct Line {
    pub library: String,
    pub version: String,
    pub path: Vec<(f64, f64)>,
    pub marks: Vec<Mark>,
}

/// A symbol on the line.
#[derive(Debug)]
pub struct Mark {
    pub x: f64,
    pub y: f64,
    /// From where to where the whisker goes.
    pub range: Option<(f64, f64)>,
}

impl Chart {
    pub fn svg(&self) -> String {
        let mut svg = Svg::new(WIDTH, HEIGHT, &self.title);
        svg.text((LEFT, 30.0), TITLE, &self.title);
        svg.text((LEFT, 50.0), SMALL, &self.subtitle);
        svg.text((LEFT, HEIGHT - 14.0), FOOTER, &self.footer);
        self.draw_axes(&mut svg);
        let mut lines: Vec<(&Line, Pen)> =
            self.lines.iter().map(|line| (line, pen(&line.library))).collect();
        // the strongest on top of the others
        lines.sort_by(|(_, one), (_, other)| one.width.total_cmp(&other.width));
        for &(line, pen) in &lines {
            self.draw_line(&mut svg, line, pen);
        }
        // as the lines lie one above the other at their right ends
        lines.sort_by(|(one, _), (other, _)| other.height().total_cmp(&one.height()));
        for (row, &(line, pen)) in lines.iter().enumerate() {
            draw_legend(&mut svg, row, line, pen);
        }
        svg.finish()
    }

    fn draw_axes(&self, svg: &mut Svg) {
        for tick in &self.y.ticks {
            let y = BOTTOM + tick.at * (TOP - BOTTOM);
            let grid = if tick.label.is_some() { GRID } else { FAINT };
            svg.line(&[(LEFT, y), (RIGHT, y)], grid);
            if let Some(label) = &tick.label {
                svg.text((LEFT - 8.0, y + 4.0), Letters { anchor: "end", ..SMALL }, label);
            }
        }
        for tick in &self.x.ticks {
            let x = LEFT + tick.at * (RIGHT - LEFT);
            svg.line(&[(x, TOP), (x, BOTTOM)], if tick.label.is_some() { GRID } else { FAINT });
            svg.line(&[(x, BOTTOM), (x, BOTTOM + 5.0)], EDGE);
            if let Some(label) = &tick.label {
                svg.text((x, BOTTOM + 19.0), Letters { anchor: "middle", ..SMALL }, label);
            }
        }
        svg.line(&[(LEFT, TOP), (LEFT, BOTTOM), (RIGHT, BOTTOM)], EDGE);
        let middle = ((LEFT + RIGHT) / 2.0, (TOP + BOTTOM) / 2.0);
        svg.text((middle.0, BOTTOM + 40.0), AXIS_TITLE, self.x.title);
        svg.text_upwards((24.0, middle.1), AXIS_TITLE, self.y.title);
    }

    fn draw_line(&self, svg: &mut Svg, line: &Line, pen: Pen) {
        let path: Vec<(f64, f64)> = line.path.iter().map(|&(x, y)| self.place(x, y)).collect();
        svg.line(&path, pen.stroke());
        let whisker = Stroke { width: WHISKER, dash: "", ..pen.stroke() };
        for mark in &line.marks {
            let Some((low, high)) = mark.range else { continue };
            let ((x, low), (_, high)) = (self.place(mark.x, low), self.place(mark.x, high));
            svg.line(&[(x, low), (x, high)], whisker);
            for end in [low, high] {
                svg.line(&[(x - CAP, end), (x + CAP, end)], whisker);
            }
        }
        for mark in &line.marks {
            svg.mark(pen.shape, self.place(mark.x, mark.y), pen.radius(), pen.colour);
        }
    }

    fn place(&self, x: f64, y: f64) -> (f64, f64) {
        (LEFT + self.x.share(x) * (RIGHT - LEFT), BOTTOM + self.y.share(y) * (TOP - BOTTOM))
    }
}

impl Line {
    /// Of its right end.
    fn height(&self) -> f64 {
        self.path.last().map_or(0.0, |&(_, y)| y)
    }
}

fn draw_legend(svg: &mut Svg, row: usize, line: &Line, pen: Pen) {
    let (x, y) = (RIGHT + 20.0, TOP + 12.0 + row as f64 * 34.0);
    svg.line(&[(x, y), (x + 30.0, y)], pen.stroke());
    svg.mark(pen.shape, (x + 15.0, y), pen.radius(), pen.colour);
    let name = Letters { bold: pen.is_strongest(), colour: INK, ..SMALL };
    svg.text((x + 38.0, y + 4.0), name, &line.library);
    svg.text((x + 38.0, y + 17.0), FOOTER, &line.version);
}

/// How a library's line looks, in all plots.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Pen {
    colour: &'static str,
    width: f64,
    dash: &'static str,
    shape: Shape,
}

/// Colours that also those can tell apart who see fewer, and symbols for who sees none. What is no
/// ZeroMQ library is grey.
fn pen(library: &str) -> Pen {
    let (colour, width, dash, shape) = match library {
        "dragonwire" => ("#d1242f", STRONGEST, "", Shape::Circle),
        "dragonwire-other" => ("#e8838a", 2.0, "6 3", Shape::Circle),
        "dragonwire-static" => ("#a0111f", 2.0, "", Shape::Wedge),
        "libzmq" => ("#0969da", 2.0, "", Shape::Square),
        "omq" => ("#1a8f5a", 2.0, "", Shape::Triangle),
        "zeromq" => ("#8250df", 2.0, "", Shape::Diamond),
        "rzmq" => ("#d98e04", 2.0, "", Shape::Wedge),
        "raw" => ("#57606a", 1.5, "7 4", Shape::Square),
        "tokio-stream" => ("#8c959f", 1.5, "2 3", Shape::Diamond),
        "driver" => ("#d1242f", STRONGEST, "8 4", Shape::Diamond),
        "driver-static" => ("#a0111f", 2.0, "8 4", Shape::Wedge),
        "driver-msgpack" => ("#e8838a", 2.0, "", Shape::Wedge),
        "service-raw" => ("#953800", 2.0, "", Shape::Triangle),
        "bare" => ("#57606a", 2.0, "", Shape::Circle),
        "redis-driver" => ("#bf3989", 2.0, "", Shape::Square),
        "redis" => ("#bf3989", 2.0, "6 3", Shape::Wedge),
        _ => ("#1f2328", 1.5, "1 3", Shape::Circle),
    };
    Pen { colour, width, dash, shape }
}

impl Pen {
    fn stroke(self) -> Stroke {
        Stroke { colour: self.colour, width: self.width, dash: self.dash }
    }

    fn radius(self) -> f64 {
        if self.is_strongest() { 5.0 } else { 4.0 }
    }

    fn is_strongest(self) -> bool {
        self.width == STRONGEST
    }
}

// in pixels, as all places here: what a page of GitHub shows without scaling it
const WIDTH: f64 = 880.0;
const HEIGHT: f64 = 500.0;
/// The lines' area.
const LEFT: f64 = 84.0;
const RIGHT: f64 = 700.0;
const TOP: f64 = 70.0;
const BOTTOM: f64 = 416.0;

const STRONGEST: f64 = 3.5;
const WHISKER: f64 = 1.2;
/// Half the width of a whisker's end.
const CAP: f64 = 4.0;

const INK: &str = "#1f2328";
const GREY: &str = "#59636e";
const SMALL: Letters = Letters { size: 12.0, colour: GREY, bold: false, anchor: "start" };
const FOOTER: Letters = Letters { size: 10.5, ..SMALL };
const TITLE: Letters = Letters { size: 16.0, colour: INK, bold: true, anchor: "start" };
const AXIS_TITLE: Letters = Letters { colour: INK, anchor: "middle", ..SMALL };
const GRID: Stroke = Stroke { colour: "#dfe3e8", width: 1.0, dash: "" };
const FAINT: Stroke = Stroke { colour: "#f0f2f4", width: 1.0, dash: "" };
const EDGE: Stroke = Stroke { colour: "#818b98", width: 1.0, dash: "" };

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::LIBRARIES;

    #[test]
    fn every_library_has_a_pen_of_its_own() {
        let mut pens = vec![pen("unknown")];
        for library in LIBRARIES {
            let pen = pen(library.name);
            assert!(!pens.contains(&pen), "{}", library.name);
            pens.push(pen);
        }
    }

    #[test]
    fn dragonwires_own_are_drawn_strongest() {
        let strongest: Vec<&str> =
            LIBRARIES.iter().map(|l| l.name).filter(|name| pen(name).is_strongest()).collect();
        assert_eq!(strongest, ["dragonwire", "driver"]);
    }
}
