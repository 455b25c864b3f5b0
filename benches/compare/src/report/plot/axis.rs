//! Axes: where a value lies, which values get a line, and how they are written.

#[derive(Debug)]
pub struct Axis {
    pub title: &'static str,
    pub ticks: Vec<Tick>,
    scale: fn(f64) -> f64,
    /// Scaled, as is `high`.
    low: f64,
    high: f64,
}

#[derive(Debug)]
pub struct Tick {
    /// From 0 at the axis's low end to 1 at its high end.
    pub at: f64,
    pub label: Option<String>,
}

impl Axis {
    /// Logarithmic, with lines at 1, 2 and 5 times the powers of ten, wide enough for all values.
    pub fn steps(title: &'static str, values: &[f64], label: fn(f64) -> String) -> Self {
        let steps = steps_around(values);
        let (low, high) = ends(&steps);
        let mut axis = Self::new(title, f64::log10, low.log10(), high.log10());
        let label_all = steps.len() <= STEPS_LABELLED;
        axis.ticks = steps
            .into_iter()
            .map(|step| Tick {
                at: axis.share(step),
                label: (label_all || is_power_of_ten(step)).then(|| label(step)),
            })
            .collect();
        axis
    }

    /// Logarithmic, with lines at the values themselves: for what was chosen, such as sizes.
    pub fn measured(title: &'static str, values: &[f64], label: fn(f64) -> String) -> Self {
        let mut distinct = values.to_vec();
        distinct.sort_by(f64::total_cmp);
        distinct.dedup();
        let (low, high) = ends(&distinct);
        let (low, high) = (low.log10(), high.log10());
        // room for the marks at the ends, and for a single value some width
        let margin = if low < high { (high - low) * MARGIN } else { 0.5 };
        let mut axis = Self::new(title, f64::log10, low - margin, high + margin);
        let mut free = 0.0;
        for value in distinct {
            let at = axis.share(value);
            let label = (at >= free).then(|| label(value));
            if label.is_some() {
                free = at + LABEL_APART;
            }
            axis.ticks.push(Tick { at, label });
        }
        axis
    }

    /// For quantiles up to 0.999, each nine as wide as the one before it.
    pub fn nines(title: &'static str) -> Self {
        let mut axis = Self::new(title, nines, 0.0, 3.0);
        axis.ticks = [0.0, 0.5, 0.9, 0.99, 0.999]
            .map(|quantile| Tick { at: axis.share(quantile), label: Some(percent(quantile)) })
            .into();
        axis
    }

    /// Where a value lies: from 0 to 1, also if it is beyond the ends.
    pub fn share(&self, value: f64) -> f64 {
        let share = ((self.scale)(value) - self.low) / (self.high - self.low);
        share.clamp(0.0, 1.0)
    }

    pub fn holds(&self, value: f64) -> bool {
        (self.low - ROUNDING..=self.high + ROUNDING).contains(&(self.scale)(value))
    }

    fn new(title: &'static str, scale: fn(f64) -> f64, low: f64, high: f64) -> Self {
        Self { title, ticks: Vec::new(), scale, low, high }
    }
}

/// `1`, `500`, `20 k`, `1.5 M`.
pub fn number(value: f64) -> String {
    let units = [(1e9, " G"), (1e6, " M"), (1e3, " k")];
    let (unit, name) = units.into_iter().find(|(unit, _)| value >= *unit).unwrap_or((1.0, ""));
    short(value / unit) + name
}

/// `64 B`, `1 KiB`, `1.5 MiB`.
pub fn octets(value: f64) -> String {
    let units = [(1_073_741_824.0, " GiB"), (1_048_576.0, " MiB"), (1024.0, " KiB")];
    let (unit, name) = units.into_iter().find(|(unit, _)| value >= *unit).unwrap_or((1.0, " B"));
    short(value / unit) + name
}

/// `50 %`, `99.9 %`.
pub fn percent(share: f64) -> String {
    short(share * 100.0) + " %"
}

/// With three digits at least as far as they are not zeros behind the point.
fn short(value: f64) -> String {
    let decimals = (2.0 - value.abs().log10().floor()).clamp(0.0, 9.0) as usize;
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile).log10()
}

/// The steps from the last one that is not above any value to the first that is not below any.
fn steps_around(values: &[f64]) -> Vec<f64> {
    let min = values.iter().copied().fold(f64::INFINITY, f64::min);
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (min, max) = if min <= max { (min, max) } else { (1.0, 10.0) };
    // a decade more on both sides to have some left to widen a narrow range with
    let decades = min.log10().floor() as i32 - 1..=max.log10().ceil() as i32 + 1;
    let steps: Vec<f64> =
        decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|step| step * 10f64.powi(decade))).collect();
    let mut first = steps.iter().rposition(|step| *step <= min).unwrap_or(0);
    let mut last = steps.iter().position(|step| *step >= max).unwrap_or(steps.len() - 1);
    while last - first < STEPS_AT_LEAST {
        last += 1;
        first = first.saturating_sub(usize::from(last - first < STEPS_AT_LEAST));
    }
    steps[first..=last].to_vec()
}

