//! MessagePack as Dragonflow writes it: a map of the five fields from 2.0.0 on, and in any release only
//! the string family of MessagePack's first edition (no str8, no bin). What is read may have the newer
//! ones as well, except for extensions, which JSON has no place for.
//!
//! <https://github.com/msgpack/msgpack/blob/master/spec.md>

use serde_json::{Map, Number, Value as Json};

use super::{Fields, MAX_DEPTH, MAX_PARTS, Text, enter, take_part, value_from};
use crate::driver::update::{Update, Value};

/// Appends the body.
pub(super) fn encode(update: &Update, out: &mut Vec<u8>) {
    out.push(0x85);
    put_text(out, "table");
    put_text_or_nothing(out, update.table.as_deref());
    put_text(out, "key");
    put_text_or_nothing(out, update.key.as_deref());
    put_text(out, "action");
    put_text_or_nothing(out, update.action.as_ref().map(|action| action.as_str()));
    put_text(out, "value");
    match &update.value {
        Some(Value::Other(json)) => put_value(out, json),
        value => put_text_or_nothing(out, value.as_ref().and_then(Value::as_text)),
    }
    put_text(out, "topic");
    put_text_or_nothing(out, update.topic.as_deref());
}

fn put_text_or_nothing(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        Some(text) => put_text(out, text),
        None => out.push(0xc0),
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_text_header(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

/// What comes before a text of so many octets.
pub(super) fn put_text_header(out: &mut Vec<u8>, len: usize) {
    put_header(out, len, [0xa0, 0xda, 0xdb], 32);
}

/// A length: in the first of the octets while it is less than `small`, else after the second or third.
fn put_header(out: &mut Vec<u8>, len: usize, [fix, half, word]: [u8; 3], small: u8) {
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(len), _) if len < small => out.push(fix | len),
        (_, Ok(len)) => put(out, half, len.to_be_bytes()),
        // no message has 4 GiB
        _ => put(out, word, (len as u32).to_be_bytes()),
    }
}

fn put<const N: usize>(out: &mut Vec<u8>, head: u8, octets: [u8; N]) {
    out.push(head);
    out.extend_from_slice(&octets);
}

fn put_value(out: &mut Vec<u8>, value: &Json) {
    match value {
        Json::Null => out.push(0xc0),
        Json::Bool(false) => out.push(0xc2),
        Json::Bool(true) => out.push(0xc3),
        Json::Number(number) => put_number(out, number),
        Json::String(text) => put_text(out, text),
        Json::Array(parts) => {
            put_header(out, parts.len(), [0x90, 0xdc, 0xdd], 16);
            for part in parts {
                put_value(out, part);
            }
        }
        Json::Object(parts) => {
            put_header(out, parts.len(), [0x80, 0xde, 0xdf], 16);
            for (key, part) in parts {
                put_text(out, key);
                put_value(out, part);
            }
        }
    }
}

/// In the fewest octets, as upstream's encoder.
fn put_number(out: &mut Vec<u8>, number: &Number) {
    if let Some(n) = number.as_u64() {
        match n {
            0..=0x7f => out.push(n as u8),
            0x80..=0xff => put(out, 0xcc, (n as u8).to_be_bytes()),
            0x100..=0xffff => put(out, 0xcd, (n as u16).to_be_bytes()),
            0x1_0000..=0xffff_ffff => put(out, 0xce, (n as u32).to_be_bytes()),
            _ => put(out, 0xcf, n.to_be_bytes()),
        }
    } else if let Some(n) = number.as_i64() {
        match n {
            -0x20.. => out.push(n as u8),
            -0x80.. => put(out, 0xd0, (n as i8).to_be_bytes()),
            -0x8000.. => put(out, 0xd1, (n as i16).to_be_bytes()),
            -0x8000_0000.. => put(out, 0xd2, (n as i32).to_be_bytes()),
            _ => put(out, 0xd3, n.to_be_bytes()),
        }
    } else {
        put(out, 0xcb, number.as_f64().unwrap_or_default().to_be_bytes());
    }
}

