//! Values by their types: each function takes the text and answers, if it is not one, what was
//! expected.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::driver::codec::Codec;

/// What a function of this file answers.
pub(super) type Parsed<T> = Result<T, &'static str>;

pub(super) fn boolean(text: &str) -> Parsed<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "on" | "yes" => Ok(true),
        "false" | "0" | "off" | "no" => Ok(false),
        _ => Err("true, false, 1, 0, on, off, yes or no"),
    }
}

pub(super) fn word(text: &str) -> Parsed<String> {
    match text.trim() {
        "" => Err("a name"),
        text => Ok(text.to_owned()),
    }
}

pub(super) fn path(text: &str) -> Parsed<PathBuf> {
    optional_path(text)?.ok_or("a path")
}

/// Nothing stands for none.
pub(super) fn optional_path(text: &str) -> Parsed<Option<PathBuf>> {
    match text.trim() {
        text if text.contains(['\n', '\0']) => Err("a path in one line"),
        "" => Ok(None),
        text => Ok(Some(text.into())),
    }
}

pub(super) fn port(text: &str) -> Parsed<u16> {
    text.trim().parse().map_err(|_| "a port, 0 to 65535")
}

/// A port to connect to.
pub(super) fn remote_port(text: &str) -> Parsed<u16> {
    port(text).ok().filter(|&port| port > 0).ok_or("a port, 1 to 65535")
}

pub(super) fn ip(text: &str) -> Parsed<String> {
    let ip: IpAddr = text.trim().parse().map_err(|_| "an IPv4 or IPv6 address")?;
    Ok(ip.to_string())
}

/// `*`, an address or a name.
pub(super) fn bind_address(text: &str) -> Parsed<String> {
    match text.trim() {
        "*" => Ok("*".to_owned()),
        text => host(text).ok_or("*, an IP address or a host name"),
    }
}

pub(super) fn hosts(text: &str) -> Parsed<Vec<String>> {
    let hosts: Option<_> = list(text)?.iter().map(|item| host(item)).collect();
    hosts.ok_or("IP addresses or host names with commas between them")
}

/// `host:port` each.
pub(super) fn servers(text: &str) -> Parsed<Vec<String>> {
    let servers: Option<_> = list(text)?
        .iter()
        .map(|item| {
            let (name, number) = item.rsplit_once(':')?;
            Some(server(&host(name)?, remote_port(number).ok()?))
        })
        .collect();
    servers.ok_or("HOST:PORT, several with commas between them")
}

/// An address and a port in one text.
pub(super) fn server(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

pub(super) fn count(text: &str) -> Parsed<usize> {
    let count = text.trim().parse().ok().filter(|&count: &u32| (1..=MOST).contains(&count));
    count.and_then(|count| usize::try_from(count).ok()).ok_or("a whole number, 1 to 2147483647")
}

pub(super) fn whole_seconds(text: &str) -> Parsed<Duration> {
    let seconds = text.trim().parse().ok().filter(|&seconds: &u32| (1..=MOST).contains(&seconds));
    Ok(Duration::from_secs(seconds.ok_or("whole seconds, 1 to 2147483647")?.into()))
}

pub(super) fn seconds(text: &str) -> Parsed<Duration> {
    let seconds = text.trim().parse().ok().filter(|&seconds: &f64| seconds <= MOST.into());
    let seconds = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    // a poll without a pause would leave no time for anything else
    seconds
        .filter(|&seconds| seconds >= Duration::from_millis(1))
        .ok_or("seconds, 0.001 to 2147483647")
}

pub(super) fn codec(text: &str) -> Parsed<Codec> {
    match text.trim() {
        "protobuf" => Ok(Codec::Protobuf),
        "msgpack" => Ok(Codec::Msgpack),
        "json" => Ok(Codec::Json),
        _ => Err("protobuf, msgpack or json"),
    }
}

/// Items with commas between them, one comma more at the end or not, all in brackets or not, each in
/// quotes or not.
pub(super) fn list(text: &str) -> Parsed<Vec<String>> {
    let text = without_brackets(text.trim());
    let mut rest = text.trim_end_matches(',').trim();
    let mut items = Vec::new();
    while !rest.is_empty() {
        let (item, after) = match rest.chars().next() {
            Some(quote @ ('"' | '\'')) => {
                let inner = rest.get(1..).unwrap_or_default();
                let (item, after) = inner.split_once(quote).ok_or(EXPECTED_LIST)?;
                let after = after.trim_start();
                match after.strip_prefix(',') {
                    Some(after) => (item, Some(after)),
                    None if after.is_empty() => (item, None),
                    None => return Err(EXPECTED_LIST),
                }
            }
            _ => match rest.split_once(',') {
                Some((item, after)) => (item.trim(), Some(after)),
                None => (rest, None),
            },
        };
        if item.is_empty() {
            return Err(EXPECTED_LIST);
        }
        items.push(item.to_owned());
        rest = after.unwrap_or_default().trim_start();
    }
    Ok(items)
}

/// An item in the quotes that bring it through [`list`] as it is.
pub(super) fn quote(item: &str) -> Parsed<String> {
    match (item.contains('"'), item.contains('\'')) {
        (false, _) => Ok(format!("\"{item}\"")),
        (true, false) => Ok(format!("'{item}'")),
        (true, true) => Err("expected one kind of quotes at most in an item of the array"),
    }
}

/// Takes brackets away that are around everything: not those of `[::1]:80, [::2]:80`.
fn without_brackets(text: &str) -> &str {
    let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) else {
        return text;
    };
    let mut depth = 1_usize;
    let mut quoted = None;
    for c in inner.chars() {
        match (c, quoted) {
            (_, Some(quote)) => quoted = quoted.filter(|_| c != quote),
            ('"' | '\'', None) => quoted = Some(c),
            ('[', None) => depth += 1,
            (']', None) => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return text;
        }
    }
    inner.trim()
}

