//! Bodies in Protocol Buffers (`proto/event.proto`). Events are written without prost, straight from
//! what they borrow, and the usual ones read so; tests hold both to prost's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use prost::Message;
use uuid::Uuid;

use super::{Body, CodecError, End, Origin, Position, Positions, json, move_to_front, value_from};
use crate::append::append;
use crate::driver::update::{Action, Update, Value};

/// What `tests/proto_codegen.rs` made of the schema.
#[allow(clippy::all, unreachable_pub, unused_qualifications)]
mod wire {
    include!("dragonwire.v1.rs");
}

/// The first octet of an event: its publisher's key.
pub(super) const EVENT: u8 = 0x0a;

/// The first octet of positions: their announcer's key.
pub(super) const POSITIONS: u8 = 0x42;

/// Appends the body of an event. The first three fields are always written, so that the origin is
/// where [`peek_origin`] looks first.
pub(super) fn encode(update: &Update, origin: &Origin, out: &mut Vec<u8>) {
    out.extend_from_slice(&[EVENT, 16]);
    out.extend_from_slice(origin.publisher.as_bytes());
    out.push(EPOCH);
    out.extend_from_slice(&origin.epoch.to_le_bytes());
    out.push(SEQUENCE);
    out.extend_from_slice(&origin.sequence.to_le_bytes());
    put_text(out, TABLE, update.table.as_deref());
    put_text(out, KEY, update.key.as_deref());
    put_text(out, ACTION, update.action.as_ref().map(Action::as_str));
    match &update.value {
        Some(Value::Text(text)) => put_text(out, TEXT, Some(text)),
        Some(Value::Other(value)) => {
            out.push(0x42);
            let start = out.len();
            // a vector takes everything, and all keys are text
            let _ = serde_json::to_writer(&mut *out, value);
            let end = out.len();
            put_varint(out, (end - start) as u64);
            move_to_front(out, start, end);
        }
        None => {}
    }
    put_text(out, TOPIC, update.topic.as_deref());
    if let Some(time) = update.timestamp {
        let micros = micros_of(time);
        out.push(TIMESTAMP);
        // zigzag
        put_varint(out, ((micros << 1) ^ (micros >> 63)).cast_unsigned());
    }
}

fn put_text(out: &mut Vec<u8>, key: u8, text: Option<&str>) {
    if let Some(text) = text {
        out.push(key);
        put_varint(out, text.len() as u64);
        append(out, text.as_bytes());
    }
}

#[inline]
fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n > 0x7f {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Since 1970, negative before; what no 64 bits hold is the furthest that they do.
fn micros_of(time: SystemTime) -> i64 {
    let micros = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_micros() as i128,
        Err(before) => -(before.duration().as_micros() as i128),
    };
    micros.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

fn time_of(micros: i64) -> Option<SystemTime> {
    let distance = Duration::from_micros(micros.unsigned_abs());
    if micros < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) }
}

/// Where an event comes from.
pub(super) fn peek_origin(body: &[u8]) -> Option<Origin> {
    let origin = match body {
        [EVENT, 16, rest @ ..] => fixed_origin(rest).or_else(|| found_origin(body)),
        [EVENT, ..] => found_origin(body),
        _ => None,
    };
    origin.filter(|origin| origin.sequence > 0)
}

/// The origin where dragonwire's own encoder puts it; `rest` begins with the publisher.
fn fixed_origin(rest: &[u8]) -> Option<Origin> {
    let (publisher, rest) = rest.split_first_chunk()?;
    let (epoch, rest) = rest.strip_prefix(&[EPOCH])?.split_first_chunk()?;
    let (sequence, _) = rest.strip_prefix(&[SEQUENCE])?.split_first_chunk()?;
    Some(Origin {
        publisher: Uuid::from_bytes(*publisher),
        epoch: u64::from_le_bytes(*epoch),
        sequence: u64::from_le_bytes(*sequence),
    })
}

/// The origin wherever another encoder may have put it.
fn found_origin(body: &[u8]) -> Option<Origin> {
    let (mut publisher, mut epoch, mut sequence) = (None, None, None);
    let mut rest = body;
    while !rest.is_empty() && (publisher.is_none() || epoch.is_none() || sequence.is_none()) {
        match next_field(&mut rest)? {
            (1, Payload::Octets(id)) if publisher.is_none() => {
                publisher = Some(Uuid::from_slice(id).ok()?);
            }
            (2, Payload::Fixed64(n)) => epoch = epoch.or(Some(n)),
            (3, Payload::Fixed64(n)) => sequence = sequence.or(Some(n)),
            _ => {}
        }
    }
    // encoders leave out what is zero
    Some(Origin { publisher: publisher?, epoch: epoch.unwrap_or_default(), sequence: sequence? })
}

