//! JSON text as Dragonflow 1.0.0 wrote it: the octets of Python's `json.dumps`, in a MessagePack string.

use std::fmt;
use std::io::{self, Write};

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess,
};
use serde::{Serialize, de};
use serde_json::ser::Formatter;
use serde_json::{Map, Number, Serializer, Value as Json};

use super::{
    Fields, MAX_DEPTH, MAX_PARTS, Text, enter, move_to_front, msgpack, take_part, value_from,
};
use crate::driver::update::{Update, Value};

/// Appends the body.
pub(super) fn encode(update: &Update, topic: &str, out: &mut Vec<u8>) {
    // in the order in which 1.0.0's dictionary had them
    #[derive(Serialize)]
    struct Event<'a> {
        action: Option<&'a str>,
        table: Option<&'a str>,
        topic: &'a str,
        value: Option<Object<'a>>,
        key: Option<&'a str>,
    }

    #[derive(Serialize)]
    #[serde(untagged)]
    enum Object<'a> {
        Text(&'a str),
        Other(&'a Json),
    }

    let event = Event {
        action: update.action.as_ref().map(|action| action.as_str()),
        table: update.table.as_deref(),
        topic,
        value: update.value.as_ref().map(|value| match value {
            Value::Text(text) => Object::Text(text),
            Value::Other(json) => Object::Other(json),
        }),
        key: update.key.as_deref(),
    };
    let start = out.len();
    // a vector takes everything, and all keys are text
    let _ = event.serialize(&mut Serializer::with_formatter(&mut *out, Python));
    let end = out.len();
    msgpack::put_text_header(out, end - start);
    move_to_front(out, start, end);
}

/// Reads the five fields.
pub(super) fn decode(text: &str) -> Result<Fields, String> {
    read(text, FieldsOfObject)
}

/// Reads one value of any kind, within the limits.
pub(super) fn decode_value(text: &str) -> Result<Json, String> {
    let mut left = MAX_PARTS;
    read(text, Part { left: &mut left, depth: MAX_DEPTH })
}

fn read<'de, S: DeserializeSeed<'de>>(text: &'de str, seed: S) -> Result<S::Value, String> {
    let mut json = serde_json::Deserializer::from_str(text);
    let value = seed.deserialize(&mut json).map_err(|error| error.to_string())?;
    json.end().map_err(|error| error.to_string())?;
    Ok(value)
}

/// How Python's `json.dumps` lays JSON out: a space behind each separator, and nothing but the
/// printable characters of ASCII.
struct Python;

impl Formatter for Python {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }

    /// What is below a space, quotes and backslashes do not come here: JSON has them escaped anyway.
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let escaped = |c: char| !matches!(c, ' '..='~');
        let mut rest = fragment;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| escaped(*c)) {
            let (plain, from) = rest.split_at(at);
            out.write_all(plain.as_bytes())?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}")?;
            }
            rest = from.split_at(c.len_utf8()).1;
        }
        out.write_all(rest.as_bytes())
    }

    /// Python has an exponent from 1e16 up and below 1e-4, with a sign and two digits at least.
    fn write_f64<W: ?Sized + Write>(&mut self, out: &mut W, value: f64) -> io::Result<()> {
        if value == 0.0 || (1e-4..1e16).contains(&value.abs()) {
            return write!(out, "{value:?}");
        }
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let exponent: i32 = exponent.parse().unwrap_or_default();
        write!(out, "{digits}e{exponent:+03}")
    }
}

/// The object of an event.
struct FieldsOfObject;

impl<'de> DeserializeSeed<'de> for FieldsOfObject {
    type Value = Fields;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Fields, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> de::Visitor<'de> for FieldsOfObject {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with the five fields of an event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields = Fields::default();
        while let Some(name) = map.next_key::<String>()? {
            if name == "value" {
                let mut left = MAX_PARTS;
                let part = Part { left: &mut left, depth: MAX_DEPTH };
                fields.value = Some(value_from(map.next_value_seed(part)?));
            } else if let Some(field) = fields.text(&name) {
                *field = Some(map.next_value::<TextOrNothing>()?.0);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(fields)
    }
}

/// A field that has to be text.
struct TextOrNothing(Text);

impl<'de> Deserialize<'de> for TextOrNothing {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(Ok(Some(text.to_owned())))
            }

            fn visit_unit<E>(self) -> Result<Text, E> {
                Ok(Ok(None))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Text, E> {
                Ok(Err("a boolean"))
            }

            fn visit_u64<E>(self, _: u64) -> Result<Text, E> {
                Ok(Err("a number"))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Text, E> {
                Ok(Err("a number"))
            }

            fn visit_f64<E>(self, _: f64) -> Result<Text, E> {
                Ok(Err("a number"))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Text, A::Error> {
                while array.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Err("an array"))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Text, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Err("a map"))
            }
        }

        json.deserialize_any(Visitor).map(Self)
    }
}

/// A value of any kind, or a part of one.
struct Part<'a> {
    left: &'a mut usize,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Part<'_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Json, D::Error> {
        take_part(self.left).map_err(D::Error::custom)?;
        json.deserialize_any(self)
    }
}

