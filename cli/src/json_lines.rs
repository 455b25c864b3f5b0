//! Messages as JSON lines: `["text", {"hex": "00ff"}]`, and `{"subscribe": "topic"}`.
//!
//! Octets come back exactly: a frame that is UTF-8 is a string, any other one is in hex. No IO.

use std::fmt;

use bytes::Bytes;
use dragonwire::Message;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use crate::lines::{Line, LineError};

/// Reads one line. `block` is what `line` is a part of; plain strings stay parts of it.
pub(crate) fn decode(line: &[u8], block: &Bytes) -> Result<Line, LineError> {
    let line = line.trim_ascii();
    match line.first() {
        None => Ok(Line::Blank),
        Some(b'[') => match decode_plain(line, block) {
            Some(message) => Ok(Line::Message(message)),
            None => decode_any(line).map(Line::Message),
        },
        Some(b'{') => Ok(match serde_json::from_slice(line).map_err(malformed)? {
            Control::Subscribe(Frame(topic)) => Line::Subscribe(topic),
            Control::Unsubscribe(Frame(topic)) => Line::Unsubscribe(topic),
        }),
        Some(_) => Err(LineError::Malformed(
            "neither an array of frames nor {\"subscribe\": ...} nor {\"unsubscribe\": ...}".into(),
        )),
    }
}

/// Appends the message's array, without the end of the line.
pub(crate) fn encode(message: &Message, out: &mut Vec<u8>) {
    out.push(b'[');
    for (i, frame) in message.frames().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        if std::str::from_utf8(frame).is_ok() {
            encode_string(frame, out);
        } else {
            out.extend_from_slice(b"{\"hex\":\"");
            out.extend(frame.iter().flat_map(|octet| hex_digits(*octet)));
            out.extend_from_slice(b"\"}");
        }
    }
    out.push(b']');
}

/// The octets that a text of hexadecimal digits stands for.
pub(crate) fn parse_hex(text: &str) -> Result<Bytes, String> {
    let nibble = |digit: u8| char::from(digit).to_digit(16);
    let octet = |pair: &[u8]| match *pair {
        [high, low] => u8::try_from((nibble(high)? << 4) | nibble(low)?).ok(),
        _ => None,
    };
    match text.as_bytes().chunks(2).map(octet).collect::<Option<Vec<u8>>>() {
        Some(octets) => Ok(octets.into()),
        None => Err("not hexadecimal: write two digits 0-9, a-f for each octet".into()),
    }
}

/// The two digits of an octet.
pub(crate) fn hex_digits(octet: u8) -> [u8; 2] {
    let digit = |nibble: u8| if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
    [digit(octet >> 4), digit(octet & 15)]
}

/// The usual line: an array of strings without escapes. `None` sends it to the full parser.
fn decode_plain(line: &[u8], block: &Bytes) -> Option<Message> {
    let mut rest = line.strip_prefix(b"[")?;
    let mut first = None;
    let mut second = None;
    let mut others = Vec::new();
    loop {
        rest = rest.trim_ascii_start().strip_prefix(b"\"")?;
        let (frame, after) = split_plain_string(rest)?;
        let frame = block.slice_ref(frame);
        if first.is_none() {
            first = Some(frame);
        } else if second.is_none() {
            second = Some(frame);
        } else {
            others.push(frame);
        }
        match after.trim_ascii_start().split_first()? {
            (b',', next) => rest = next,
            (b']', []) => break,
            _ => return None,
        }
    }
    Some(match (first?, second) {
        (first, None) => first.into(),
        (first, Some(second)) if others.is_empty() => Message::pair(first, second),
        (first, Some(second)) => Message::from_frames([first, second].into_iter().chain(others)),
    })
}

