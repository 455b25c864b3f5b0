//! What the library has to say while it runs, as lines for people.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::console::Console;

/// From now on, what is as grave as `level` is written to the console.
pub(crate) fn start(level: Level, console: &Console) {
    let log = Log { level, console: console.clone(), told: Mutex::default() };
    // fails only where there is one already, which then has the lines
    let _ = tracing::subscriber::set_global_default(log);
}

struct Log {
    level: Level,
    console: Console,
    told: Mutex<HashMap<Identifier, Told>>,
}

/// The lines of one place in the code.
struct Told {
    since: Instant,
    lines: u32,
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event()
            && *metadata.level() <= self.level
            && metadata.target().starts_with("dragonwire")
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::from_level(self.level))
    }

    fn event(&self, event: &Event<'_>) {
        let Some(skipped) = self.allow(event.metadata(), Instant::now()) else { return };
        let mut text = Text::default();
        event.record(&mut text);
        let Text { message, fields } = text;
        let fields = if fields.is_empty() { fields } else { format!(" ({fields})") };
        if skipped > 0 {
            self.console.say(format!("dragonwire: {skipped} more lines such as the next"));
        }
        self.console.say(format!("dragonwire: {message}{fields}"));
    }

    // spans are not enabled
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

impl Log {
    /// How many lines were left out before this one; `None`: it is left out, too. A peer that sends
    /// nonsense shall not fill a disk.
    fn allow(&self, metadata: &Metadata<'_>, now: Instant) -> Option<u32> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || Told { since: now, lines: 0 };
        let told = told.entry(metadata.callsite()).or_insert_with(fresh);
        let mut skipped = 0;
        if now.duration_since(told.since) >= WINDOW {
            skipped = told.lines.saturating_sub(LINES);
            *told = fresh();
        }
        told.lines = told.lines.saturating_add(1);
        (told.lines <= LINES).then_some(skipped)
    }
}

/// An event's message and `name value, name value`.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let (into, name) = match field.name() {
            "message" => (&mut self.message, ""),
            name => (&mut self.fields, name),
        };
        let comma = if into.is_empty() { "" } else { ", " };
        let space = if name.is_empty() { "" } else { " " };
        let text = format!("{value:?}");
        // texts of peers may hold anything, and one event is one line
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        // writing to a string does not fail
        let _ = write!(into, "{comma}{name}{space}{text}");
    }
}

/// So many lines of one place in the code in such a time.
const LINES: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);
