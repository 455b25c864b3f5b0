//! Shapes and text in SVG, as much as a chart needs. Text is placed by its anchor, so that nobody
//! has to know how wide a font is.

#[derive(Debug)]
pub struct Svg {
    text: String,
}

/// How a line is drawn.
#[derive(Debug, Clone, Copy)]
pub struct Stroke {
    pub colour: &'static str,
    pub width: f64,
    /// As `stroke-dasharray` has it; empty for a solid line.
    pub dash: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Circle,
    Square,
    Diamond,
    /// With a point at the top.
    Triangle,
    /// With a point at the bottom.
    Wedge,
}

/// How a text is written.
#[derive(Debug, Clone, Copy)]
pub struct Letters {
    pub size: f64,
    pub colour: &'static str,
    pub bold: bool,
    /// `start`, `middle` or `end`: which part of the text the place is of.
    pub anchor: &'static str,
}

impl Svg {
    /// On white with a border: on a dark page the colours of the lines would not be readable.
    pub fn new(width: f64, height: f64, title: &str) -> Self {
        let title = escaped(title);
        let mut svg = Self { text: String::new() };
        svg.push(&format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{title}\" \
             font-family=\"{FONTS}\">"
        ));
        svg.push(&format!("<title>{title}</title>"));
        svg.push(&format!(
            "<rect x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"6\" fill=\"#ffffff\" \
             stroke=\"#d1d9e0\"/>",
            width - 1.0,
            height - 1.0
        ));
        svg
    }

    pub fn line(&mut self, points: &[(f64, f64)], stroke: Stroke) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let Stroke { colour, width, dash } = stroke;
        let dash = match dash {
            "" => String::new(),
            dash => format!(" stroke-dasharray=\"{dash}\""),
        };
        self.push(&format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" \
             stroke-linejoin=\"round\"{dash}/>",
            points.join(" ")
        ));
    }

    /// Filled, with a white edge that sets it off from lines behind it.
    pub fn mark(&mut self, shape: Shape, (x, y): (f64, f64), radius: f64, colour: &str) {
        let style = format!("fill=\"{colour}\" stroke=\"#ffffff\" stroke-width=\"1\"");
        let r = radius;
        let corners: &[(f64, f64)] = match shape {
            Shape::Circle => {
                self.push(&format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r:.1}\" {style}/>"));
                return;
            }
            // of about the same area as the circle
            Shape::Square => &[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
            Shape::Diamond => &[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)],
            Shape::Triangle => &[(0.0, -1.3), (1.25, 0.9), (-1.25, 0.9)],
            Shape::Wedge => &[(0.0, 1.3), (1.25, -0.9), (-1.25, -0.9)],
        };
        let corners: Vec<String> =
            corners.iter().map(|(dx, dy)| format!("{:.1},{:.1}", x + dx * r, y + dy * r)).collect();
        self.push(&format!("<polygon points=\"{}\" {style}/>", corners.join(" ")));
    }

    pub fn text(&mut self, (x, y): (f64, f64), letters: Letters, text: &str) {
        self.push(&format!("<text x=\"{x:.1}\" y=\"{y:.1}\" {}", letters.element(text)));
    }

    /// From the bottom to the top.
    pub fn text_upwards(&mut self, (x, y): (f64, f64), letters: Letters, text: &str) {
        let place = format!("translate({x:.1} {y:.1}) rotate(-90)");
        self.push(&format!("<text transform=\"{place}\" {}", letters.element(text)));
    }

    pub fn finish(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }

    fn push(&mut self, element: &str) {
        self.text += element;
        self.text.push('\n');
    }
}

impl Letters {
    /// The rest of a text element, from the attributes on.
    fn element(self, text: &str) -> String {
        let Self { size, colour, bold, anchor } = self;
        let weight = if bold { " font-weight=\"600\"" } else { "" };
        let text = escaped(text);
        format!(
            "font-size=\"{size}\" fill=\"{colour}\" text-anchor=\"{anchor}\"{weight}>{text}</text>"
        )
    }
}

/// What XML allows in text and in attributes.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            char if char.is_control() => escaped.push(' '),
            char => escaped.push(char),
        }
    }
    escaped
}

const FONTS: &str = "system-ui, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped() {
        assert_eq!(escaped("a <b> & \"c\"\0"), "a &lt;b&gt; &amp; &quot;c&quot; ");
    }
}
