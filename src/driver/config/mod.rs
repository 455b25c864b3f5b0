//! The options of drivers, from the files that operators of Dragonflow have, from TOML and from code.
//!
//! A [`Config`] gathers what files and code say, [`Config::options`] makes a role's [`DriverOptions`]
//! of it. `docs/driver-options.md` lists every option and says which of two values wins.
//!
//! ```
//! use dragonwire::driver::Role;
//! use dragonwire::driver::config::Config;
//!
//! let mut config = Config::new();
//! config.add_ini("dragonflow.ini", "[df]\nlocal_ip = 10.0.0.5\npublisher_bind_address = $local_ip\n")?;
//! config.set("df", "publisher_port", "9000");
//! let options = config.options(Role::NeutronServer)?;
//! assert_eq!(options.publisher_bind_address, "10.0.0.5");
//! assert_eq!(options.publisher_port, 9000);
//! # Ok::<(), dragonwire::driver::config::ConfigError>(())
//! ```

mod error;
mod ini;
mod interpolate;
mod names;
mod options;
mod read;
mod toml_file;
mod value;
mod warning;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use error::{ConfigError, InterpolationFault, Place, Written};
pub use options::DriverOptions;
pub use warning::{ConfigWarning, WarningKind};

/// What option files and code say, as written: sections, their options, and of each all values with
/// the file and the line.
///
/// Files are read in the order in which they are added; the last value of an option wins, and what
/// [`set`](Self::set) says wins over all files. Values are checked by [`options`](Self::options), so
/// that sections of other programs may hold what they like.
#[derive(Debug, Clone, Default)]
pub struct Config {
    settings: BTreeMap<Key, Vec<Setting>>,
    /// An INI file was read: `publishers_ips` has Dragonflow's default.
    has_ini: bool,
    /// An INI file has options of Dragonflow: its peers are Dragonflow's.
    is_dragonflow: bool,
}

/// Section and option, as [`section_name`] and [`option_name`] make them.
type Key = (String, String);

/// One value of an option.
#[derive(Debug, Clone)]
struct Setting {
    text: String,
    place: Place,
    /// It stands before the first section of its file.
    headless: bool,
}

/// One line `option = value` of a file.
#[derive(Debug, PartialEq)]
struct Assignment {
    /// `None` before the first section.
    section: Option<String>,
    option: String,
    text: String,
    line: usize,
}

impl Config {
    /// Holds nothing: every option has its default.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads an option file: TOML if its name ends in `.toml`, else oslo.config's INI. Blocks while it
    /// reads.
    ///
    /// # Errors
    /// The file cannot be read or its syntax is wrong; then nothing of it is kept.
    pub fn add_file(&mut self, path: impl AsRef<Path>) -> Result<(), ConfigError> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let octets = fs::read(path).map_err(|error| unreadable(path, &error))?;
        let text = match std::str::from_utf8(&octets) {
            Ok(text) => text,
            Err(error) => {
                let before = octets.get(..error.valid_up_to()).unwrap_or_default();
                let line = 1 + before.iter().filter(|&&octet| octet == b'\n').count();
                let fault = "the file is not UTF-8 from here on".to_owned();
                return Err(ConfigError::Syntax { file: name, line, fault });
            }
        };
        // editors of other systems leave a byte order mark
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("toml")) {
            self.add_toml(&name, text)
        } else {
            self.add_ini(&name, text)
        }
    }

    /// Reads all files of a folder whose names end in `.conf`, in the order of their names, as
    /// oslo.config's `--config-dir` does; not those whose names begin with a dot, nor those in folders
    /// further down. Blocks while it reads.
    ///
    /// # Errors
    /// The folder or a file cannot be read, or a file's syntax is wrong; the files before that one
    /// are kept.
    pub fn add_dir(&mut self, dir: impl AsRef<Path>) -> Result<(), ConfigError> {
        let dir = dir.as_ref();
        for path in files_of(dir).map_err(|error| unreadable(dir, &error))? {
            self.add_file(path)?;
        }
        Ok(())
    }

    /// Reads the text of an INI file in oslo.config's syntax; `name` stands for the file in errors.
    ///
    /// # Errors
    /// The syntax is wrong; then nothing is kept.
    pub fn add_ini(&mut self, name: &str, text: &str) -> Result<(), ConfigError> {
        let assignments = ini::parse(name, text)?;
        self.has_ini = true;
        self.is_dragonflow |= assignments.iter().any(|assignment| {
            let section = assignment.section.as_deref().map(section_name);
            section.is_some_and(|section| names::DRAGONFLOW.contains(&section.as_str()))
        });
        self.add(name, assignments);
        Ok(())
    }

    /// Reads the text of a TOML file: its tables are the sections, its strings, numbers and booleans
    /// are as in INI, `$name` included, and lists are arrays or INI's text. `name` stands for the file
    /// in errors.
    ///
    /// # Errors
    /// The syntax is wrong, or a section that is read here holds something else; then nothing is kept.
    pub fn add_toml(&mut self, name: &str, text: &str) -> Result<(), ConfigError> {
        let assignments = toml_file::parse(name, text)?;
        self.add(name, assignments);
        Ok(())
    }

    /// Sets an option from code or a flag, with the value's text as in a file. It wins over all
    /// files, also over a role's section if `section` is `df`. A role's own section is
    /// [`Role::as_str`](crate::driver::Role::as_str).
    pub fn set(&mut self, section: &str, option: &str, value: impl Into<String>) {
        let setting = Setting { text: value.into(), place: Place::Code, headless: false };
        self.settings
            .entry((section_name(section), option_name(option)))
            .or_default()
            .push(setting);
    }

    fn add(&mut self, name: &str, assignments: Vec<Assignment>) {
        let file: Arc<str> = name.into();
        for Assignment { section, option, text, line } in assignments {
            let headless = section.is_none();
            let section = section.map_or(DEFAULT.to_owned(), |section| section_name(&section));
            let place = Place::File { name: file.clone(), line };
            self.settings.entry((section, option_name(&option))).or_default().push(Setting {
                text,
                place,
                headless,
            });
        }
    }

    /// The value that wins within one section.
    fn setting(&self, section: &str, option: &str) -> Option<&Setting> {
        self.setting_of(section, option, true).or_else(|| self.setting_of(section, option, false))
    }

    /// The last value that code, or a file, gives.
    fn setting_of(&self, section: &str, option: &str, code: bool) -> Option<&Setting> {
        let settings = self.settings.get(&(section.to_owned(), option.to_owned()))?;
        settings.iter().rfind(|setting| (setting.place == Place::Code) == code)
    }
}

/// oslo.config takes a section in any case, `DEFAULT` apart.
fn section_name(written: &str) -> String {
    match written.trim() {
        DEFAULT => DEFAULT.to_owned(),
        name => name.to_lowercase().replace('-', "_"),
    }
}

fn option_name(written: &str) -> String {
    written.trim().replace('-', "_")
}

fn unreadable(path: &Path, error: &io::Error) -> ConfigError {
    ConfigError::Unreadable { path: path.to_path_buf(), reason: error.to_string() }
}

fn files_of(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let octets = name.as_encoded_bytes();
        if octets.ends_with(b".conf") && !octets.starts_with(b".") {
            files.push(name);
        }
    }
    files.sort();
    Ok(files.into_iter().map(|name| dir.join(name)).collect())
}

/// The section of options that belong to none.
const DEFAULT: &str = "DEFAULT";

#[cfg(test)]
mod tests;
