//! The second decoder that the first is compared with: what octets after a handshake mean, by RFC 13
//! and RFC 37, read from beginning to end in one go. It has all the octets at once and keeps no state,
//! and nothing of it is shared with the decoder that connections use.

use super::differential::{End, Fault, Item, Meaning};

/// What a peer speaks, and how much of it is taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// Frames of RFC 13, which knows no commands.
    pub(super) old: bool,
    /// Whether commands have a meaning. Those of a peer of ZMTP 2.0 have none.
    pub(super) commands: bool,
    /// Octets of one message's frames, and of one command.
    pub(super) octets: u64,
    /// Frames of one message.
    pub(super) frames: usize,
}

/// Octets of commands between the frames of one message.
const COMMANDS_INSIDE: usize = 65_536;

/// What the octets mean.
pub(super) fn decode(data: &[u8], rules: Rules) -> Meaning {
    let mut meaning = Meaning::default();
    let mut at = 0;
    // the message in progress, where it begins, and the commands inside of it
    let (mut frames, mut begin, mut inside) = (Vec::new(), 0, 0);
    meaning.end = loop {
        let (header, flags, len) = match header(&data[at..], rules.old) {
            Ok(Some(header)) => header,
            Ok(None) => break End::Left(data.len() - begin),
            Err(fault) => break End::Fault(fault),
        };
        let command = !rules.old && flags & 0b100 != 0;
        let others: usize = frames.iter().map(Vec::len).sum();
        if len > rules.octets {
            break End::Fault(Fault::Frame(len));
        }
        if !command && others as u64 + len > rules.octets {
            break End::Fault(Fault::Message(frames.len() + 1));
        }
        if !command && frames.len() == rules.frames {
            break End::Fault(Fault::Frames);
        }
        if len > (data.len() - at - header) as u64 {
            break End::Left(data.len() - begin);
        }
        let body = &data[at + header..at + header + len as usize];
        let size = header + body.len();
        at += size;
        if command {
            if frames.is_empty() {
                begin = at;
            } else {
                inside += size;
                if inside > COMMANDS_INSIDE {
                    break End::Fault(Fault::Commands);
                }
            }
            if let Err(fault) = obey(body, rules.commands, &mut meaning) {
                break End::Fault(fault);
            }
            continue;
        }
        frames.push(body.to_vec());
        if flags & 1 == 0 {
            meaning.items.push(Item::Message(std::mem::take(&mut frames)));
            (begin, inside) = (at, 0);
        }
    };
    meaning
}

/// Octets of the header, flags, and octets of the body; `None` if it is cut off.
fn header(data: &[u8], old: bool) -> Result<Option<(usize, u8, u64)>, Fault> {
    if old {
        // "length flags body", and the length counts the flags
        let (at, len) = match data {
            [0xff, a, b, c, d, e, f, g, h, ..] => {
                (9, u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]))
            }
            [] | [0xff, ..] => return Ok(None),
            [len, ..] => (1, u64::from(*len)),
        };
        if len == 0 {
            return Err(Fault::Empty);
        }
        return Ok(data.get(at).map(|flags| (at + 1, *flags, len - 1)));
    }
    // "flags length body", and a bit of the flags tells the size of the length
    Ok(match data {
        [flags, a, b, c, d, e, f, g, h, ..] if flags & 0b10 != 0 => {
            Some((9, *flags, u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h])))
        }
        [flags, len, ..] if flags & 0b10 == 0 => Some((2, *flags, u64::from(*len))),
        _ => None,
    })
}

/// What a command does.
fn obey(body: &[u8], known: bool, meaning: &mut Meaning) -> Result<(), Fault> {
    let text = |name: &[u8]| -> Option<Vec<u8>> {
        let whole = [&[name.len() as u8], name].concat();
        body.strip_prefix(&whole[..]).filter(|_| known).map(<[u8]>::to_vec)
    };
    if let Some(rest) = text(b"PING") {
        let [high, low, context @ ..] = &rest[..] else { return Err(Fault::Malformed) };
        meaning.pings.push(u64::from(*high) * 256 + u64::from(*low));
        meaning.answers.push(context[..context.len().min(16)].to_vec());
    } else if let Some(rest) = text(b"PONG") {
        let context: Result<[u8; 8], _> = rest.try_into();
        meaning.pongs.push(context.ok().map(u64::from_be_bytes));
    } else if let Some(topic) = text(b"SUBSCRIBE") {
        meaning.items.push(Item::Subscribe(topic));
    } else if let Some(topic) = text(b"CANCEL") {
        meaning.items.push(Item::Cancel(topic));
    } else if let Some(rest) = text(b"ERROR") {
        let reason = rest.split_first().and_then(|(len, rest)| rest.get(..usize::from(*len)));
        return Err(reason
            .map_or(Fault::Malformed, |reason| Fault::Refusal(reason.escape_ascii().to_string())));
    } else {
        meaning.unknown += 1;
    }
    Ok(())
}
