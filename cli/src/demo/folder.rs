//! A temporary folder that goes with the process.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// A folder that only this user may enter; it is removed with all that is in it when dropped.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn create() -> io::Result<Self> {
        let parent = std::env::temp_dir();
        let process = std::process::id();
        for attempt in 0..ATTEMPTS {
            let path = parent.join(format!("dragonwire-demo-{process}-{attempt}"));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                // left behind by a process of the same number
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(io::Error::new(
                        error.kind(),
                        format!("{}: {error}", path.display()),
                    ));
                }
            }
        }
        Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{}", parent.display())))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // nobody is left who could be told that it stays
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const ATTEMPTS: u32 = 1000;
