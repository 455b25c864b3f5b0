//! What the driver reads: the bodies of events, the directory's messages and rows, option files.

use uuid::Uuid;

use crate::driver::codec::{Body, Codec, CodecError, Origin, decode, peek_origin};
use crate::driver::config::{Config, ConfigError, Place};
#[cfg(all(feature = "etcd", feature = "redis"))]
use crate::driver::directory::fuzzing::stores;
use crate::driver::directory::fuzzing::{answers, requests, row};
use crate::driver::{ROLE_DF_LOCAL_CONTROLLER, ROLE_NEUTRON_SERVER};

/// The body of an event, as it is and as the rest of one in each form: what is understood is the same
/// when it is written in each form and read again.
pub fn event_body(data: &[u8]) {
    body(data);
    // lengths would hide JSON text and the fields of a map from chance
    body(&[&[0xdb], &(data.len() as u32).to_be_bytes()[..], data].concat());
    for start in [0x85, 0x0a, 0x42] {
        body(&[&[start], data].concat());
    }
}

/// What is understood is the same when it is written in each form and read again.
fn body(data: &[u8]) {
    let (update, origin) = match decode(data) {
        Ok(Body::Event { update, origin }) => (update, origin),
        Ok(Body::Positions(positions)) => {
            assert_eq!(peek_origin(data), None);
            assert_eq!(decode(&positions.encode()), Ok(Body::Positions(positions)));
            return;
        }
        Err(CodecError::Event { origin, .. }) => {
            assert_eq!(peek_origin(data), Some(origin), "what is missing is named");
            return;
        }
        Err(CodecError::Malformed(_)) => return,
    };
    assert_eq!(peek_origin(data), origin);
    let origin = origin.unwrap_or(Origin { publisher: Uuid::nil(), epoch: 0, sequence: 1 });
    for codec in [Codec::Protobuf, Codec::Msgpack, Codec::Json] {
        let topic = "weather";
        let mut body = Vec::new();
        codec.encode(&update, topic, &origin, &mut body);
        let (mut update, mut origin) = (update.clone(), Some(origin));
        if codec != Codec::Protobuf {
            (update.timestamp, origin) = (None, None);
        }
        if codec == Codec::Json {
            update.topic = Some(topic.to_owned());
        }
        assert_eq!(decode(&body), Ok(Body::Event { update, origin }), "{codec}");
    }
}

/// What a directory is asked and tells: frames with requests, and an answer or a row.
pub fn directory(data: &[u8]) {
    requests(data);
    answers(data);
    if let Ok(text) = std::str::from_utf8(data) {
        row(text);
    }
}

/// What etcd and Redis answer of a directory that they keep: a reply of etcd's gateway, the messages of a
/// watch, and notes of a channel of Redis, each a line.
#[cfg(all(feature = "etcd", feature = "redis"))]
pub fn directory_answers(data: &[u8]) {
    stores(data, data.len() <= 1024 && super::chosen(data, 64));
}

/// The text of an option file, as INI and as TOML: an error names a line of it, and read twice it
/// gives the same options as read once.
pub fn option_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let lines = 1 + text.matches('\n').count();
    for add in [Config::add_ini, Config::add_toml] {
        let mut once = Config::new();
        if let Err(error) = add(&mut once, "file", text) {
            let ConfigError::Syntax { line, .. } = error else { panic!("{error}") };
            assert!((1..=lines).contains(&line), "{error}");
            continue;
        }
        let mut twice = once.clone();
        add(&mut twice, "file", text).expect("it was taken before");
        for role in [ROLE_NEUTRON_SERVER, ROLE_DF_LOCAL_CONTROLLER] {
            let options = once.options(role);
            assert_eq!(twice.options(role), options);
            if let Err(error) = options {
                let written = match error {
                    ConfigError::Value { written, .. }
                    | ConfigError::Interpolation { written, .. } => written,
                    error => panic!("{error}"),
                };
                let Place::File { line, .. } = written.place else { panic!("{written}") };
                assert!((1..=lines).contains(&line), "{written}");
            }
        }
        for warning in once.warnings() {
            assert!(warning.to_string().starts_with("file:"), "{warning}");
        }
    }
}
