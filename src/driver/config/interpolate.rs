//! `$option`, `${option}`, `$section.option` and `${section.option}` in values; `$$` and `\$` are a
//! dollar. What is no name stays as it is, as with oslo.config.

use super::{Config, DEFAULT, InterpolationFault, names, option_name, section_name};

impl Config {
    /// The text with every name replaced by the option's value, or by its default. A name without a
    /// section is looked for in `section`, then in `DEFAULT`; from the sections that are Dragonflow's
    /// or this project's also in `df`.
    pub(super) fn interpolate(
        &self,
        section: &str,
        option: &str,
        text: &str,
    ) -> Result<String, InterpolationFault> {
        let chain = vec![(section.to_owned(), option.to_owned())];
        let mut replacing = Replacing { config: self, out: String::new(), chain, references: 0 };
        replacing.append(section, text)?;
        Ok(replacing.out)
    }
}

struct Replacing<'a> {
    config: &'a Config,
    out: String,
    /// The options whose values are being replaced, each within that of the one before.
    chain: Vec<(String, String)>,
    /// Names met so far.
    references: usize,
}

impl<'a> Replacing<'a> {
    fn append(&mut self, section: &str, text: &str) -> Result<(), InterpolationFault> {
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            if let Some(before) = before.strip_suffix('\\') {
                self.push(before)?;
                self.push("$")?;
                rest = after;
                continue;
            }
            self.push(before)?;
            if let Some(after) = after.strip_prefix('$') {
                self.push("$")?;
                rest = after;
            } else if let Some((name, after)) = reference(after) {
                self.replace(section, name)?;
                rest = after;
            } else {
                self.push("$")?;
                rest = after;
            }
        }
        self.push(rest)
    }

    fn replace(&mut self, section: &str, name: &str) -> Result<(), InterpolationFault> {
        self.references += 1;
        if self.references > MOST_REFERENCES || self.chain.len() > MOST_DEEP {
            return Err(InterpolationFault::TooMuch);
        }
        let (section, option, text) = self
            .find(section, name)
            .ok_or_else(|| InterpolationFault::UnknownOption { name: name.to_owned() })?;
        let key = (section, option);
        let looped = self.chain.contains(&key);
        self.chain.push(key.clone());
        if looped {
            let chain = self.chain.iter().map(|(section, option)| format!("[{section}] {option}"));
            return Err(InterpolationFault::Loop { chain: chain.collect() });
        }
        self.append(&key.0, text)?;
        self.chain.pop();
        Ok(())
    }

    /// Section, option and text of what a name means.
    fn find(&self, section: &str, name: &str) -> Option<(String, String, &'a str)> {
        let (sections, option) = match name.split_once('.') {
            Some((section, option)) => (vec![section_name(section)], option_name(option)),
            None => {
                let mut sections = vec![section.to_owned(), DEFAULT.to_owned()];
                if names::is_read(section) {
                    sections.push(names::DF.to_owned());
                }
                (sections, option_name(name))
            }
        };
        let config = self.config;
        sections.into_iter().find_map(|section| {
            let set = config.setting(&section, &option).map(|setting| setting.text.as_str());
            let text = set.or_else(|| names::default_text(&section, &option))?;
            Some((section, option.clone(), text))
        })
    }

    fn push(&mut self, text: &str) -> Result<(), InterpolationFault> {
        if self.out.len() + text.len() > MOST_OCTETS {
            return Err(InterpolationFault::TooMuch);
        }
        self.out.push_str(text);
        Ok(())
    }
}

/// The name after a dollar, and what follows it.
fn reference(after: &str) -> Option<(&str, &str)> {
    let (inner, braced) = match after.strip_prefix('{') {
        Some(inner) => (inner, true),
        None => (after, false),
    };
    if !inner.starts_with(|c: char| c == '_' || c.is_ascii_alphabetic()) {
        return None;
    }
    let in_name = |c: char| matches!(c, '_' | '.') || c.is_ascii_alphanumeric();
    let end = inner.find(|c| !in_name(c)).unwrap_or(inner.len());
    let (name, rest) = inner.split_at_checked(end)?;
    if braced { Some((name, rest.strip_prefix('}')?)) } else { Some((name, rest)) }
}

/// Values within values; nobody writes more than two or three.
pub(super) const MOST_DEEP: usize = 32;
/// Names in one value and in the values that it needs: they could double with each step.
pub(super) const MOST_REFERENCES: usize = 1000;
/// What one value may come to.
pub(super) const MOST_OCTETS: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(file: &str, text: &str) -> Result<String, String> {
        let mut config = Config::new();
        config.add_ini("a.ini", file).unwrap();
        config.interpolate("df", "x", text).map_err(|fault| fault.to_string())
    }

    #[test]
    fn names_are_looked_for_in_the_section_then_in_default() {
        let file =
            "[DEFAULT]\nhost = h\nlocal_ip = 1.1.1.1\n[df]\nown = $host!\n[other]\na-b = 7\n";
        for (text, result) in [
            ("$host", "h"),
            ("${host}name", "hname"),
            ("$own", "h!"),
            ("$other.a_b-${other.a_b}", "7-7"),
            ("${DEFAULT.host}", "h"),
            ("$df.own/x", "h!/x"),
            // not set in [df], where it has a default
            ("$local_ip", "127.0.0.1"),
            ("$DEFAULT.local_ip", "1.1.1.1"),
            ("$remote_db_hosts", "127.0.0.1:4001"),
            ("$controller.publisher_port", "8867"),
        ] {
            assert_eq!(expand(file, text).unwrap(), result, "{text}");
        }
    }

    #[test]
    fn dollars_that_begin_no_name_stay() {
        for (text, result) in [
            ("$$host", "$host"),
            ("\\$host", "$host"),
            ("a\\$$local_ip", "a$127.0.0.1"),
            ("$ $9 ${ ${9} $-", "$ $9 ${ ${9} $-"),
            ("${local_ip", "${local_ip"),
            ("$", "$"),
            ("", ""),
        ] {
            assert_eq!(expand("", text).unwrap(), result);
        }
    }

    #[test]
    fn unknown_names_are_an_error() {
        let error = expand("", "$nope").unwrap_err();
        assert_eq!(
            error,
            "there is no option \"nope\" to take the place of $nope; a dollar itself is $$"
        );
        for text in ["$other.x", "$local_ip.", "$LOCAL_IP"] {
            assert!(expand("", text).is_err(), "{text}");
        }
    }

    #[test]
    fn loops_name_their_chain() {
        let error = expand("[df]\nx = $a\na = $other.b\n[other]\nb = $df.x\n", "$a").unwrap_err();
        assert_eq!(error, "the value needs itself: [df] x -> [df] a -> [other] b -> [df] x");
        assert!(expand("[df]\nx = $x\n", "$x").unwrap_err().ends_with("[df] x -> [df] x"));
    }

    #[test]
    fn values_that_double_with_each_step_end() {
        let doubling: String =
            (0..30).map(|i| format!("a{i} = ${{a{0}}}${{a{0}}}\n", i + 1)).collect();
        for last in ["", "0123456789"] {
            let error = expand(&format!("[df]\n{doubling}a30 = {last}\n"), "$a0").unwrap_err();
            assert!(error.starts_with("more than"), "{error}");
        }
        let deep: String = (0..100).map(|i| format!("a{i} = $a{}\n", i + 1)).collect();
        assert!(expand(&format!("[df]\n{deep}a100 = x\n"), "$a0").is_err());
        assert!(expand(&format!("[df]\na = {}\n", "x".repeat(MOST_OCTETS)), "$a$a").is_err());
    }
}
