//! INI as oslo.config reads it: sections, `option = value` or `option: value`, comments on lines of
//! their own, and values that go on in indented lines.

use super::{Assignment, ConfigError};

/// The assignments in the order of their lines.
pub(super) fn parse(name: &str, text: &str) -> Result<Vec<Assignment>, ConfigError> {
    let mut assignments: Vec<Assignment> = Vec::new();
    let mut section: Option<String> = None;
    // whether an indented line belongs to the last assignment
    let mut open = false;
    for (index, line) in text.split('\n').enumerate() {
        let number = index + 1;
        let syntax =
            |fault: String| ConfigError::Syntax { file: name.to_owned(), line: number, fault };
        let line = line.trim_end();
        if line.is_empty() {
            open = false;
        } else if line.starts_with([' ', '\t']) {
            match assignments.last_mut().filter(|_| open) {
                Some(assignment) => {
                    assignment.text.push('\n');
                    assignment.text.push_str(line.trim_start());
                }
                None => {
                    let fault =
                        "the line is indented, and there is no value before it that could go on";
                    return Err(syntax(fault.to_owned()));
                }
            }
        } else if let Some(rest) = line.strip_prefix('[') {
            open = false;
            section = match rest.strip_suffix(']').map(str::trim) {
                Some("") => {
                    return Err(syntax("expected the section's name between [ and ]".to_owned()));
                }
                Some(inner) => Some(inner.to_owned()),
                None => return Err(syntax(format!("expected ] at the end of {line:?}"))),
            };
        } else if line.starts_with(['#', ';']) {
            open = false;
        } else {
            let Some((option, value)) = line.split_once(['=', ':']) else {
                return Err(syntax(format!("expected OPTION = VALUE, found {line:?}")));
            };
            let option = option.trim();
            if option.is_empty() {
                return Err(syntax(format!("expected the option's name before {line:?}")));
            }
            let text = unquote(value.trim()).to_owned();
            let option = option.to_owned();
            assignments.push(Assignment { section: section.clone(), option, text, line: number });
            open = true;
        }
    }
    Ok(assignments)
}

/// Without the quotes around the whole value; `"a", "b"` is a list of two.
fn unquote(value: &str) -> &str {
    for quote in ['"', '\''] {
        let inner = value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
        if let Some(inner) = inner.filter(|inner| !inner.contains(quote)) {
            return inner;
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(Option<String>, String, String, usize)> {
        let assignments = parse("a.ini", text).unwrap();
        assignments.into_iter().map(|a| (a.section, a.option, a.text, a.line)).collect()
    }

    fn values(text: &str) -> Vec<String> {
        read(text).into_iter().map(|(_, _, value, _)| value).collect()
    }

    #[test]
    fn assignments_have_their_section_and_line() {
        let text = "early = 1\n[df]\n# comment\n; comment\na=b\r\n\nc : d = e\n[x y]\nf=g:h";
        let section = |name: &str| Some(name.to_owned());
        assert_eq!(
            read(text),
            [
                (None, "early".into(), "1".into(), 1),
                (section("df"), "a".into(), "b".into(), 5),
                (section("df"), "c".into(), "d = e".into(), 7),
                (section("x y"), "f".into(), "g:h".into(), 9),
            ]
        );
    }

    #[test]
    fn indented_lines_go_on_and_an_empty_line_ends_them() {
        assert_eq!(values("[a]\nb = c,\n  d\n\te\n"), ["c,\nd\ne"]);
        assert_eq!(values("[a]\nb =\n  d\n"), ["\nd"]);
        // as oslo.config has it: what is indented is no comment
        assert_eq!(values("[a]\nb = c\n  # d\n"), ["c\n# d"]);
        for text in ["[a]\nb = c\n\n  d", "[a]\n  b = c", " x", "[a]\nb = c\n# e\n  d"] {
            let error = parse("a.ini", text).unwrap_err().to_string();
            assert!(error.contains("indented"), "{error}");
        }
    }

    #[test]
    fn quotes_around_the_whole_value_go() {
        let of = |value: &str| values(&format!("[a]\nb = {value}")).concat();
        assert_eq!(of("\"a b\""), "a b");
        assert_eq!(of("' a'"), " a");
        assert_eq!(of("\"\""), "");
        assert_eq!(of("\"a'"), "\"a'");
        assert_eq!(of("\""), "\"");
        assert_eq!(of("\"a\", \"b\""), "\"a\", \"b\"");
        assert_eq!(of("'a \"b\"'"), "a \"b\"");
        assert_eq!(of(""), "");
    }

    #[test]
    fn faults_name_the_line_and_what_was_expected() {
        for (text, message) in [
            ("[df", "a.ini:1: expected ] at the end of \"[df\""),
            ("\n[df] # c", "a.ini:2: expected ] at the end of \"[df] # c\""),
            ("[]", "a.ini:1: expected the section's name between [ and ]"),
            ("[df]\nword", "a.ini:2: expected OPTION = VALUE, found \"word\""),
            ("[df]\n= 3", "a.ini:2: expected the option's name before \"= 3\""),
        ] {
            assert_eq!(parse("a.ini", text).unwrap_err().to_string(), message);
        }
    }
}