/// Reads the five fields from a map.
pub(super) fn decode(body: &[u8]) -> Result<Fields, String> {
    let mut reader = Reader { rest: body, parts: MAX_PARTS };
    let Item::Map(len) = reader.item()? else { return Err("no map".to_owned()) };
    let mut fields = Fields::default();
    for _ in 0..len {
        let key = reader.item()?;
        let name = if let Item::Text(name) = key { name } else { "" };
        if name == "value" {
            reader.parts = MAX_PARTS;
            fields.value = Some(value_from(reader.value(MAX_DEPTH)?));
        } else if let Some(field) = fields.text(name) {
            *field = Some(reader.text()?);
        } else {
            reader.skip(key)?;
            let value = reader.item()?;
            reader.skip(value)?;
        }
    }
    reader.end()?;
    Ok(fields)
}

/// Reads a string.
pub(super) fn decode_text(body: &[u8]) -> Result<&str, String> {
    let mut reader = Reader { rest: body, parts: MAX_PARTS };
    let Item::Text(text) = reader.item()? else { return Err("no string".to_owned()) };
    reader.end()?;
    Ok(text)
}

/// The next thing in a body: of an array or a map only how many follow.
#[derive(Debug, Clone, Copy)]
enum Item<'a> {
    Nil,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(&'a str),
    Octets(&'a [u8]),
    Array(u32),
    Map(u32),
}

/// What of a body is to be read.
struct Reader<'a> {
    rest: &'a [u8],
    /// How many parts the value may still have.
    parts: usize,
}