/// Splits off the string that begins here, if it has no escapes and is well-formed.
fn split_plain_string(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr2(b'"', b'\\', text)?;
    let (string, after) = text.split_at_checked(end)?;
    let after = after.strip_prefix(b"\"")?;
    let plain = string.iter().all(|octet| *octet >= 0x20) && std::str::from_utf8(string).is_ok();
    plain.then_some((string, after))
}

fn decode_any(line: &[u8]) -> Result<Message, LineError> {
    let frames: Vec<Frame> = serde_json::from_slice(line).map_err(malformed)?;
    if frames.is_empty() {
        return Err(LineError::NoFrames);
    }
    Ok(Message::from_frames(frames.into_iter().map(|Frame(octets)| octets)))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn malformed(error: serde_json::Error) -> LineError {
    LineError::Malformed(explain(&error))
}

/// An error of a single line, which is told without "line 1".
pub(crate) fn explain(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column ", " at column ")
}

fn encode_string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let mut rest = text;
    while let Some(at) = rest.iter().position(|octet| needs_escape(*octet)) {
        let (plain, escaped) = rest.split_at(at);
        out.extend_from_slice(plain);
        let Some((octet, after)) = escaped.split_first() else { break };
        match octet {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *octet]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&hex_digits(*octet));
            }
        }
        rest = after;
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

fn needs_escape(octet: u8) -> bool {
    octet < 0x20 || octet == b'"' || octet == b'\\'
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Control {
    Subscribe(Frame),
    Unsubscribe(Frame),
}

struct Frame(Bytes);

impl<'de> Deserialize<'de> for Frame {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FrameVisitor)
    }
}

struct FrameVisitor;

