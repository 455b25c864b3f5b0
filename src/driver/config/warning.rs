//! What in option files is probably not meant so: options that nobody reads, old names, values that
//! another spelling overrules.

use std::fmt;

use crate::driver::role::Role;

use super::names::{self, DF, DF_ZMQ, DRAGONWIRE};
use super::read::{ADDRESS, SOCKET, of_role};
use super::{Config, Place, Setting};

/// Something that a file or the program sets and that has not the effect it seems to have.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigWarning {
    /// Where it was set.
    pub place: Place,
    /// The section, in lower case and with underscores.
    pub section: String,
    /// The option, with underscores.
    pub option: String,
    /// What is the matter.
    pub kind: WarningKind,
}

/// What is the matter with an option. Other options are given as `[section] option`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WarningKind {
    /// The section has no such option.
    Unknown {
        /// What may have been meant.
        did_you_mean: Option<String>,
    },
    /// It is read, but has a later name.
    Deprecated {
        /// The later name.
        instead: String,
    },
    /// It was read by early releases of Dragonflow, and is not read here.
    Removed {
        /// What took its place.
        instead: String,
    },
    /// Another spelling of it is set as well, and wins.
    Overruled {
        /// The spelling that wins.
        by: String,
    },
    /// It stands before the first section, where oslo.config refuses it, and was taken for one of
    /// `[DEFAULT]`.
    BeforeFirstSection,
}

impl fmt::Display for ConfigWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, section, option, kind } = self;
        write!(f, "{place}: [{section}] {option} ")?;
        match kind {
            WarningKind::Unknown { did_you_mean: None } => {
                f.write_str("is no option that is read here")
            }
            WarningKind::Unknown { did_you_mean: Some(other) } => {
                write!(f, "is no option that is read here; did you mean {other}?")
            }
            WarningKind::Deprecated { instead } => write!(f, "is an old name: set {instead}"),
            WarningKind::Removed { instead } => write!(f, "is not read any more: set {instead}"),
            WarningKind::Overruled { by } => write!(f, "has no effect: {by} is set and wins"),
            WarningKind::BeforeFirstSection => {
                f.write_str("stands before the first section and counts as one of [DEFAULT]")
            }
        }
    }
}

impl Config {
    /// What is set and probably not meant so, in the order of the places: options unknown to the
    /// sections of roles, `[df_zmq]` and `[dragonwire]`; those of `[df]`, which has options of other
    /// parts of Dragonflow, only if they are much like one that is read here. Options of other
    /// sections are never among them.
    #[must_use]
    pub fn warnings(&self) -> Vec<ConfigWarning> {
        let mut warnings = Vec::new();
        for ((section, option), settings) in &self.settings {
            for setting in settings {
                let kind = if setting.headless {
                    Some(WarningKind::BeforeFirstSection)
                } else {
                    matter_with(section, option)
                };
                warnings.extend(kind.map(|kind| warning(section, option, setting, kind)));
            }
        }
        self.add_overruled(&mut warnings);
        warnings.sort_by(|a, b| a.place.cmp(&b.place));
        warnings
    }

    fn add_overruled(&self, warnings: &mut Vec<ConfigWarning>) {
        let mut same = vec![SOCKET.to_vec()];
        for role in [Role::NeutronServer, Role::DfLocalController] {
            same.push(of_role(role, ADDRESS, &[]));
            let [section, _] = names::role_sections(role);
            for (option, _) in names::defaults(section).unwrap_or_default() {
                if !ADDRESS.contains(option) {
                    same.push(of_role(role, &[option], &[]));
                }
            }
        }
        for names in same {
            let mut set = names.iter().filter_map(|&(section, option)| {
                Some((section, option, self.setting_of(section, option, false)?))
            });
            let Some((section, option, _)) = set.next() else { continue };
            let by = format!("[{section}] {option}");
            for (section, option, setting) in set {
                let kind = WarningKind::Overruled { by: by.clone() };
                warnings.push(warning(section, option, setting, kind));
            }
        }
    }
}

fn warning(section: &str, option: &str, setting: &Setting, kind: WarningKind) -> ConfigWarning {
    let (section, option) = (section.to_owned(), option.to_owned());
    ConfigWarning { place: setting.place.clone(), section, option, kind }
}

fn matter_with(section: &str, option: &str) -> Option<WarningKind> {
    let known = names::defaults(section)?;
    let instead = |list: &[(&str, &str)]| {
        let found = list.iter().find(|(old, _)| section == DF && *old == option);
        found.map(|(_, new)| (*new).to_owned())
    };
    if let Some(instead) = instead(names::REMOVED) {
        return Some(WarningKind::Removed { instead });
    }
    if let Some(instead) = instead(names::DEPRECATED) {
        return Some(WarningKind::Deprecated { instead });
    }
    if known.iter().any(|(name, _)| *name == option) {
        return None;
    }
    let elsewhere = [DF, DF_ZMQ, DRAGONWIRE].into_iter().find(|section| {
        names::defaults(section).unwrap_or_default().iter().any(|(name, _)| *name == option)
    });
    let alike = known
        .iter()
        .map(|(name, _)| (distance(name, option), *name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 10)
        .min();
    let did_you_mean = elsewhere
        .map(|section| format!("[{section}] {option}"))
        .or_else(|| alike.map(|(_, name)| format!("[{section}] {name}")));
    let matters = section != DF || did_you_mean.is_some();
    matters.then_some(WarningKind::Unknown { did_you_mean })
}

/// How many letters have to be put in, taken out or changed.
fn distance(a: &str, b: &str) -> usize {
    if b.len() > LONGEST {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (1..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let (mut diagonal, mut left) = (i, i + 1);
        for (cell, y) in row.iter_mut().zip(b.chars()) {
            let here = (*cell + 1).min(left + 1).min(diagonal + usize::from(x != y));
            diagonal = std::mem::replace(cell, here);
            left = here;
        }
    }
    row.last().copied().unwrap_or(a.chars().count())
}

/// No option has a longer name, by far.
const LONGEST: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_those_of_edits() {
        for (a, b, edits) in [
            ("", "", 0),
            ("a", "", 1),
            ("", "ab", 2),
            ("port", "prot", 2),
            ("codec", "kodec", 1),
            ("codec", "codecs", 1),
        ] {
            assert_eq!(distance(a, b), edits, "{a} {b}");
        }
    }
}