impl<'a> Reader<'a> {
    fn item(&mut self) -> Result<Item<'a>, String> {
        let head = self.u8()?;
        Ok(match head {
            0x00..=0x7f => Item::Unsigned(head.into()),
            0x80..=0x8f => Item::Map((head & 0x0f).into()),
            0x90..=0x9f => Item::Array((head & 0x0f).into()),
            0xa0..=0xbf => self.text_of((head & 0x1f).into())?,
            0xc0 => Item::Nil,
            0xc2 => Item::Bool(false),
            0xc3 => Item::Bool(true),
            0xc4 => Item::Octets(self.u8().and_then(|len| self.take(len.into()))?),
            0xc5 => Item::Octets(self.u16().and_then(|len| self.take(len.into()))?),
            0xc6 => Item::Octets(self.u32().and_then(|len| self.take(len))?),
            0xca => Item::Float(f32::from_be_bytes(self.array()?).into()),
            0xcb => Item::Float(f64::from_be_bytes(self.array()?)),
            0xcc => Item::Unsigned(self.u8()?.into()),
            0xcd => Item::Unsigned(self.u16()?.into()),
            0xce => Item::Unsigned(self.u32()?.into()),
            0xcf => Item::Unsigned(u64::from_be_bytes(self.array()?)),
            0xd0 => Item::Signed(i8::from_be_bytes(self.array()?).into()),
            0xd1 => Item::Signed(i16::from_be_bytes(self.array()?).into()),
            0xd2 => Item::Signed(i32::from_be_bytes(self.array()?).into()),
            0xd3 => Item::Signed(i64::from_be_bytes(self.array()?)),
            0xd9 => self.u8().and_then(|len| self.text_of(len.into()))?,
            0xda => self.u16().and_then(|len| self.text_of(len.into()))?,
            0xdb => self.u32().and_then(|len| self.text_of(len))?,
            0xdc => Item::Array(self.u16()?.into()),
            0xdd => Item::Array(self.u32()?),
            0xde => Item::Map(self.u16()?.into()),
            0xdf => Item::Map(self.u32()?),
            0xe0..=0xff => Item::Signed(head.cast_signed().into()),
            0xc7..=0xc9 | 0xd4..=0xd8 => {
                return Err(format!("an extension of MessagePack (0x{head:02x})"));
            }
            0xc1 => return Err("0xc1, which MessagePack does not use".to_owned()),
        })
    }

    fn text_of(&mut self, len: u32) -> Result<Item<'a>, String> {
        let text = std::str::from_utf8(self.take(len)?);
        text.map(Item::Text).map_err(|error| format!("a string that is not UTF-8: {error}"))
    }

    fn take(&mut self, len: u32) -> Result<&'a [u8], String> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let (octets, rest) = self.rest.split_at_checked(len).ok_or(CUT_SHORT)?;
        self.rest = rest;
        Ok(octets)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (octets, rest) = self.rest.split_first_chunk().ok_or(CUT_SHORT)?;
        self.rest = rest;
        Ok(*octets)
    }

    fn u8(&mut self) -> Result<u8, String> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    fn u16(&mut self) -> Result<u16, String> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// Goes over what is in an item.
    fn skip(&mut self, item: Item<'_>) -> Result<(), String> {
        let mut pending = item.parts();
        while pending > 0 {
            let parts = self.item()?.parts();
            pending = (pending - 1).saturating_add(parts);
        }
        Ok(())
    }

    /// A field that has to be text.
    fn text(&mut self) -> Result<Text, String> {
        let item = self.item()?;
        self.skip(item)?;
        Ok(match item {
            Item::Text(text) => Ok(Some(text.to_owned())),
            Item::Nil => Ok(None),
            other => Err(other.kind()),
        })
    }

    fn value(&mut self, depth: usize) -> Result<Json, String> {
        take_part(&mut self.parts)?;
        match self.item()? {
            Item::Array(len) => {
                let depth = enter(depth)?;
                // grows with what is there, not with what is announced
                let mut parts = Vec::new();
                for _ in 0..len {
                    parts.push(self.value(depth)?);
                }
                Ok(parts.into())
            }
            Item::Map(len) => {
                let depth = enter(depth)?;
                let mut parts = Map::new();
                for _ in 0..len {
                    let key = self.key()?;
                    parts.insert(key, self.value(depth)?);
                }
                Ok(parts.into())
            }
            item => self.leaf(item),
        }
    }

    /// A map's key; one that is not text becomes its JSON text. Arrays and maps are no keys for Python
    /// either, and the text of one within another would double in length with each.
    fn key(&mut self) -> Result<String, String> {
        match self.item()? {
            Item::Text(text) => Ok(text.to_owned()),
            item @ (Item::Array(_) | Item::Map(_)) => {
                Err(format!("a map's key is {}", item.kind()))
            }
            item => self.leaf(item).map(|value| value.to_string()),
        }
    }

    /// A value without parts, except for octets, each of which is one.
    fn leaf(&mut self, item: Item<'_>) -> Result<Json, String> {
        Ok(match item {
            Item::Nil | Item::Array(_) | Item::Map(_) => Json::Null,
            Item::Bool(value) => value.into(),
            Item::Unsigned(number) => number.into(),
            Item::Signed(number) => number.into(),
            Item::Float(number) => {
                Number::from_f64(number).ok_or("a float that is no finite number")?.into()
            }
            Item::Text(text) => text.into(),
            Item::Octets(octets) => {
                let mut parts = Vec::new();
                for octet in octets {
                    take_part(&mut self.parts)?;
                    parts.push((*octet).into());
                }
                Json::Array(parts)
            }
        })
    }

    fn end(&self) -> Result<(), String> {
        match self.rest.len() {
            0 => Ok(()),
            len => Err(format!("{len} octets after the end")),
        }
    }
}

impl Item<'_> {
    /// How many items are in it.
    fn parts(self) -> u64 {
        match self {
            Item::Array(len) => len.into(),
            Item::Map(len) => 2 * u64::from(len),
            _ => 0,
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Item::Nil => "nothing",
            Item::Bool(_) => "a boolean",
            Item::Unsigned(_) | Item::Signed(_) | Item::Float(_) => "a number",
            Item::Text(_) => "text",
            Item::Octets(_) => "octets",
            Item::Array(_) => "an array",
            Item::Map(_) => "a map",
        }
    }
}

