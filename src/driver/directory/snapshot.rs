//! The server's tables on disk: one file that is always whole. A new state is written beside it,
//! brought to the disk and put in its place, so that neither a kill nor a power failure leaves
//! anything but the old state or the new one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use prost::Message;
use uuid::Uuid;

use super::protocol::wire;
use super::table::{MAX_OCTETS, Tables};
use super::{DirectoryError, Rows};

/// A snapshot file of which this process is the only user.
#[derive(Debug)]
pub(super) struct Snapshot {
    path: PathBuf,
    temporary: PathBuf,
    folder: File,
    /// The lock ends with it. It is another file because the snapshot is replaced all the time.
    _lock: File,
}

impl Snapshot {
    /// Takes a file for this process alone and reads it; there need not be one yet.
    pub(super) fn open(path: &Path) -> Result<(Self, BTreeMap<String, Rows>), DirectoryError> {
        let failed = |reason: String| DirectoryError::Snapshot { path: path.to_owned(), reason };
        let (folder, path) = resolve(path).map_err(|error| failed(error.to_string()))?;
        let beside = |ending: &str| {
            let mut name = OsString::from(&path);
            name.push(ending);
            PathBuf::from(name)
        };
        let (lock_path, temporary) = (beside(".lock"), beside(".tmp"));
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(|e| failed(format!("cannot open {}: {e}", lock_path.display())))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let lock = lock_path.display();
                return Err(failed(format!("another directory server uses it (it holds {lock})")));
            }
            Err(TryLockError::Error(error)) => {
                return Err(failed(format!("cannot lock {}: {error}", lock_path.display())));
            }
        }
        // what a server left that died while it wrote
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed(format!("cannot remove {}: {error}", temporary.display())));
            }
            _ => {}
        }
        let folder = File::open(&folder);
        let folder = folder.map_err(|error| failed(format!("cannot open its folder: {error}")))?;
        let tables = read(&path).map_err(failed)?;
        Ok((Self { path, temporary, folder, _lock: lock }, tables))
    }

    /// Puts encoded tables in the place of what is there. Blocks until the disk has them.
    pub(super) fn replace(&self, octets: &[u8]) -> io::Result<()> {
        let written = self.write_beside(octets);
        if written.is_err() {
            // on a full disk it is in the way; that it may stay is no worse than why it is removed
            drop(fs::remove_file(&self.temporary));
        }
        written?;
        fs::rename(&self.temporary, &self.path)?;
        self.folder.sync_all()
    }

    fn write_beside(&self, octets: &[u8]) -> io::Result<()> {
        let mut file = File::create(&self.temporary)?;
        file.write_all(octets)?;
        file.sync_all()
    }
}

/// The folder and the file behind a path: a link is followed, so that it is not replaced by a file and
/// that two names of one file have one lock.
fn resolve(path: &Path) -> io::Result<(PathBuf, PathBuf)> {
    let path = match fs::canonicalize(path) {
        Ok(path) if path.is_dir() => return Err(io::Error::other("it is a folder")),
        Ok(path) => path,
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
        Err(error) => return Err(error),
    };
    let Some(name) = path.file_name() else {
        return Err(io::Error::other("it is no path of a file"));
    };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = fs::canonicalize(parent.unwrap_or(Path::new("."))).map_err(|error| {
        io::Error::new(error.kind(), format!("its folder cannot be used: {error}"))
    })?;
    let file = folder.join(name);
    Ok((folder, file))
}

fn read(path: &Path) -> Result<BTreeMap<String, Rows>, String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(format!("cannot be opened: {error}")),
    };
    let mut octets = Vec::new();
    let length = file.take(MAX_FILE + 1).read_to_end(&mut octets);
    length.map_err(|error| format!("cannot be read: {error}"))?;
    decode(&octets).map_err(|damage| {
        format!("is damaged: {damage}; put a copy in its place, or move it away to begin empty")
    })
}

/// The tables as they are in a file.
pub(super) fn encode(tables: &Tables) -> Vec<u8> {
    let tables = tables
        .iter()
        .map(|(name, rows)| (name.to_owned(), wire::SnapshotTable { rows: rows.clone() }));
    let body = wire::Snapshot { tables: tables.collect() }.encode_to_vec();
    [MAGIC, checksum(&body).as_bytes(), &body].concat()
}

fn decode(octets: &[u8]) -> Result<BTreeMap<String, Rows>, String> {
    let Some(rest) = octets.strip_prefix(MAGIC) else {
        return Err("it does not begin as a snapshot of this version".to_owned());
    };
    let Some((sum, body)) = rest.split_first_chunk::<16>() else {
        return Err("it is cut short".to_owned());
    };
    if checksum(body).as_bytes() != sum {
        return Err(format!("its checksum is not that of the {} octets in it", body.len()));
    }
    let snapshot = wire::Snapshot::decode(body).map_err(|error| error.to_string())?;
    Ok(snapshot.tables.into_iter().map(|(name, table)| (name, table.rows)).collect())
}

/// SHA-1, in the form in which it is at hand.
fn checksum(body: &[u8]) -> Uuid {
    Uuid::new_v5(&Uuid::nil(), body)
}

/// With the version of what follows.
const MAGIC: &[u8] = b"dragonwire directory 1\n";
/// Twice what there can be in keys and values: more than any that a server writes.
const MAX_FILE: u64 = 2 * MAX_OCTETS as u64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::directory::Limits;

    fn sample() -> Tables {
        let mut tables = Tables::new(Limits::default());
        tables.put("publisher", "1", "{\"uri\":\"tcp://1.2.3.4:5\"}").unwrap();
        tables.put("chassis", "ü", "").unwrap();
        tables
    }

    #[test]
    fn what_is_written_is_read() {
        let read = decode(&encode(&sample())).unwrap();
        assert_eq!(read["publisher"]["1"], "{\"uri\":\"tcp://1.2.3.4:5\"}");
        assert_eq!(read["chassis"]["ü"], "");
        assert_eq!(decode(&encode(&Tables::new(Limits::default()))).unwrap(), BTreeMap::new());
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_noticed() {
        let whole = encode(&sample());
        for length in 0..whole.len() {
            assert!(decode(&whole[..length]).is_err(), "cut to {length}");
        }
        for bit in 0..whole.len() * 8 {
            let mut octets = whole.clone();
            octets[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&octets).is_err(), "bit {bit}");
        }
        assert!(decode(&[&whole[..], b"\0"].concat()).is_err());
    }
}