/// A field as it is on the wire.
enum Payload<'a> {
    Fixed64(u64),
    Octets(&'a [u8]),
    Other,
}

/// Takes a field off: its number and what is in it.
fn next_field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Payload<'a>)> {
    let key = take_varint(rest)?;
    let payload = match key & 7 {
        0 => {
            take_varint(rest)?;
            Payload::Other
        }
        1 => {
            let (octets, after) = rest.split_first_chunk()?;
            *rest = after;
            Payload::Fixed64(u64::from_le_bytes(*octets))
        }
        2 => Payload::Octets(take_octets(rest)?),
        5 => {
            *rest = rest.split_at_checked(4)?.1;
            Payload::Other
        }
        // groups, which the schema has none of
        _ => return None,
    };
    Some((key >> 3, payload))
}

#[inline]
fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    if let [octet @ ..0x80, after @ ..] = *rest {
        *rest = after;
        return Some(u64::from(*octet));
    }
    take_long_varint(rest)
}

fn take_long_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut n = 0;
    for shift in (0..64).step_by(7) {
        let (octet, after) = rest.split_first()?;
        *rest = after;
        if shift == 63 && *octet > 1 {
            return None;
        }
        n |= u64::from(octet & 0x7f) << shift;
        if octet & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}

/// Reads an event. If no more than its origin can be read, the error has that.
pub(super) fn decode_event(body: &[u8]) -> Result<Body, CodecError> {
    if let Some((update, origin)) = usual_event(body) {
        return Ok(Body::Event { update, origin: Some(origin) });
    }
    let front = peek_origin(body);
    event_from(body, front).map_err(|reason| match front {
        Some(origin) => CodecError::Event { origin, reason },
        None => CodecError::Malformed(reason),
    })
}

/// An event as dragonwire's own encoder writes it: 1 861 instructions where the general way takes
/// 3 199. What is in any way unusual is left to that one.
fn usual_event(body: &[u8]) -> Option<(Update, Origin)> {
    let mut rest = body.strip_prefix(&[EVENT, 16])?;
    let origin = fixed_origin(rest).filter(|origin| origin.sequence > 0)?;
    rest = rest.get(FRONT - 2..)?;
    let mut update =
        Update { table: None, key: None, action: None, value: None, topic: None, timestamp: None };
    while let Some((key, after)) = rest.split_first() {
        rest = after;
        match *key {
            TABLE => update.table = Some(take_text(&mut rest)?),
            KEY => update.key = Some(take_text(&mut rest)?),
            ACTION => {
                let word = std::str::from_utf8(take_octets(&mut rest)?).ok()?;
                update.action = Some(Action::from(word));
            }
            TEXT => update.value = Some(Value::Text(take_text(&mut rest)?)),
            TOPIC => update.topic = Some(take_text(&mut rest)?),
            TIMESTAMP => {
                let zigzag = take_varint(&mut rest)?;
                let micros = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
                update.timestamp = time_of(micros);
            }
            _ => return None,
        }
    }
    Some((update, origin))
}

fn take_text(rest: &mut &[u8]) -> Option<String> {
    let octets = take_octets(rest)?;
    let mut text = Vec::with_capacity(octets.len());
    append(&mut text, octets);
    String::from_utf8(text).ok()
}

fn take_octets<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = usize::try_from(take_varint(rest)?).ok()?;
    let (octets, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(octets)
}

fn event_from(body: &[u8], front: Option<Origin>) -> Result<Body, String> {
    let event = wire::Event::decode(body).map_err(|error| error.to_string())?;
    let origin = Origin {
        publisher: uuid_from(&event.publisher, "publisher")?,
        epoch: event.epoch,
        sequence: event.sequence,
    };
    if origin.sequence == 0 {
        return Err("the sequence number is 0".to_owned());
    }
    if front != Some(origin) {
        return Err("a part of the origin comes twice or behind a group".to_owned());
    }
    let value = match event.value {
        Some(wire::event::Value::Text(text)) => Some(Value::Text(text)),
        Some(wire::event::Value::Other(json)) => value_from(json::decode_value(&json)?),
        None => None,
    };
    let update = Update {
        table: event.table,
        key: event.key,
        action: event.action.map(Action::from),
        value,
        topic: event.topic,
        timestamp: event.timestamp.and_then(time_of),
    };
    Ok(Body::Event { update, origin: Some(origin) })
}