/// The address or name, without the brackets around IPv6.
fn host(text: &str) -> Option<String> {
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if let Some(inner) = inner {
        return inner.parse().ok().filter(IpAddr::is_ipv6).map(|ip| ip.to_string());
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(ip.to_string());
    }
    let named = |c: char| c.is_alphanumeric() || matches!(c, '-' | '.' | '_');
    // a name that ends in digits alone is an address with a slip in it, such as 10.0.0.300
    let last = text.trim_end_matches('.').rsplit('.').next()?;
    let is_name = text.chars().all(named) && last.chars().any(|c| !c.is_ascii_digit());
    is_name.then(|| text.to_owned())
}

const EXPECTED_LIST: &str = "items with commas between them, none empty, quotes closed";

/// The largest number of seconds and of anything counted: a time so far ahead can still be told.
const MOST: u32 = i32::MAX as u32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_are_oslo_configs() {
        for text in ["true", "1", "on", "yes", "True", "YES", " On "] {
            assert_eq!(boolean(text), Ok(true), "{text}");
        }
        for text in ["false", "0", "off", "no", "False"] {
            assert_eq!(boolean(text), Ok(false), "{text}");
        }
        for text in ["", "2", "y", "enabled"] {
            assert!(boolean(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_stay_within_what_they_are_for() {
        assert_eq!((port("0"), port("65535"), port("+80")), (Ok(0), Ok(65535), Ok(80)));
        for text in ["", "65536", "-1", "88o6", "80.0"] {
            assert!(port(text).is_err(), "{text}");
        }
        assert_eq!(whole_seconds("300"), Ok(Duration::from_secs(300)));
        for text in ["0", "-5", "1.5", "2147483648", "9999999999999999999999"] {
            assert!(whole_seconds(text).is_err(), "{text}");
            assert!(count(text).is_err(), "{text}");
        }
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds("3e1"), Ok(Duration::from_secs(30)));
        for text in ["0", "-1", "nan", "inf", "1e300", "1e-300", ""] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn lists_take_brackets_and_quotes() {
        let of = |text: &str| list(text).unwrap();
        assert!(of("").is_empty());
        assert!(of("[]").is_empty());
        assert_eq!(of("a"), ["a"]);
        assert_eq!(of("a, b,\nc"), ["a", "b", "c"]);
        assert_eq!(of("a,b,"), ["a", "b"]);
        assert_eq!(of("[a, b]"), ["a", "b"]);
        assert_eq!(of("\"a,b\", c"), ["a,b", "c"]);
        assert_eq!(of("['a', \"b c\"]"), ["a", "b c"]);
        assert_eq!(of("it's"), ["it's"]);
        assert_eq!(of("[\"]\", \"[\"]"), ["]", "["]);
        assert_eq!(of("[::1]:80, [::2]:80"), ["[::1]:80", "[::2]:80"]);
        for text in ["a,,b", ",a", "\"a", "\"a\"b", "''"] {
            assert!(list(text).is_err(), "{text}");
        }
        for item in ["a", "a,b", "it's", "say \"x\"", "[", "a]"] {
            let quoted = format!("[{}]", quote(item).unwrap());
            assert_eq!(of(&quoted), [item]);
        }
    }

    #[test]
    fn addresses_are_checked() {
        assert_eq!(ip("10.0.0.1").unwrap(), "10.0.0.1");
        assert_eq!(ip("::1").unwrap(), "::1");
        for text in ["", "localhost", "10.0.0.300", "10.0.0"] {
            assert!(ip(text).is_err(), "{text}");
        }
        for text in ["*", "10.0.0.1", "node-1.example", "eth0", "::1"] {
            assert_eq!(bind_address(text).unwrap(), text);
        }
        assert_eq!(bind_address("[::1]").unwrap(), "::1");
        for text in ["", "10.0.0.300", "a b", "tcp://x", "a:1", "[::1", "[10.0.0.1]"] {
            assert!(bind_address(text).is_err(), "{text}");
        }
        assert_eq!(hosts("10.0.0.1, [::1], node").unwrap(), ["10.0.0.1", "::1", "node"]);
        assert_eq!(hosts("[::1], [::2]").unwrap(), ["::1", "::2"]);
        assert_eq!(servers("10.0.0.1:6379, [::1]:1").unwrap(), ["10.0.0.1:6379", "[::1]:1"]);
        for text in ["10.0.0.1", ":6379", "x:0", "x:y", "10.0.0.1:6379,x"] {
            assert!(servers(text).is_err(), "{text}");
        }
    }
}
