//! Messages as lines for people: `topic | body`, with escapes where a frame could not be read back
//! or would disturb a terminal. No IO.
//!
//! | written | stands for |
//! | --- | --- |
//! | ` \| ` (with a space on each side) | the border between two frames |
//! | `\\` | a backslash |
//! | `\\|` | a bar that is no border |
//! | `\n` `\r` `\t` | line feed, carriage return, tab |
//! | `\x00` to `\xff` | that octet |
//!
//! All else, octets that are not UTF-8 included, is read as it is. Other control characters, and
//! those that change the direction of a text, are written as `\x..`.

use bytes::Bytes;
use dragonwire::Message;

use crate::json_lines::hex_digits;
use crate::lines::{Line, LineError};

/// Reads a message. `block` is what `line` is a part of; frames without escapes stay parts of it.
pub(crate) fn decode(line: &[u8], block: &Bytes) -> Result<Message, LineError> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut frames = Vec::new();
    let mut rest = line;
    while let Some(at) = memchr::memmem::find(rest, BORDER) {
        let (frame, after) = rest.split_at(at);
        frames.push(unescape(frame, block)?);
        rest = after.get(BORDER.len()..).unwrap_or_default();
    }
    frames.push(unescape(rest, block)?);
    Ok(Message::from_frames(frames))
}

/// Reads `+topic` or `-topic`.
pub(crate) fn decode_subscription(line: &[u8]) -> Result<Line, LineError> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let block = Bytes::copy_from_slice(line);
    match decode_raw_subscription(&block, &block)? {
        Line::Subscribe(topic) => unescape(&topic, &topic).map(Line::Subscribe),
        Line::Unsubscribe(topic) => unescape(&topic, &topic).map(Line::Unsubscribe),
        other => Ok(other),
    }
}

/// Reads `+topic` or `-topic` without escapes. `block` is what `line` is a part of.
pub(crate) fn decode_raw_subscription(line: &[u8], block: &Bytes) -> Result<Line, LineError> {
    match line.split_first() {
        None => Ok(Line::Blank),
        Some((b'+', topic)) => Ok(Line::Subscribe(block.slice_ref(topic))),
        Some((b'-', topic)) => Ok(Line::Unsubscribe(block.slice_ref(topic))),
        Some(_) => Err(LineError::Malformed(
            "write +TOPIC to subscribe or -TOPIC to take a subscription back".into(),
        )),
    }
}

/// Appends a message, without the end of the line.
pub(crate) fn encode(message: &Message, out: &mut Vec<u8>) {
    for (i, frame) in message.frames().enumerate() {
        if i > 0 {
            out.extend_from_slice(BORDER);
        }
        for chunk in frame.utf8_chunks() {
            chunk.valid().chars().for_each(|c| encode_char(c, out));
            encode_octets(chunk.invalid(), out);
        }
    }
}

fn encode_char(c: char, out: &mut Vec<u8>) {
    let mut buffer = [0; 4];
    let octets = c.encode_utf8(&mut buffer).as_bytes();
    match c {
        '\\' => out.extend_from_slice(b"\\\\"),
        '|' => out.extend_from_slice(b"\\|"),
        '\n' => out.extend_from_slice(b"\\n"),
        '\r' => out.extend_from_slice(b"\\r"),
        '\t' => out.extend_from_slice(b"\\t"),
        // line and paragraph separators, and what reorders the text around it
        '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => encode_octets(octets, out),
        _ if c.is_control() => encode_octets(octets, out),
        _ => out.extend_from_slice(octets),
    }
}

fn encode_octets(octets: &[u8], out: &mut Vec<u8>) {
    for octet in octets {
        out.extend_from_slice(b"\\x");
        out.extend_from_slice(&hex_digits(*octet));
    }
}

fn unescape(text: &[u8], block: &Bytes) -> Result<Bytes, LineError> {
    if memchr::memchr(b'\\', text).is_none() {
        return Ok(block.slice_ref(text));
    }
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        let (plain, escape) = rest.split_at(at);
        octets.extend_from_slice(plain);
        let (octet, after) = read_escape(escape).ok_or_else(|| {
            LineError::Malformed(
                "no such escape; there are \\\\ \\| \\n \\r \\t and \\x00 to \\xff".into(),
            )
        })?;
        octets.push(octet);
        rest = after;
    }
    octets.extend_from_slice(rest);
    Ok(octets.into())
}

fn read_escape(text: &[u8]) -> Option<(u8, &[u8])> {
    match text {
        [b'\\', b'x', high, low, rest @ ..] => {
            let nibble = |digit: &u8| char::from(*digit).to_digit(16);
            let octet = u8::try_from((nibble(high)? << 4) | nibble(low)?).ok()?;
            Some((octet, rest))
        }
        [b'\\', c, rest @ ..] => Some((
            match c {
                b'\\' | b'|' => *c,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                _ => return None,
            },
            rest,
        )),
        _ => None,
    }
}

const BORDER: &[u8] = b" | ";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(line: &[u8]) -> Result<Message, LineError> {
        let block = Bytes::copy_from_slice(line);
        decode(&block, &block)
    }

    fn write(message: &Message) -> Vec<u8> {
        let mut out = Vec::new();
        encode(message, &mut out);
        out
    }

    #[test]
    fn frames_are_split_at_a_bar_between_spaces() {
        for (line, frames) in [
            ("hello", &["hello"][..]),
            ("", &[""]),
            ("topic | body", &["topic", "body"]),
            ("a |  | b", &["a", "", "b"]),
            (" | ", &["", ""]),
            ("a|b | c |", &["a|b", "c |"]),
            ("a \\| b", &["a | b"]),
            ("\\x41\\n\\t\\\\", &["A\n\t\\"]),
            ("dos\r", &["dos"]),
        ] {
            let expected = Message::from_frames(frames.iter().map(|f| (*f).to_owned()));
            assert_eq!(read(line.as_bytes()), Ok(expected), "{line:?}");
        }
        for line in ["\\", "a\\", "\\q", "\\x4", "\\xg0"] {
            assert!(read(line.as_bytes()).is_err(), "{line:?}");
        }
    }

    #[test]
    fn what_disturbs_a_terminal_is_escaped() {
        let message =
            Message::from_frames([&b"\x1b[2J\x7f"[..], "ü\u{9b}\u{202e}".as_bytes(), b"\xff|"]);
        let line = "\\x1b[2J\\x7f | ü\\xc2\\x9b\\xe2\\x80\\xae | \\xff\\|";
        assert_eq!(String::from_utf8(write(&message)).unwrap(), line);
    }

    #[test]
    fn subscriptions() {
        assert_eq!(decode_subscription(b"+a\\x00"), Ok(Line::Subscribe("a\0".into())));
        assert_eq!(decode_subscription(b"-"), Ok(Line::Unsubscribe(Bytes::new())));
        assert_eq!(decode_subscription(b""), Ok(Line::Blank));
        assert!(decode_subscription(b"a").is_err());
    }

    proptest! {
        #[test]
        fn messages_come_back(
            parts in proptest::collection::vec(
                prop_oneof![
                    proptest::collection::vec(any::<u8>(), 0..30),
                    "[ |\\\\nx0\r\n]{0,10}".prop_map(String::into_bytes),
                ],
                1..5,
            )
        ) {
            let message = Message::from_frames(parts);
            let line = write(&message);
            prop_assert!(!line.contains(&b'\n'));
            prop_assert_eq!(read(&line), Ok(message), "{}", line.escape_ascii());
        }
    }
}