const CUT_SHORT: &str = "MessagePack that is cut short";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{ORIGIN, fault};
    use super::super::{Body, Codec, decode};
    use super::*;
    use crate::driver::update::Action;

    /// An event whose value is these octets.
    fn event(value: &[u8]) -> Vec<u8> {
        let front = b"\x85\xa5table\xa1t\xa3key\xc0\xa6action\xa3set\xa5topic\xa1D\xa5value";
        [&front[..], value].concat()
    }

    /// The value of such an event.
    fn value(octets: &[u8]) -> Option<Value> {
        let body = event(octets);
        match decode(&body) {
            Ok(Body::Event { update, origin: None }) => update.value,
            other => panic!("{body:02x?}: {other:?}"),
        }
    }

    fn other(json: Json) -> Option<Value> {
        Some(Value::Other(json))
    }

    #[test]
    fn an_event_has_the_octets_of_dragonflow() {
        let update = Update::new("lport", "7e4a", Action::Delete);
        let mut out = Vec::new();
        Codec::Msgpack.encode(&update, "another", &ORIGIN, &mut out);
        let expected =
            b"\x85\xa5table\xa5lport\xa3key\xa47e4a\xa6action\xa6delete\xa5value\xc0\xa5topic\xa1D";
        assert_eq!(out, expected);
    }

    /// Octets of Python's msgpack with `use_bin_type=False`.
    #[test]
    fn values_have_the_octets_of_upstreams_encoder() {
        let wide: Map<_, _> = (10..26).map(|n| (n.to_string(), json!(n))).collect();
        let wide_octets: Vec<u8> =
            (10..26).flat_map(|n| [&[0xa2], n.to_string().as_bytes(), &[n]].concat()).collect();
        for (json, octets) in [
            (json!(true), &b"\xc3"[..]),
            (json!(false), b"\xc2"),
            (json!(0), b"\x00"),
            (json!(127), b"\x7f"),
            (json!(128), b"\xcc\x80"),
            (json!(255), b"\xcc\xff"),
            (json!(256), b"\xcd\x01\x00"),
            (json!(65_535), b"\xcd\xff\xff"),
            (json!(65_536), b"\xce\x00\x01\x00\x00"),
            (json!(u32::MAX), b"\xce\xff\xff\xff\xff"),
            (json!(1_u64 << 32), b"\xcf\x00\x00\x00\x01\x00\x00\x00\x00"),
            (json!(u64::MAX), b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff"),
            (json!(-1), b"\xff"),
            (json!(-32), b"\xe0"),
            (json!(-33), b"\xd0\xdf"),
            (json!(-128), b"\xd0\x80"),
            (json!(-129), b"\xd1\xff\x7f"),
            (json!(-32_768), b"\xd1\x80\x00"),
            (json!(-32_769), b"\xd2\xff\xff\x7f\xff"),
            (json!(i32::MIN), b"\xd2\x80\x00\x00\x00"),
            (json!(i64::from(i32::MIN) - 1), b"\xd3\xff\xff\xff\xff\x7f\xff\xff\xff"),
            (json!(i64::MIN), b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00"),
            (json!(1.5), b"\xcb\x3f\xf8\x00\x00\x00\x00\x00\x00"),
            (json!([]), b"\x90"),
            (json!({}), b"\x80"),
            (json!({"a": [1, {"b": null}]}), b"\x81\xa1a\x92\x01\x81\xa1b\xc0"),
            (
                json!((0..16).collect::<Vec<_>>()),
                b"\xdc\x00\x10\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f",
            ),
            (Json::Object(wide), &[b"\xde\x00\x10", &wide_octets[..]].concat()),
        ] {
            let mut out = Vec::new();
            put_value(&mut out, &json);
            assert_eq!(out, octets, "{json}");
            assert_eq!(value(octets), other(json));
        }
    }

    #[test]
    fn text_is_of_the_old_string_family() {
        for (len, header) in [
            (0, &b"\xa0"[..]),
            (31, b"\xbf"),
            (32, b"\xda\x00\x20"),
            (255, b"\xda\x00\xff"),
            (65_535, b"\xda\xff\xff"),
            (65_536, b"\xdb\x00\x01\x00\x00"),
        ] {
            let text = "x".repeat(len);
            let mut out = Vec::new();
            put_text(&mut out, &text);
            assert_eq!(out, [header, text.as_bytes()].concat());
            assert_eq!(value(&out), Some(Value::Text(text)));
        }
    }

    #[test]
    fn what_newer_encoders_write_is_read() {
        assert_eq!(value(b"\xc0"), None);
        assert_eq!(value(b"\xd9\x02ab"), Some(Value::Text("ab".to_owned())));
        assert_eq!(value(b"\xdb\0\0\0\x02ab"), Some(Value::Text("ab".to_owned())));
        assert_eq!(value(b"\xca\x3f\x80\0\0"), other(json!(1.0)));
        assert_eq!(value(b"\xd3\0\0\0\0\0\0\0\x07"), other(json!(7)));
        assert_eq!(value(b"\xc4\x02\x01\xff"), other(json!([1, 255])));
        assert_eq!(value(b"\xc5\0\x01\x01"), other(json!([1])));
        assert_eq!(value(b"\xc6\0\0\0\0"), other(json!([])));
        assert_eq!(value(b"\xdd\0\0\0\x01\xa1x"), other(json!(["x"])));
        assert_eq!(value(b"\xdf\0\0\0\x01\xa1x\xc2"), other(json!({"x": false})));
    }

    #[test]
    fn keys_that_are_not_text_become_their_json() {
        let octets = b"\x85\x07\x01\xc0\x02\xc3\x03\xcb\x3f\xf8\0\0\0\0\0\0\x04\xc4\x01\x09\x05";
        let expected = json!({"7": 1, "null": 2, "true": 3, "1.5": 4, "[9]": 5});
        assert_eq!(value(octets), other(expected));
        assert!(fault(&event(b"\x81\x90\x01")).contains("a map's key is an array"));
        assert!(fault(&event(b"\x81\x81\x01\x02\x01")).contains("a map's key is a map"));
    }

    #[test]
    fn other_fields_are_ignored_and_the_last_of_two_counts() {
        let body = b"\x89\xa5table\x07\xa4more\x92\x81\x01\x90\xc4\x01x\x07\x01\xa5value\xa1v\
                     \xa3key\xa1k\xa6action\xc0\xa5value\x08\xa5table\xa1t\xa5topic\xc0";
        let Ok(Body::Event { update, .. }) = decode(body) else { panic!("{:?}", decode(body)) };
        let expected = Update {
            table: Some("t".to_owned()),
            key: Some("k".to_owned()),
            action: None,
            value: other(json!(8)),
            topic: None,
            timestamp: None,
        };
        assert_eq!(update, expected);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (octets, kind) in [
            (&b"\x07"[..], "a number"),
            (b"\xd0\x80", "a number"),
            (b"\xca\0\0\0\0", "a number"),
            (b"\xc2", "a boolean"),
            (b"\xc4\x01t", "octets"),
            (b"\x92\x01\x90", "an array"),
            (b"\x81\x01\x90", "a map"),
        ] {
            let body = [&event(b"\x01")[..], b"\xa5topic", octets].concat();
            let body = [b"\x86", &body[1..]].concat();
            assert_eq!(fault(&body), format!("the field \"topic\" is {kind}, not text"));
        }
        for name in ["table", "key", "action", "value", "topic"] {
            let text = event(b"\xc0");
            let at = text.windows(name.len()).position(|part| part == name.as_bytes()).unwrap();
            let mut body = text;
            body[at] = b'_';
            assert_eq!(fault(&body), format!("the field \"{name}\" is missing"));
        }
        for (octets, expected) in [
            (&b"\x01\x02"[..], "1 octets after the end"),
            (b"", "cut short"),
            (b"\xa2x", "cut short"),
            (b"\xdb\xff\xff\xff\xffx", "cut short"),
            (b"\xc6\xff\xff\xff\xffx", "cut short"),
            (b"\xdd\xff\xff\xff\xff\x01", "cut short"),
            (b"\xdf\xff\xff\xff\xff\x01\x01", "cut short"),
            (b"\xa1\xff", "not UTF-8"),
            (b"\x81\xa1\xff\x01", "not UTF-8"),
            (b"\xc1", "0xc1"),
            (b"\xd6\xff\0\0\0\0", "an extension of MessagePack (0xd6)"),
            (b"\xc7\0\x01", "an extension of MessagePack (0xc7)"),
            (b"\xca\x7f\xc0\0\0", "no finite number"),
            (b"\xcb\x7f\xf0\0\0\0\0\0\0", "no finite number"),
        ] {
            let reason = fault(&event(octets));
            assert!(reason.contains(expected), "{octets:02x?}: {reason}");
        }
    }
}