fn uuid_from(octets: &[u8], name: &str) -> Result<Uuid, String> {
    let len = octets.len();
    Uuid::from_slice(octets).map_err(|_| format!("the {name} has {len} octets instead of 16"))
}

/// The body of positions.
pub(super) fn encode_positions(positions: &Positions) -> Vec<u8> {
    let octets = |id: &Uuid| Bytes::copy_from_slice(id.as_bytes());
    let message = wire::Positions {
        announcer: octets(&positions.announcer),
        announcer_epoch: positions.announcer_epoch,
        complete_for: positions.complete_for.clone(),
        positions: positions
            .positions
            .iter()
            .map(|position| wire::Position {
                publisher: octets(&position.publisher),
                epoch: position.epoch,
                topic: position.topic.clone(),
                first: position.first,
                last: position.last,
                end: match position.end {
                    End::Open => wire::End::Open,
                    End::Final => wire::End::Final,
                    End::Abandoned => wire::End::Abandoned,
                    End::Left => wire::End::Left,
                }
                .into(),
            })
            .collect(),
    };
    message.encode_to_vec()
}

/// Reads positions.
pub(super) fn decode_positions(body: &[u8]) -> Result<Positions, String> {
    // without a publisher a position has few octets on the wire and a hundred in memory
    let mut rest = body;
    while let Some((number, payload)) = next_field(&mut rest) {
        if matches!((number, payload), (11, Payload::Octets(position)) if position.len() < 18) {
            return Err("a position without its publisher".to_owned());
        }
    }
    if !rest.is_empty() {
        return Err(format!("{} octets that are no field", rest.len()));
    }
    let message = wire::Positions::decode(body).map_err(|error| error.to_string())?;
    let positions = message.positions.into_iter().map(|position| {
        if position.first == 0 || position.last < position.first - 1 {
            return Err(format!("a position from {} to {}", position.first, position.last));
        }
        // what a later version may say more of is not final
        let end = match position.end() {
            wire::End::Open => End::Open,
            wire::End::Final => End::Final,
            wire::End::Abandoned => End::Abandoned,
            wire::End::Left => End::Left,
        };
        Ok(Position {
            publisher: uuid_from(&position.publisher, "publisher")?,
            epoch: position.epoch,
            topic: position.topic,
            first: position.first,
            last: position.last,
            end,
        })
    });
    Ok(Positions {
        announcer: uuid_from(&message.announcer, "announcer")?,
        announcer_epoch: message.announcer_epoch,
        complete_for: message.complete_for,
        positions: positions.collect::<Result<_, _>>()?,
    })
}

/// The keys of an event's second and third fields.
const EPOCH: u8 = 0x11;
const SEQUENCE: u8 = 0x19;

/// Octets of the origin at the front.
const FRONT: usize = 36;

