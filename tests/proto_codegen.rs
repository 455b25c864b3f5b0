//! The Rust code of the schemas in `proto/` is part of the repository, so that nobody needs a compiler for
//! schemas to build the library. This test writes it anew and compares.

#![cfg(feature = "driver")]

use std::path::{Path, PathBuf};
use std::{env, fs};

/// Each schema, what is written of it, and where that is kept.
const SCHEMAS: [(&str, &str, &str); 2] = [
    ("event.proto", "dragonwire.v1.rs", "src/driver/codec/dragonwire.v1.rs"),
    ("directory.proto", "directory.v1.rs", "src/driver/directory/directory.v1.rs"),
];

/// `UPDATE_PROTO=1 cargo test --test proto_codegen` saves what it has written.
#[test]
fn the_generated_code_is_that_of_the_schemas() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("proto_codegen");
    fs::create_dir_all(&folder).unwrap();
    for (schema, written, saved) in SCHEMAS {
        let files = protox::compile([schema], [root.join("proto")]).unwrap();
        prost_build::Config::new()
            .out_dir(&folder)
            .bytes(["."])
            .btree_map(["."])
            .compile_fds(files)
            .unwrap();
        let new = fs::read_to_string(folder.join(written)).unwrap();
        if env::var_os("UPDATE_PROTO").is_some() {
            fs::write(root.join(saved), &new).unwrap();
        }
        let old = fs::read_to_string(root.join(saved)).unwrap_or_default();
        assert!(old == new, "{saved} is stale: UPDATE_PROTO=1 cargo test --test proto_codegen");
    }
}