impl<'de> Visitor<'de> for FrameVisitor {
    type Value = Frame;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or {\"hex\": \"00ff\"}")
    }

    fn visit_str<E>(self, text: &str) -> Result<Frame, E> {
        Ok(Frame(Bytes::copy_from_slice(text.as_bytes())))
    }

    fn visit_string<E>(self, text: String) -> Result<Frame, E> {
        Ok(Frame(text.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Frame, A::Error> {
        let Some(key) = map.next_key::<String>()? else {
            return Err(A::Error::custom("{} is no frame; write {\"hex\": \"00ff\"}"));
        };
        if key != "hex" {
            return Err(A::Error::unknown_field(&key, &["hex"]));
        }
        let octets = parse_hex(&map.next_value::<String>()?).map_err(A::Error::custom)?;
        match map.next_key::<String>()? {
            None => Ok(Frame(octets)),
            Some(_) => Err(A::Error::custom("{\"hex\": ...} has one member only")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(line: &str) -> Result<Line, LineError> {
        let block = Bytes::copy_from_slice(line.as_bytes());
        decode(&block, &block)
    }

    fn frames(frames: &[&[u8]]) -> Line {
        Line::Message(Message::from_frames(frames.iter().map(|f| Bytes::copy_from_slice(f))))
    }

    fn write(message: &Message) -> String {
        let mut out = Vec::new();
        encode(message, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_read() {
        for (line, expected) in [
            (r#"["a"]"#, frames(&[b"a"])),
            (r#" [ "a" , "" ] "#, frames(&[b"a", b""])),
            (r#"["a","b","c","d"]"#, frames(&[b"a", b"b", b"c", b"d"])),
            (r#"["gr\u00fc\u00df\n"]"#, frames(&["grüß\n".as_bytes()])),
            (r#"["grüß","😀"]"#, frames(&["grüß".as_bytes(), "😀".as_bytes()])),
            (r#"["\ud83d\ude00"]"#, frames(&["😀".as_bytes()])),
            (r#"[{"hex":"00fF"},"x"]"#, frames(&[b"\0\xff", b"x"])),
            (r#"[{"hex":""}]"#, frames(&[b""])),
            (r#"{"subscribe":"a"}"#, Line::Subscribe("a".into())),
            (r#"{ "unsubscribe" : {"hex":"ff"} }"#, Line::Unsubscribe(b"\xff"[..].into())),
            ("", Line::Blank),
            (" \t\r", Line::Blank),
        ] {
            assert_eq!(read(line), Ok(expected), "{line}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (line, part) in [
            ("[]", "at least one frame"),
            ("[ ]", "at least one frame"),
            ("nonsense", "neither an array"),
            ("\"a\"", "neither an array"),
            (
                "[1]",
                "invalid type: integer `1`, expected a string or {\"hex\": \"00ff\"} at column 2",
            ),
            ("[\"a\"", "EOF"),
            ("[\"a\"] x", "trailing characters"),
            ("[\"a\"]]", "trailing characters"),
            ("[\"a\",]", "trailing comma"),
            ("[\"a\tb\"]", "control character"),
            (r#"["\ud800"]"#, "hex escape"),
            (r#"["\udc00"]"#, "surrogate"),
            (r#"["\q"]"#, "invalid escape"),
            (r#"[{"hex":"0"}]"#, "not hexadecimal"),
            (r#"[{"hex":"0x"}]"#, "not hexadecimal"),
            (r#"[{"hex":"é"}]"#, "not hexadecimal"),
            (r#"[{"oct":"00"}]"#, "unknown field `oct`, expected `hex`"),
            (r#"[{"hex":"00","hex":"00"}]"#, "one member"),
            ("[{}]", "{} is no frame"),
            ("[[\"a\"]]", "invalid type: sequence"),
            ("{}", "expected value"),
            (r#"{"publish":"a"}"#, "unknown variant `publish`"),
            (r#"{"subscribe":"a","x":1}"#, "expected"),
            (r#"{"subscribe":["a"]}"#, "invalid type: sequence"),
        ] {
            match read(line) {
                Err(error) => assert!(error.to_string().contains(part), "{line}: {error}"),
                Ok(line_read) => panic!("{line} was read as {line_read:?}"),
            }
        }
        let block = Bytes::from_static(b"[\"\xff\"]");
        let error = decode(&block, &block).unwrap_err().to_string();
        assert!(error.contains("unicode"), "{error}");
    }

    #[test]
    fn frames_are_written_as_strings_or_hex() {
        let message =
            Message::from_frames([&b"a\"\\\n\x01\x7f"[..], b"", b"\xff\x00", "ü".as_bytes()]);
        let line = "[\"a\\\"\\\\\\n\\u0001\x7f\",\"\",{\"hex\":\"ff00\"},\"ü\"]";
        assert_eq!(write(&message), line);
    }

    fn any_frame() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..40),
            ".{0,20}".prop_map(String::into_bytes),
            "[a-z\"\\\\\n\t\u{1}]{0,20}".prop_map(String::into_bytes),
        ]
    }

    proptest! {
        #[test]
        fn messages_come_back(parts in proptest::collection::vec(any_frame(), 1..6)) {
            let message = Message::from_frames(parts);
            let line = write(&message);
            prop_assert_eq!(read(&line), Ok(Line::Message(message)), "{}", line);
        }

        #[test]
        fn strings_are_written_as_serde_json_writes_them(text in "[ -~\u{0}-\u{1f}ü😀]{0,30}") {
            let ours: String = serde_json::from_str(
                write(&text.clone().into()).trim_matches(&['[', ']'][..])).unwrap();
            prop_assert_eq!(ours, text);
        }

        #[test]
        fn the_fast_reader_agrees_with_the_full_one(line in r#"\[( ?["a,\\\]{é\t]){0,12}\]?"#) {
            let block = Bytes::from(line);
            if let Some(message) = decode_plain(&block, &block) {
                prop_assert_eq!(decode_any(&block), Ok(message));
            }
        }

        #[test]
        fn any_octets_are_read_or_refused(line in proptest::collection::vec(any::<u8>(), 0..60)) {
            let block = Bytes::from(line);
            let _ = decode(&block, &block);
        }
    }
}
