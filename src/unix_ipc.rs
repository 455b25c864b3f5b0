//! Unix sockets: `ipc://` endpoints, in the file system and in Linux's abstract name space.
//!
//! A socket file that nobody listens on any more is replaced, one that somebody listens on never;
//! at the end only the file that this side made is removed.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::net::{UnixListener, UnixStream};

use crate::endpoint::{Address, Endpoint, IpcName};
use crate::options::SocketOptions;

/// A socket file that this process made; it is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
    /// The folder made for `ipc://*`, which goes after it.
    _folder: Option<Folder>,
}

/// A folder that this process made; it is removed when this is dropped.
#[derive(Debug)]
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove the socket's folder");
        }
    }
}

impl SocketFile {
    fn of(path: &Path, folder: Option<Folder>) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        let path = std::path::absolute(path)?;
        Ok(Self { path, device: metadata.dev(), inode: metadata.ino(), _folder: folder })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| found.dev() == self.device && found.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket file");
        }
    }
}

/// Listens; also tells the file to remove at the end and the real endpoint.
pub(crate) fn bind(
    name: &IpcName,
    options: &SocketOptions,
) -> io::Result<(UnixListener, Option<SocketFile>, Endpoint)> {
    match name {
        IpcName::Abstract(octets) => {
            let listener = listen(&abstract_name(octets)?, options)?;
            Ok((listener, None, Endpoint(Address::Ipc(name.clone()))))
        }
        IpcName::Path(path) => bind_path(path, None, options),
        IpcName::Wildcard => {
            let folder = new_folder()?;
            bind_path(&folder.0.join("socket"), Some(folder), options)
        }
    }
}

/// Takes a socket over that listens already; its file belongs to whoever made it.
pub(crate) fn adopt(listener: StdListener) -> io::Result<(UnixListener, Endpoint)> {
    let address = listener.local_addr()?;
    let name = match (address.as_pathname(), address.as_abstract_name()) {
        (Some(path), _) => IpcName::Path(path.to_path_buf()),
        (None, Some(name)) => IpcName::Abstract(name.to_vec()),
        (None, None) => {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the socket has no name"));
        }
    };
    listener.set_nonblocking(true)?;
    Ok((UnixListener::from_std(listener)?, Endpoint(Address::Ipc(name))))
}

fn bind_path(
    path: &Path,
    folder: Option<Folder>,
    options: &SocketOptions,
) -> io::Result<(UnixListener, Option<SocketFile>, Endpoint)> {
    let address = SockAddr::unix(path)?;
    // between its birth and its listening a socket looks stale: others must not look then
    let _turn = lock_folder(path);
    let listener = match listen(&address, options) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path)?;
            listen(&address, options)?
        }
        listening => listening?,
    };
    let file = SocketFile::of(path, folder)?;
    if let Some(mode) = options.ipc_mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    Ok((listener, Some(file), Endpoint(Address::Ipc(IpcName::Path(path.to_path_buf())))))
}

/// Waits for this process's turn in the folder of `path`, which lasts until the file is dropped.
/// Where the folder cannot be opened there are no turns.
fn lock_folder(path: &Path) -> Option<fs::File> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = fs::File::open(folder.unwrap_or(Path::new("."))).ok()?;
    folder.lock().ok()?;
    Some(folder)
}

fn listen(address: &SockAddr, options: &SocketOptions) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    if let Some(mode) = options.ipc_mode {
        // the file is born with the mode of the socket, less the umask: never with more than asked
        let socket = fs::File::from(std::os::fd::OwnedFd::from(socket.try_clone()?));
        socket.set_permissions(fs::Permissions::from_mode(mode))?;
    }
    socket.bind(address)?;
    socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
    UnixListener::from_std(StdListener::from(socket))
}

/// Removes a socket file that nobody listens on.
fn remove_stale(path: &Path) -> io::Result<()> {
    let in_use = || io::Error::from(io::ErrorKind::AddrInUse);
    let found = fs::symlink_metadata(path)?;
    if !found.file_type().is_socket() {
        let reason = "the path exists and is not a socket";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, reason));
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        _ => return Err(in_use()),
    }
    // somebody else may have replaced it meanwhile: only the one that was probed may go
    let aside = path.with_file_name(unique("stale"));
    fs::rename(path, &aside)?;
    let moved = fs::symlink_metadata(&aside)?;
    if (moved.dev(), moved.ino()) != (found.dev(), found.ino()) {
        fs::hard_link(&aside, path)?;
        fs::remove_file(&aside)?;
        return Err(in_use());
    }
    fs::remove_file(&aside)
}

/// A new folder that only this user may enter.
fn new_folder() -> io::Result<Folder> {
    loop {
        let folder = std::env::temp_dir().join(unique("dragonwire"));
        match fs::DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => return Ok(Folder(folder)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

/// A name that nobody else uses at this time.
fn unique(prefix: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}-{}-{count}", std::process::id())
}

fn abstract_name(octets: &[u8]) -> io::Result<SockAddr> {
    let mut path = vec![0];
    path.extend_from_slice(octets);
    SockAddr::unix(OsStr::from_bytes(&path))
}

/// Connects; a listener whose backlog is full refuses for now.
pub(crate) fn connect(name: &IpcName) -> io::Result<UnixStream> {
    let address = match name {
        IpcName::Path(path) => SockAddr::unix(path)?,
        IpcName::Abstract(octets) => abstract_name(octets)?,
        IpcName::Wildcard => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&address)?;
    UnixStream::from_std(StdStream::from(socket))
}

/// What can be set on a connection.
pub(crate) fn set_up(stream: &UnixStream, options: &SocketOptions) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_send_buffer_size(options.send_buffer.unwrap_or(SEND_BUFFER))?;
    if let Some(octets) = options.recv_buffer {
        socket.set_recv_buffer_size(octets)?;
    }
    Ok(())
}

/// The send buffer of a connection. The system's, 208 KiB, does not grow as TCP's does, and is full
/// before the other side has woken up. More than the system allows (`net.core.wmem_max`) is cut down
/// to that.
const SEND_BUFFER: usize = 1024 * 1024;
