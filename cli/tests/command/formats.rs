//! Text and raw lines, and lines that cannot be read.

use crate::harness::Dragonwire;

fn pair(push: &str, pull: &str) -> (Dragonwire, Dragonwire) {
    let mut pull = Dragonwire::start(&format!("pull --bind tcp://127.0.0.1:0 {pull}"));
    let endpoint = pull.bound();
    let push = Dragonwire::start(&format!("push --connect {endpoint} {push}"));
    (push, pull)
}

#[test]
fn text() {
    let (mut push, mut pull) = pair("--format text", "--format json");
    push.write("topic | body");
    assert_eq!(pull.line(), r#"["topic","body"]"#);
    push.write(r"a\|b \x00\xff");
    assert_eq!(pull.line(), r#"[{"hex":"617c622000ff"}]"#);
    push.write("");
    assert_eq!(pull.line(), r#"[""]"#);
    push.finish();

    let (mut push, mut pull) = pair("--format json", "--format text");
    push.write(r#"["a | b","\u001b[2J\n",{"hex":"ff"}]"#);
    assert_eq!(pull.line(), r"a \| b | \x1b[2J\n | \xff");
    push.finish();
}

#[test]
fn raw() {
    let (mut push, mut pull) = pair("--format raw", "--format json");
    push.write(r#"{"any": [1, 2]} | \x00"#);
    assert_eq!(pull.line(), r#"["{\"any\": [1, 2]} | \\x00"]"#);
    push.write("");
    assert_eq!(pull.line(), r#"[""]"#);
    push.finish();

    let (mut push, mut pull) = pair("--format json", "--format raw");
    push.write(r#"["topic ","body"]"#);
    assert_eq!(pull.line(), "topic body");
    push.finish();
}

#[test]
fn subscriptions_in_text() {
    let mut xpub = Dragonwire::start("xpub --bind tcp://127.0.0.1:0");
    let endpoint = xpub.bound();
    let mut sub = Dragonwire::start(&format!("sub --connect {endpoint} --format text"));
    sub.write("+a b");
    assert_eq!(xpub.line(), r#"["\u0001a b"]"#);
    sub.write("-a b");
    assert_eq!(xpub.line(), r#"["\u0000a b"]"#);
    sub.write("nonsense");
    let told = sub.told("dragonwire: line 3 ");
    assert!(told.contains("+TOPIC"), "{told}");
    xpub.finish();
}

#[test]
fn a_line_that_cannot_be_read_is_named_and_ignored() {
    let (mut push, mut pull) = pair("", "");
    push.write_octets(b"[\"one\"]\nnonsense\n\n[1]\n{\"subscribe\":\"a\"}\n[]\n[\"\xff\"]\n");
    push.write(r#"["two"]"#);
    assert_eq!(pull.line(), r#"["one"]"#);
    assert_eq!(pull.line(), r#"["two"]"#);
    for (line, reason) in [
        (2, "neither an array"),
        (4, "integer `1`, expected a string or {\"hex\": \"00ff\"}"),
        (5, "only sub and xsub subscribe"),
        (6, "at least one frame"),
        (7, "unicode"),
    ] {
        let told =
            push.told(&format!("dragonwire: line {line} of the standard input is ignored: "));
        assert!(told.contains(reason), "{line}: {told}");
    }
    push.finish();

    let mut sub = Dragonwire::start("sub --bind tcp://127.0.0.1:0 --subscribe a");
    sub.write(r#"["a"]"#);
    sub.told("dragonwire: line 1 of the standard input is ignored: sub sends no messages");
}
