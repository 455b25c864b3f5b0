//! The same sections and options in TOML, brought into the text that INI would have.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Assignment, ConfigError, names, section_name, value};

/// The assignments in the order of their lines.
pub(super) fn parse(name: &str, text: &str) -> Result<Vec<Assignment>, ConfigError> {
    let lines = Lines::of(text);
    let syntax = |span: &Range<usize>, fault: String| ConfigError::Syntax {
        file: name.to_owned(),
        line: lines.at(span.start),
        fault,
    };
    let document = DeTable::parse(text).map_err(|error| {
        syntax(&error.span().unwrap_or_default(), error.message().trim().to_owned())
    })?;
    let mut assignments = Vec::new();
    let mut assign = |section: Option<&str>, key: &Spanned<_>, value: &Spanned<DeValue<'_>>| {
        let option: &str = AsRef::<str>::as_ref(key.get_ref());
        match text_of(value.get_ref()) {
            Ok(text) => {
                let section = section.map(str::to_owned);
                let line = lines.at(key.span().start);
                assignments.push(Assignment { section, option: option.to_owned(), text, line });
                Ok(())
            }
            // `[[df]]` is no table of options either
            Err(fault) if names::is_read(&section_name(section.unwrap_or(option))) => {
                let section = section.map_or(String::new(), |section| format!("[{section}] "));
                Err(syntax(&key.span(), format!("{section}{option}: {fault}")))
            }
            // the section is somebody else's
            Err(_) => Ok(()),
        }
    };
    for (key, value) in document.get_ref() {
        match value.get_ref() {
            DeValue::Table(table) => {
                for (option, value) in table {
                    assign(Some(key.get_ref()), option, value)?;
                }
            }
            _ => assign(None, key, value)?,
        }
    }
    // tables come sorted by name, but the last of two spellings wins
    assignments.sort_by_key(|assignment| assignment.line);
    Ok(assignments)
}

fn text_of(value: &DeValue<'_>) -> Result<String, &'static str> {
    match value {
        DeValue::Array(items) => {
            let items: Result<Vec<_>, _> = items
                .iter()
                .map(|item| value::quote(&scalar(item.get_ref()).ok_or(EXPECTED_ITEM)?))
                .collect();
            Ok(format!("[{}]", items?.join(", ")))
        }
        value => scalar(value).ok_or(EXPECTED),
    }
}

fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.clone().into_owned()),
        DeValue::Integer(number) => Some(
            i128::from_str_radix(number.as_str(), number.radix())
                .map_or_else(|_| number.to_string(), |number| number.to_string()),
        ),
        DeValue::Float(number) => Some(number.to_string()),
        DeValue::Boolean(truth) => Some(truth.to_string()),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

/// Where the lines of a text begin.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(text.match_indices('\n').map(|(index, _)| index + 1).collect())
    }

    /// The line of an octet, from 1.
    fn at(&self, index: usize) -> usize {
        1 + self.0.partition_point(|&start| start <= index)
    }
}

const EXPECTED: &str = "expected text, a number, true, false or an array of these";
const EXPECTED_ITEM: &str = "expected text, numbers, true or false in the array";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_the_text_of_ini() {
        let text = "top = 1\n[df]\na = 'x'\nb = 0x10\nc = 1.5\nd = true\ne = ['p, q', 2, \"it's\"]\nf = []\n";
        let assignments = parse("a.toml", text).unwrap();
        let read: Vec<_> =
            assignments.iter().map(|a| (a.option.as_str(), a.text.as_str(), a.line)).collect();
        assert_eq!(
            read,
            [
                ("top", "1", 1),
                ("a", "x", 3),
                ("b", "16", 4),
                ("c", "1.5", 5),
                ("d", "true", 6),
                ("e", "[\"p, q\", \"2\", \"it's\"]", 7),
                ("f", "[]", 8),
            ]
        );
        assert_eq!(assignments[0].section, None);
        assert_eq!(assignments[1].section.as_deref(), Some("df"));
    }

    #[test]
    fn faults_name_the_line() {
        let error = |text| parse("a.toml", text).unwrap_err().to_string();
        assert!(error("[df]\na = \n").starts_with("a.toml:2: "));
        assert_eq!(error("[df]\n\na = 1979-05-27"), format!("a.toml:3: [df] a: {EXPECTED}"));
        assert_eq!(error("[df]\na = { b = 1 }"), format!("a.toml:2: [df] a: {EXPECTED}"));
        assert_eq!(error("[df]\na = [[1]]"), format!("a.toml:2: [df] a: {EXPECTED_ITEM}"));
        assert_eq!(error("[[df]]\na = 1"), format!("a.toml:1: df: {EXPECTED_ITEM}"));
    }

    #[test]
    fn sections_of_others_may_hold_anything() {
        let text =
            "a = 1979-05-27\n[other]\na = { b = 1 }\n[other.deeper]\nc = 1\n[[list]]\nd = 1\n";
        assert!(parse("a.toml", text).unwrap().is_empty());
    }
}