impl<'de> de::Visitor<'de> for Part<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
        Ok(number.into())
    }

    fn visit_i64<E>(self, number: i64) -> Result<Json, E> {
        Ok(number.into())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Json, E> {
        let number = Number::from_f64(number).ok_or_else(|| E::custom("an infinite number"))?;
        Ok(number.into())
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Json, A::Error> {
        let depth = enter(self.depth).map_err(A::Error::custom)?;
        let mut parts = Vec::new();
        while let Some(part) = array.next_element_seed(Part { left: &mut *self.left, depth })? {
            parts.push(part);
        }
        Ok(parts.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let depth = enter(self.depth).map_err(A::Error::custom)?;
        let mut parts = Map::new();
        while let Some(key) = map.next_key()? {
            parts.insert(key, map.next_value_seed(Part { left: &mut *self.left, depth })?);
        }
        Ok(parts.into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ORIGIN, fault};
    use super::super::{Body, Codec, decode};
    use super::*;
    use crate::driver::update::Action;

    fn python(value: &Json) -> String {
        let mut out = Vec::new();
        value.serialize(&mut Serializer::with_formatter(&mut out, Python)).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// As a body.
    fn body(text: &str) -> Vec<u8> {
        let mut body = Vec::new();
        msgpack::put_text_header(&mut body, text.len());
        body.extend_from_slice(text.as_bytes());
        body
    }

    #[test]
    fn text_is_escaped_as_python_does() {
        let text = "\"\\/\u{8}\u{c}\n\r\t\0\u{1f}\u{7f} é\u{2028}\u{ffff}😀~ ";
        let expected = r#""\"\\/\b\f\n\r\t\u0000\u001f\u007f \u00e9\u2028\uffff\ud83d\ude00~ ""#;
        assert_eq!(python(&text.into()), expected);
        assert_eq!(decode_value(expected), Ok(text.into()));
    }

    #[test]
    fn numbers_are_written_as_python_does() {
        let text = "[0.1, 1.0, -0.0, 1000000000000000.0, 1e+16, 1.2345678901234568e+17, 1e+22, \
                    1.5e+300, 0.0001, 1e-05, 1.234e-05, 5e-324, -2.5e-07, 9999999999999998.0, \
                    1.7976931348623157e+308, -7, 18446744073709551615]";
        assert_eq!(python(&decode_value(text).unwrap()), text);
    }

    #[test]
    fn arrays_and_maps_are_laid_out_as_python_does() {
        let text = r#"{"a": [1, {"b": null, "c": true}], "d": {}, "e": [], "f": -7}"#;
        assert_eq!(python(&decode_value(text).unwrap()), text);
    }

    #[test]
    fn an_event_has_the_octets_of_dragonflow_1_0_0() {
        let update = Update::new("lport", "7e4a", Action::Create).with_topic("none of it");
        let text =
            r#"{"action": "create", "table": "lport", "topic": "D", "value": null, "key": "7e4a"}"#;
        let mut out = Vec::new();
        Codec::Json.encode(&update, "D", &ORIGIN, &mut out);
        assert_eq!(out, [b"\xda\x00\x52", text.as_bytes()].concat());
    }

    #[test]
    fn a_long_event_has_a_long_header() {
        let update = Update::new("t", "k", Action::Set).with_value("x".repeat(70_000));
        let mut out = Vec::new();
        Codec::Json.encode(&update, "D", &ORIGIN, &mut out);
        assert_eq!(
            out.len(),
            5 + 70_000
                + r#"{"action": "set", "table": "t", "topic": "D", "value": "", "key": "k"}"#.len()
        );
        assert_eq!(out[..6], [0xdb, 0, 1, 0x11, 0xb6, b'{']);
    }

    #[test]
    fn any_string_family_and_any_order_are_read() {
        let text = r#" {"value":7,"more":[{"a":[]}],"key":"k","key":null,"topic":"é\u00e9","action":"odd","table":"t"} "#;
        let expected = Update {
            table: Some("t".to_owned()),
            key: None,
            action: Some(Action::from("odd")),
            value: Some(Value::Other(7.into())),
            topic: Some("éé".to_owned()),
            timestamp: None,
        };
        let len = u8::try_from(text.len()).unwrap();
        for header in [&[0xd9, len][..], &[0xda, 0, len], &[0xdb, 0, 0, 0, len]] {
            let body = [header, text.as_bytes()].concat();
            assert_eq!(decode(&body), Ok(Body::Event { update: expected.clone(), origin: None }));
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let event = |table: &str| {
            format!(r#"{{"table":{table},"key":"k","action":"set","value":null,"topic":"D"}}"#)
        };
        for (table, kind) in [
            ("7", "a number"),
            ("-7", "a number"),
            ("0.5", "a number"),
            ("true", "a boolean"),
            (r#"["t",[1]]"#, "an array"),
            (r#"{"t":{"u":1}}"#, "a map"),
        ] {
            let reason = fault(&body(&event(table)));
            assert_eq!(reason, format!("the field \"table\" is {kind}, not text"));
        }
        for name in ["table", "key", "action", "value", "topic"] {
            let reason = fault(&body(&event("null").replace(name, "else")));
            assert_eq!(reason, format!("the field \"{name}\" is missing"));
        }
        for (text, expected) in [
            ("7", "an object with the five fields of an event"),
            ("[]", "an object with the five fields of an event"),
            ("", "EOF while parsing a value"),
            (r#"{"table": "#, "EOF while parsing a value"),
            (&event("NaN"), "expected value"),
            (&event("null").replace("null", "Infinity"), "expected value"),
            (&event("null").replace("\"value\":null", "\"value\":1e999"), "number out of range"),
            (&event(r#""\ud800""#), "hex escape"),
            (&(event("null") + "x"), "trailing characters"),
        ] {
            let reason = fault(&body(text));
            assert!(reason.contains(expected), "{text}: {reason}");
        }
        assert!(fault(b"\xa2{}").contains("missing"));
        assert!(fault(b"\xa2\xff\xff").contains("UTF-8"));
        assert_eq!(fault(b"\xa2{}\xc0"), "1 octets after the end");
    }
}
