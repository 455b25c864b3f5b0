//! The Rust code of `proto/event.proto` is part of the repository, so that nobody needs a compiler for
//! schemas to build the library. This test writes it anew and compares.

use std::path::{Path, PathBuf};
use std::{env, fs};

const GENERATED: &str = "src/driver/codec/dragonwire.v1.rs";

/// `UPDATE_PROTO=1 cargo test --test proto_codegen` saves what it has written.
#[test]
fn the_generated_code_is_that_of_the_schema() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let schema = protox::compile(["event.proto"], [root.join("proto")]).unwrap();
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("proto_codegen");
    fs::create_dir_all(&folder).unwrap();
    prost_build::Config::new().out_dir(&folder).bytes(["."]).compile_fds(schema).unwrap();
    let new = fs::read_to_string(folder.join("dragonwire.v1.rs")).unwrap();
    let saved = root.join(GENERATED);
    if env::var_os("UPDATE_PROTO").is_some() {
        fs::write(&saved, &new).unwrap();
    }
    let old = fs::read_to_string(&saved).unwrap_or_default();
    assert!(old == new, "{GENERATED} is stale: UPDATE_PROTO=1 cargo test --test proto_codegen");
}