/// Keys of the fields behind it.
const TABLE: u8 = 0x22;
const KEY: u8 = 0x2a;
const ACTION: u8 = 0x32;
const TEXT: u8 = 0x3a;
const TOPIC: u8 = 0x4a;
const TIMESTAMP: u8 = 0x50;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::tests::{ORIGIN, fault, origins, updates};
    use super::super::{Codec, decode};
    use super::*;

    fn encoded(update: &Update, origin: &Origin) -> Vec<u8> {
        let mut out = Vec::new();
        Codec::Protobuf.encode(update, "another", origin, &mut out);
        out
    }

    fn update() -> Update {
        let time = UNIX_EPOCH + Duration::from_nanos(1_500_000_123_456_789);
        Update { timestamp: Some(time), ..Update::new("lport", "7e4a", Action::Create) }
            .with_value("{}")
    }

    /// 36 octets, and what every event has.
    const FRONT: &[u8] =
        b"\x0a\x10\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\
        \x11\x03\0\0\0\0\0\0\0\x19\x05\0\0\0\0\0\0\0";

    /// Peers of any release read and write these; the schema may only grow.
    #[test]
    fn the_octets_of_events_stay_as_they_are() {
        let rest = b"\x22\x05lport\x2a\x047e4a\x32\x06create\x3a\x02{}\x4a\x01D\
            \x50\x80\xe9\xcb\xef\xa7\x57";
        assert_eq!(encoded(&update(), &ORIGIN), [FRONT, rest].concat());

        let before = UNIX_EPOCH - Duration::from_micros(2);
        let other = Update {
            table: Some(String::new()),
            key: None,
            action: None,
            value: Some(Value::Other(json!([1, null]))),
            topic: None,
            timestamp: Some(before),
        };
        let body = encoded(&other, &ORIGIN);
        assert_eq!(body, [FRONT, b"\x22\x00\x42\x08[1,null]\x50\x03"].concat());

        let nothing = Update { table: None, value: None, timestamp: None, ..other };
        assert_eq!(encoded(&nothing, &ORIGIN), FRONT);
    }

    fn varint(n: u64) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, n);
        out
    }

    #[test]
    fn the_octets_of_positions_stay_as_they_are() {
        let position = Position {
            publisher: ORIGIN.publisher,
            epoch: 3,
            topic: Bytes::from_static(b"D"),
            first: 1,
            last: 300,
            end: End::Final,
        };
        let positions = Positions {
            announcer: Uuid::from_bytes([8; 16]),
            announcer_epoch: 4,
            complete_for: Some(Bytes::new()),
            positions: vec![position],
        };
        let id = |octet: u8| [octet; 16];
        let expected = [
            &b"\x42\x10"[..],
            &id(8),
            b"\x49\x04\0\0\0\0\0\0\0\x52\x00\x5a\x25\x0a\x10",
            &id(7),
            b"\x11\x03\0\0\0\0\0\0\0\x1a\x01D\x20\x01\x28\xac\x02\x30\x01",
        ]
        .concat();
        assert_eq!(positions.encode(), expected);
        assert_eq!(decode(&expected), Ok(Body::Positions(positions)));
    }

    proptest! {
        /// Whatever the quick way reads, the general one reads the same; ours it reads always.
        #[test]
        fn the_quick_way_reads_what_prost_reads(
            update in updates(), origin in origins(), at in any::<prop::sample::Index>(), octet: u8
        ) {
            let mut body = Vec::new();
            encode(&update, &origin, &mut body);
            let other = matches!(update.value, Some(Value::Other(_)));
            prop_assert_eq!(usual_event(&body).is_some(), !other);
            for changed in [false, true] {
                if changed {
                    let at = at.index(body.len());
                    body[at] = octet;
                }
                if let Some((update, origin)) = usual_event(&body) {
                    let event = Body::Event { update, origin: Some(origin) };
                    prop_assert_eq!(event_from(&body, peek_origin(&body)), Ok(event));
                }
            }
        }

        #[test]
        fn events_have_the_octets_that_prost_writes(update in updates(), origin in origins()) {
            let event = wire::Event {
                publisher: Bytes::copy_from_slice(origin.publisher.as_bytes()),
                epoch: origin.epoch,
                sequence: origin.sequence,
                table: update.table.clone(),
                key: update.key.clone(),
                action: update.action.as_ref().map(|action| action.as_str().to_owned()),
                topic: update.topic.clone(),
                timestamp: update.timestamp.map(micros_of),
                value: update.value.clone().map(|value| match value {
                    Value::Text(text) => wire::event::Value::Text(text),
                    Value::Other(json) => wire::event::Value::Other(json.to_string()),
                }),
            };
            // prost leaves out what is zero
            prop_assume!(origin.epoch > 0);
            prop_assert_eq!(encoded(&update, &origin), event.encode_to_vec());
        }

        #[test]
        fn the_origin_is_found_in_any_layout(origin in origins(), order in 0..6_usize) {
            let body = encoded(&update(), &origin);
            let (front, rest) = body.split_at(36);
            let (publisher, front) = front.split_at(18);
            let (epoch, sequence) = front.split_at(9);
            let unknown = b"\xf8\x06\x07\xfd\x06\0\0\0\0\xfa\x06\x01x";
            let parts = match order {
                0 => vec![publisher, sequence, epoch, rest],
                1 => vec![publisher, rest, epoch, sequence],
                2 => vec![publisher, rest, sequence, unknown, epoch],
                3 => vec![publisher, unknown, epoch, rest, sequence],
                4 => vec![publisher, epoch, unknown, sequence, rest],
                _ => vec![publisher, epoch, sequence, rest, unknown],
            };
            let body = parts.concat();
            prop_assert_eq!(peek_origin(&body), Some(origin));
            prop_assert_eq!(decode(&body), Ok(Body::Event { update: truncated(), origin: Some(origin) }));
        }
    }

    /// [`update`] with the time that is on the wire.
    fn truncated() -> Update {
        let time = UNIX_EPOCH + Duration::from_micros(1_500_000_123_456);
        Update { timestamp: Some(time), ..update() }
    }

    #[test]
    fn an_epoch_of_zero_is_written_and_may_be_left_out() {
        let origin = Origin { epoch: 0, ..ORIGIN };
        let body = encoded(&update(), &origin);
        assert_eq!(body[18..27], [EPOCH, 0, 0, 0, 0, 0, 0, 0, 0]);
        let without = [&body[..18], &body[27..]].concat();
        for body in [body, without] {
            assert_eq!(peek_origin(&body), Some(origin));
            let event = Body::Event { update: truncated(), origin: Some(origin) };
            assert_eq!(decode(&body), Ok(event));
        }
    }

    #[test]
    fn an_event_whose_origin_is_sound_is_lost_by_name() {
        let id = [7; 16];
        for (rest, expected) in [
            (&b"\x22\x05lpor"[..], "buffer underflow"),
            (b"\x22\x01\xff", "invalid string value"),
            (b"\x42\x02[1", "EOF"),
            (b"\x20\x01", "invalid wire type"),
            (b"\x42\x03nan", "expected ident"),
            (b"\x42\x041 1 ", "trailing characters"),
            (b"\x42\x00", "EOF"),
            (b"\x07", "invalid wire type"),
            (&[&b"\x0a\x10"[..], &id[1..], b"\x08"].concat(), "the origin comes twice"),
            (b"\x19\x06\0\0\0\0\0\0\0", "the origin comes twice"),
            (b"\x19\0\0\0\0\0\0\0\0", "the sequence number is 0"),
            (b"\x0a\x01x", "the publisher has 1 octets instead of 16"),
        ] {
            match decode(&[FRONT, rest].concat()) {
                Err(CodecError::Event { origin: ORIGIN, reason }) if reason.contains(expected) => {}
                other => panic!("{rest:02x?}: {other:?}"),
            }
        }
        let error = decode(&[FRONT, b"\x22\x01\xff"].concat()).unwrap_err().to_string();
        let front = "event 5 of 07070707-0707-0707-0707-070707070707 (epoch 3): ";
        assert!(error.starts_with(front), "{error}");
    }

    #[test]
    fn an_event_without_an_origin_is_malformed() {
        for (body, expected) in [
            (&FRONT[..18], "the sequence number is 0"),
            (&FRONT[..27], "the sequence number is 0"),
            (&FRONT[..30], "buffer underflow"),
            (&FRONT[..10], "buffer underflow"),
            (&[&FRONT[..28], &[0; 8]].concat(), "the sequence number is 0"),
            (&[b"\x0a\x0f", &FRONT[3..]].concat(), "the publisher has 15 octets instead of 16"),
            (&[b"\x0a\x00", &FRONT[18..]].concat(), "the publisher has 0 octets instead of 16"),
            (b"\x0a", "invalid varint"),
        ] {
            assert_eq!(peek_origin(body), None);
            let reason = fault(body);
            assert!(reason.contains(expected), "{body:02x?}: {reason}");
        }
    }

    #[test]
    fn positions_that_say_nothing_are_malformed() {
        let position = |first: u64, last: u64| {
            let publisher = [&[0x0a, 0x10], &ORIGIN.publisher.as_bytes()[..]].concat();
            let body = [publisher, vec![0x20], varint(first), vec![0x28], varint(last)].concat();
            let announcer = [&[0x42, 0x10], &ORIGIN.publisher.as_bytes()[..]].concat();
            [announcer, vec![0x5a, u8::try_from(body.len()).unwrap()], body].concat()
        };
        assert!(decode(&position(1, 0)).is_ok());
        assert!(decode(&position(u64::MAX, u64::MAX)).is_ok());
        let good = position(3, 7);
        for (body, expected) in [
            (&position(0, 0)[..], "a position from 0 to 0"),
            (&position(3, 1), "a position from 3 to 1"),
            (&[&good[..18], b"\x5a\x00"].concat(), "a position without its publisher"),
            (b"\x42\x01x", "the announcer has 1 octets instead of 16"),
            (&[&good[..], b"\x7b\x7c\x5a\x00"].concat(), "octets that are no field"),
            (&good[..good.len() - 1], "octets that are no field"),
        ] {
            let reason = fault(body);
            assert!(reason.contains(expected), "{body:02x?}: {reason}");
        }
    }
}
