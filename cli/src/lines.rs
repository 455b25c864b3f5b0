//! One line of standard input or output, whichever the format.

use std::fmt;

use bytes::Bytes;
use dragonwire::Message;

use crate::{json_lines, text_lines};

/// How messages are written as lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// A JSON array a message: strings, or {"hex": "00ff"} for frames that are not UTF-8
    Json,
    /// For people: frames separated by " | ", what cannot be shown escaped
    Text,
    /// A line a message: on input one frame; on output all frames put together
    Raw,
}

/// What a line of standard input asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Line {
    /// Nothing: the line is blank.
    Blank,
    /// Send this message.
    Message(Message),
    /// Subscribe to this topic.
    Subscribe(Bytes),
    /// Take back the subscription to this topic.
    Unsubscribe(Bytes),
}

/// Which lines a socket type has a use for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takes {
    /// pub, push, xpub.
    Messages,
    /// sub.
    Subscriptions,
    /// xsub.
    Both,
}

/// Why a line is ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LineError {
    /// It is no value of the format; the text says what is wrong.
    Malformed(String),
    /// `[]`.
    NoFrames,
    /// A message for a socket that does not send any.
    NotSent,
    /// A subscription for a socket that has none.
    NotSubscribed,
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(reason) => f.write_str(reason),
            Self::NoFrames => f.write_str("a message has at least one frame"),
            Self::NotSent => f.write_str("sub sends no messages, only subscriptions"),
            Self::NotSubscribed => f.write_str("only sub and xsub subscribe"),
        }
    }
}

/// Reads one line. `block` is what `line` is a part of; long frames stay parts of it.
pub(crate) fn decode(
    format: Format,
    takes: Takes,
    line: &[u8],
    block: &Bytes,
) -> Result<Line, LineError> {
    let line = match (format, takes) {
        (Format::Json, _) => json_lines::decode(line, block)?,
        (Format::Text, Takes::Subscriptions) => text_lines::decode_subscription(line)?,
        (Format::Text, _) => Line::Message(text_lines::decode(line, block)?),
        (Format::Raw, Takes::Subscriptions) => text_lines::decode_raw_subscription(line, block)?,
        (Format::Raw, _) => Line::Message(block.slice_ref(line).into()),
    };
    match (&line, takes) {
        (Line::Message(_), Takes::Subscriptions) => Err(LineError::NotSent),
        (Line::Subscribe(_) | Line::Unsubscribe(_), Takes::Messages) => {
            Err(LineError::NotSubscribed)
        }
        _ => Ok(line),
    }
}

/// Appends one line, its end included.
pub(crate) fn encode(format: Format, message: &Message, out: &mut Vec<u8>) {
    match format {
        Format::Json => json_lines::encode(message, out),
        Format::Text => text_lines::encode(message, out),
        Format::Raw => message.frames().for_each(|frame| out.extend_from_slice(frame)),
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(format: Format, takes: Takes, line: &'static str) -> Result<Line, LineError> {
        let block = Bytes::from_static(line.as_bytes());
        decode(format, takes, &block, &block)
    }

    #[test]
    fn each_type_takes_its_own_lines() {
        use LineError::{NotSent, NotSubscribed};
        let subscribe = r#"{"subscribe":"a"}"#;
        assert_eq!(read(Format::Json, Takes::Messages, subscribe), Err(NotSubscribed));
        assert_eq!(read(Format::Json, Takes::Subscriptions, r#"["a"]"#), Err(NotSent));
        for takes in [Takes::Subscriptions, Takes::Both] {
            assert_eq!(read(Format::Json, takes, subscribe), Ok(Line::Subscribe("a".into())));
        }
        assert_eq!(
            read(Format::Text, Takes::Subscriptions, "-a"),
            Ok(Line::Unsubscribe("a".into()))
        );
        assert_eq!(read(Format::Raw, Takes::Subscriptions, "+"), Ok(Line::Subscribe(Bytes::new())));
        assert_eq!(read(Format::Raw, Takes::Both, "+ | "), Ok(Line::Message("+ | ".into())));
    }

    #[test]
    fn raw_puts_the_frames_together() {
        let mut out = Vec::new();
        encode(Format::Raw, &Message::from(["topic ", "body"]), &mut out);
        assert_eq!(out, b"topic body\n");
    }
}