fn ends(values: &[f64]) -> (f64, f64) {
    (values.first().copied().unwrap_or(1.0), values.last().copied().unwrap_or(1.0))
}

fn is_power_of_ten(step: f64) -> bool {
    let exponent = step.log10();
    (exponent - exponent.round()).abs() < ROUNDING
}

/// A decade: within less than that, the differences look larger than they are.
const STEPS_AT_LEAST: usize = 3;

/// More labels than that stand too close for a calm look; then the powers of ten have to do.
const STEPS_LABELLED: usize = 9;

/// Of the width of the values.
const MARGIN: f64 = 0.04;

/// Between the middles of two labels: what `512 KiB` takes.
const LABEL_APART: f64 = 0.08;

const ROUNDING: f64 = 1e-9;

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().filter_map(|tick| tick.label.as_deref()).collect()
    }

    #[test]
    fn numbers_have_units_of_a_thousand() {
        let values = [0.02, 0.5, 1.0, 20.0, 999.0, 1000.0, 1500.0, 2e6, 5e7, 1e9];
        let texts = ["0.02", "0.5", "1", "20", "999", "1 k", "1.5 k", "2 M", "50 M", "1 G"];
        assert_eq!(values.map(number), texts);
    }

    #[test]
    fn sizes_have_units_of_1024() {
        let values = [16.0, 1000.0, 1024.0, 8192.0, 1_572_864.0];
        assert_eq!(values.map(octets), ["16 B", "1000 B", "1 KiB", "8 KiB", "1.5 MiB"]);
    }

    #[test]
    fn percentages_have_no_rounding_errors() {
        assert_eq!([0.0, 0.5, 0.99, 0.999].map(percent), ["0 %", "50 %", "99 %", "99.9 %"]);
    }

    #[test]
    fn steps_begin_and_end_around_the_values() {
        let axis = Axis::steps("", &[3e3, 4e6], number);
        assert_eq!(labels(&axis), ["10 k", "100 k", "1 M"]);
        assert_eq!(axis.ticks.first().unwrap().at, 0.0);
        assert_eq!(axis.ticks.last().unwrap().at, 1.0);
        assert!((axis.share(2e3), axis.share(5e6)) == (0.0, 1.0));
    }

    #[test]
    fn few_steps_are_all_labelled() {
        let axis = Axis::steps("", &[0.03, 0.4], number);
        assert_eq!(labels(&axis), ["0.02", "0.05", "0.1", "0.2", "0.5"]);
    }

    #[test]
    fn a_narrow_range_is_widened_to_a_decade() {
        for value in [1.0, 3.0, 1e6, 0.02] {
            let axis = Axis::steps("", &[value], number);
            assert_eq!(axis.ticks.len(), STEPS_AT_LEAST + 1, "{value}");
            assert!(axis.holds(value), "{value}");
        }
    }

    #[test]
    fn measured_values_are_the_ticks_once_each() {
        let axis = Axis::measured("", &[1024.0, 16.0, 16.0, 65536.0], octets);
        assert_eq!(labels(&axis), ["16 B", "1 KiB", "64 KiB"]);
        assert!((axis.ticks[1].at - 0.5).abs() < ROUNDING);
        assert_eq!(Axis::measured("", &[64.0], octets).ticks[0].at, 0.5);
    }

    #[test]
    fn labels_that_would_touch_are_left_out() {
        let axis = Axis::measured("", &[1000.0, 1024.0, 1_048_576.0], octets);
        assert_eq!(labels(&axis), ["1000 B", "1 MiB"]);
        assert_eq!(axis.ticks.len(), 3);
    }

    #[test]
    fn nines_are_of_one_width() {
        let axis = Axis::nines("");
        assert_eq!(labels(&axis), ["0 %", "50 %", "90 %", "99 %", "99.9 %"]);
        let places = [0.9, 0.99, 0.999].map(|quantile| (axis.share(quantile) * 3.0).round());
        assert_eq!(places, [1.0, 2.0, 3.0]);
        assert!(axis.holds(0.999) && !axis.holds(0.9999));
    }

    #[test]
    fn no_values_make_an_axis_all_the_same() {
        assert!(!Axis::steps("", &[], number).ticks.is_empty());
        assert!(Axis::measured("", &[], number).ticks.is_empty());
    }
}
