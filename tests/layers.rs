//! The layers of `src/`: what each file may import, so that the protocol stays free of IO and
//! nothing imports upward. ARCHITECTURE.md draws the picture.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// From the bottom to the top; a file may import from its own layer and those below.
const LAYERS: &[&[&str]] = &[
    // values
    &[
        "append",
        "clock",
        "socket_type",
        "endpoint",
        "greeting",
        "peer",
        "error",
        "message",
        "framing",
        "stats",
        "blocks",
        "governor",
        "options",
    ],
    &["monitor", "waiters", "subscription", "command", "heartbeat", "inbox", "outbox"],
    // the protocol and the patterns, without IO
    &["mechanism", "engine"],
    &["hub"],
    &["session"],
    // the line: from here on tokio
    &["turns", "tcp", "unix_ipc", "sim", "transport"],
    &["connection"],
    &["endpoints", "supervise"],
    &["socket", "sender", "receiver"],
    &["push_socket", "pull_socket", "pub_socket", "sub_socket", "xpub_socket", "xsub_socket"],
    &["driver"],
];

/// Layers without IO, clock or runtime.
const BELOW_THE_LINE: usize = 5;

#[test]
fn every_file_imports_from_below_only() {
    let files = sources();
    let place = |module: &str| LAYERS.iter().position(|layer| layer.contains(&module));
    let mut faults = Vec::new();
    for (path, (module, text)) in &files {
        if OUTSIDE.contains(&module.as_str()) {
            continue;
        }
        let Some(layer) = place(module) else {
            faults.push(format!("{}: the file has no layer", path.display()));
            continue;
        };
        let code = without_tests(text);
        if layer < BELOW_THE_LINE && (code.contains("tokio::") || code.contains("tokio_util::")) {
            faults.push(format!("{}: names tokio below the line", path.display()));
        }
        for import in imports(code) {
            match place(&import) {
                Some(other) if other <= layer => {}
                Some(_) => faults.push(format!("{}: imports {import} upward", path.display())),
                None => faults.push(format!("{}: imports {import}, no layer", path.display())),
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let seen: BTreeSet<_> = files.values().map(|(module, _)| module.as_str()).collect();
    for module in LAYERS.iter().flat_map(|layer| layer.iter()) {
        assert!(seen.contains(module), "{module} is in the picture but not in src/");
    }
}

/// The crate's face, and what exists only for tests and fuzzing.
const OUTSIDE: &[&str] = &["lib", "vectors", "fuzzing", "bench"];

/// Path, top-level module and text of every file.
fn sources() -> BTreeMap<PathBuf, (String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = BTreeMap::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let inside = path.strip_prefix(&root).unwrap().with_extension("");
            let first = inside.iter().next().unwrap().to_str().unwrap().to_owned();
            found.insert(path.clone(), (first, fs::read_to_string(path).unwrap()));
        }
    }
    found
}

fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod").next().unwrap()
}

/// The modules that `crate::` paths name, outside of comments.
fn imports(code: &str) -> BTreeSet<String> {
    let code: String = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    let letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let parts = code.split("crate::").skip(1);
    parts.map(|rest| rest.chars().take_while(|c| letter(*c)).collect()).collect()
}
