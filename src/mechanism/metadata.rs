//! The properties that READY carries (RFC 37, "Connection Metadata").

use bytes::Bytes;

use crate::error::ProtocolError;

/// Names and values in order. Names are compared octet by octet, as libzmq does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Metadata(pub(crate) Vec<(Bytes, Bytes)>);

impl Metadata {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, value) in &self.0 {
            out.push(name.len() as u8);
            out.extend_from_slice(name);
            out.extend_from_slice(&(value.len() as u32).to_be_bytes());
            out.extend_from_slice(value);
        }
        out
    }

    /// A name without a value at the very end is passed over, as libzmq does.
    pub(crate) fn decode(mut data: &[u8]) -> Result<Self, ProtocolError> {
        let mut properties = Vec::new();
        while let Some((&length, rest)) = data.split_first() {
            let (name, rest) = rest
                .split_at_checked(usize::from(length))
                .ok_or(cut("a property's name is cut off"))?;
            if rest.is_empty() && length > 0 {
                break;
            }
            let (length, rest) = rest
                .split_first_chunk()
                .ok_or(cut("the length of a property's value is cut off"))?;
            let length = u32::from_be_bytes(*length) as usize;
            let (value, rest) =
                rest.split_at_checked(length).ok_or(cut("a property's value is cut off"))?;
            properties.push((Bytes::copy_from_slice(name), Bytes::copy_from_slice(value)));
            data = rest;
        }
        Ok(Self(properties))
    }
}

fn cut(reason: &'static str) -> ProtocolError {
    ProtocolError::MalformedCommand { command: "READY", reason }
}

/// The property that says which patterns a peer takes part in.
pub(crate) const SOCKET_TYPE: &[u8] = b"Socket-Type";

/// The property that holds a peer's routing id.
pub(crate) const IDENTITY: &[u8] = b"Identity";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_come_back() {
        let long = Bytes::from(vec![7; 300]);
        let properties = Metadata(vec![
            (SOCKET_TYPE.into(), "PUB".into()),
            ("".into(), "".into()),
            ("X-long".into(), long),
        ]);
        assert_eq!(Metadata::decode(&properties.encode()).unwrap(), properties);
    }

    #[test]
    fn cut_off_properties_are_refused() {
        let whole = Metadata(vec![("ab".into(), "cd".into())]).encode();
        for end in 1..whole.len() {
            let accepted = end == 3; // a name and then the end
            assert_eq!(Metadata::decode(&whole[..end]).is_ok(), accepted, "{end}");
        }
        assert!(Metadata::decode(&[1, b'x', 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(Metadata::decode(&[0]).is_err(), "one octet");
    }
}
