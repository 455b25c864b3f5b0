//! The demo.

use rustix::process::Signal;

use crate::harness::{Dragonwire, Place};

#[test]
fn the_books_balance() {
    for rate in ["0", "2000"] {
        let place = Place::new();
        let mut demo =
            Dragonwire::start_with(&["demo", "--seconds", "1", "--rate", rate], |command| {
                command.env("TMPDIR", place.path());
            });
        let ended = demo.ended();
        assert_eq!(ended.status, Some(0), "{ended:#?}");
        let text = ended.output.join("\n");
        for part in [" killed ", " again ", "C 127.0.0.1:", "total", "no_subscriber"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.contains("The books balance"), "{text}");
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    }
}

#[test]
fn ctrl_c_leaves_nothing_behind() {
    let place = Place::new();
    let mut demo = Dragonwire::start_with(&["demo", "--seconds", "600"], |command| {
        command.env("TMPDIR", place.path());
    });
    while !demo.line().contains("messages flow") {}
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
    // the end of its output, which `ended` waits for, is the end of all its processes
    let ended = demo.end_by(Signal::INT);
    assert_eq!(ended.status, Some(130), "{ended:?}");
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
}
