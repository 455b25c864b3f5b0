//! Unix sockets: whose file is replaced and removed, its mode, and who may connect.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod deadline;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use deadline::{event, within};
use dragonwire::{
    Credentials, DisconnectCause, Endpoint, Error, Event, PullSocket, PushSocket, SocketOptions,
};

/// A folder of one test, removed with all that is in it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("unix-ipc-test-{}-{count}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    fn path(&self) -> PathBuf {
        self.0.join("socket")
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

async fn one_message_comes(pull: &mut PullSocket, endpoint: &Endpoint) {
    let push = PushSocket::new();
    push.connect(endpoint).await.unwrap();
    push.send("hello").await.unwrap();
    assert_eq!(within(pull.recv()).await.unwrap(), "hello".into());
}

fn ours() -> (u32, u32, i32) {
    let own = fs::metadata("/proc/self").unwrap();
    (own.uid(), own.gid(), std::process::id() as i32)
}

#[tokio::test]
async fn a_stale_socket_file_is_replaced() {
    let folder = Folder::new();
    let path = folder.path();
    drop(UnixListener::bind(&path).unwrap());
    assert_eq!(UnixStream::connect(&path).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let mut pull = PullSocket::new();
    let endpoint = pull.bind(Endpoint::ipc(&path).unwrap()).await.unwrap();
    assert_eq!(endpoint.path(), Some(&*path));
    one_message_comes(&mut pull, &endpoint).await;
    assert_eq!(folder.names(), ["socket"]);
    within(pull.close()).await;
    assert_eq!(folder.names(), Vec::<String>::new());
}

#[tokio::test]
async fn a_live_socket_file_is_never_replaced() {
    let folder = Folder::new();
    let mut first = PullSocket::new();
    let endpoint = first.bind(Endpoint::ipc(folder.path()).unwrap()).await.unwrap();
    let before = inode(&folder.path());
    let second = PullSocket::new();
    let error = second.bind(&endpoint).await.unwrap_err();
    assert!(matches!(&error, Error::Bind { source, .. } if source.kind() == ErrorKind::AddrInUse));
    drop(second);
    assert_eq!(inode(&folder.path()), before);
    one_message_comes(&mut first, &endpoint).await;
    assert_eq!(folder.names(), ["socket"]);
}

#[tokio::test]
async fn a_live_socket_file_whose_backlog_is_full_is_never_replaced() {
    let folder = Folder::new();
    let path = folder.path();
    // a listener that accepts nobody, as far as the probe can see
    let listener =
        socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    listener.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    listener.listen(1).unwrap();
    let mut fillers = Vec::new();
    loop {
        let filler =
            socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        filler.set_nonblocking(true).unwrap();
        match filler.connect(&socket2::SockAddr::unix(&path).unwrap()) {
            Ok(()) => fillers.push(filler),
            Err(error) => break assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    let before = inode(&path);
    let pull = PullSocket::new();
    let error = pull.bind(Endpoint::ipc(&path).unwrap()).await.unwrap_err();
    assert!(matches!(&error, Error::Bind { source, .. } if source.kind() == ErrorKind::AddrInUse));
    assert_eq!(inode(&path), before);
}

#[test]
fn of_many_that_bind_a_stale_file_at_once_one_wins_and_lives() {
    const THREADS: usize = 4;
    const ROUNDS: usize = 1000;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut wrong = Vec::new();
    for round in 0..ROUNDS {
        let folder = Folder::new();
        let path = folder.path();
        drop(UnixListener::bind(&path).unwrap());
        let barrier = Barrier::new(THREADS);
        let winners: Vec<_> = std::thread::scope(|scope| {
            let race = || {
                let _guard = runtime.enter();
                let pull = PullSocket::new();
                barrier.wait();
                let bound = runtime.block_on(pull.bind(Endpoint::ipc(&path).unwrap()));
                (bound.is_ok()).then_some(pull)
            };
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(race)).collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
        });
        let reachable = UnixStream::connect(&path).is_ok();
        let names = folder.names();
        if winners.len() != 1 || !reachable || names != ["socket"] {
            wrong.push((round, winners.len(), reachable, names));
        }
        runtime.block_on(async {
            for winner in &winners {
                within(winner.close()).await;
            }
        });
    }
    assert_eq!(wrong, [], "round, how many bound it, whether it can be connected to, files");
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_not_touched() {
    let folder = Folder::new();
    let path = folder.path();
    fs::write(&path, "precious").unwrap();
    let before = inode(&path);
    let pull = PullSocket::new();
    let error = pull.bind(Endpoint::ipc(&path).unwrap()).await.unwrap_err();
    assert!(
        matches!(&error, Error::Bind { source, .. } if source.kind() == ErrorKind::AlreadyExists)
    );
    drop(pull);
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    assert_eq!(inode(&path), before);

    // nor is what a link points to
    let link = folder.0.join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let pull = PullSocket::new();
    pull.bind(Endpoint::ipc(&link).unwrap()).await.unwrap_err();
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
}

#[tokio::test]
async fn only_the_file_that_was_made_is_removed() {
    let folder = Folder::new();
    let path = folder.path();
    for by_unbind in [false, true] {
        // somebody else's file in its place
        let pull = PullSocket::new();
        let endpoint = pull.bind(Endpoint::ipc(&path).unwrap()).await.unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another's").unwrap();
        if by_unbind {
            within(pull.unbind(&endpoint)).await.unwrap();
        } else {
            within(pull.close()).await;
        }
        assert_eq!(fs::read(&path).unwrap(), b"another's");
        fs::remove_file(&path).unwrap();
    }
    // somebody else's socket in its place
    let first = PullSocket::new();
    let endpoint = first.bind(Endpoint::ipc(&path).unwrap()).await.unwrap();
    fs::remove_file(&path).unwrap();
    let mut second = PullSocket::new();
    second.bind(&endpoint).await.unwrap();
    within(first.close()).await;
    assert!(fs::symlink_metadata(&path).unwrap().file_type().is_socket());
    one_message_comes(&mut second, &endpoint).await;
    // and a file that is gone already is no trouble
    fs::remove_file(&path).unwrap();
    within(second.close()).await;
    assert_eq!(folder.names(), Vec::<String>::new());
}

#[tokio::test]
async fn the_file_goes_when_the_last_handle_does() {
    let folder = Folder::new();
    let push = PushSocket::new();
    let mut monitor = push.monitor();
    push.bind(Endpoint::ipc(folder.path()).unwrap()).await.unwrap();
    let other = push.clone();
    drop(push);
    assert_eq!(folder.names(), ["socket"]);
    drop(other);
    event(&mut monitor, |event| *event == Event::Closed).await;
    assert_eq!(folder.names(), Vec::<String>::new());
}

#[tokio::test]
async fn the_file_has_the_mode_that_was_asked_for() {
    for mode in [0o600, 0o660, 0o666, 0o777] {
        let folder = Folder::new();
        let pull = PullSocket::with_options(SocketOptions::new().ipc_mode(mode)).unwrap();
        pull.bind(Endpoint::ipc(folder.path()).unwrap()).await.unwrap();
        let found = fs::metadata(folder.path()).unwrap().permissions().mode();
        assert_eq!(found & 0o7777, mode, "{found:o}");
    }
}

#[tokio::test]
async fn the_folder_of_a_wildcard_is_private_and_goes_with_it() {
    for how in ["close", "unbind", "drop"] {
        let mut pull = PullSocket::new();
        let mut monitor = pull.monitor();
        let endpoint = pull.bind("ipc://*").await.unwrap();
        let path = endpoint.path().unwrap().to_path_buf();
        let folder = path.parent().unwrap().to_path_buf();
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o7777, 0o700);
        one_message_comes(&mut pull, &endpoint).await;
        match how {
            "close" => drop(within(pull.close()).await),
            "unbind" => within(pull.unbind(&endpoint)).await.unwrap(),
            _ => {
                drop(pull);
                event(&mut monitor, |event| *event == Event::Closed).await;
            }
        }
        assert!(!path.exists() && !folder.exists(), "{how}: {}", folder.display());
    }
}

#[tokio::test]
async fn a_failed_bind_leaves_nothing() {
    let folder = Folder::new();
    let path = folder.0.join("no").join("folder");
    let pull = PullSocket::new();
    pull.bind(Endpoint::ipc(&path).unwrap()).await.unwrap_err();
    assert_eq!(folder.names(), Vec::<String>::new());
}

#[tokio::test]
async fn credentials_are_told() {
    let (uid, gid, pid) = ours();
    for text in ["ipc://*".to_owned(), format!("ipc://@unix-ipc-test-{pid}-credentials")] {
        let pull = PullSocket::new();
        let mut bound = pull.monitor();
        let endpoint = pull.bind(&text).await.unwrap();
        let push = PushSocket::new();
        let mut connected = push.monitor();
        push.connect(&endpoint).await.unwrap();
        for monitor in [&mut bound, &mut connected] {
            let up = event(monitor, |e| matches!(e, Event::HandshakeSucceeded { .. })).await;
            let Event::HandshakeSucceeded { peer } = up else { unreachable!() };
            let Credentials { uid: u, gid: g, pid: p, .. } = peer.credentials.unwrap();
            assert_eq!((u, g, p), (uid, gid, Some(pid)));
            assert_eq!((peer.local, peer.remote), (None, None));
            assert_eq!(peer.endpoint, endpoint);
            assert!(peer.to_string().contains(&format!("process {pid}")), "{peer}");
        }
    }
}

/// Connects over Unix sockets to a socket of these options: `None` if it is accepted, else what the
/// refusal says.
async fn refusal(options: SocketOptions) -> Option<String> {
    let mut pull = PullSocket::with_options(options).unwrap();
    let mut bound = pull.monitor();
    let endpoint = pull.bind("ipc://*").await.unwrap();
    let push = PushSocket::with_options(SocketOptions::new().linger(Some(Duration::ZERO))).unwrap();
    let mut connected = push.monitor();
    push.connect(&endpoint).await.unwrap();
    push.send("let me in").await.unwrap();
    let outcome = event(&mut bound, |event| {
        matches!(event, Event::HandshakeSucceeded { .. } | Event::HandshakeFailed { .. })
    });
    match outcome.await {
        Event::HandshakeFailed { peer, cause: DisconnectCause::Filtered(who) } => {
            assert!(peer.credentials.is_some());
            assert!(pull.try_recv().is_err());
            assert_eq!(pull.stats().failed_handshakes, 1);
            // the peer is not told why, and tries again
            event(&mut connected, |event| matches!(event, Event::HandshakeFailed { .. })).await;
            event(&mut connected, |event| matches!(event, Event::Retry { .. })).await;
            Some(who)
        }
        Event::HandshakeSucceeded { .. } => {
            assert_eq!(within(pull.recv()).await.unwrap(), "let me in".into());
            None
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn filters_by_credentials_let_in_who_fits_any() {
    let (uid, gid, pid) = ours();
    let none = SocketOptions::new;
    for options in [
        none(),
        none().ipc_filter_uid(uid),
        none().ipc_filter_gid(gid),
        none().ipc_filter_pid(pid),
        none().ipc_filter_uid(uid + 1).ipc_filter_uid(uid),
        none().ipc_filter_uid(uid + 1).ipc_filter_gid(gid + 1).ipc_filter_pid(pid),
    ] {
        assert_eq!(refusal(options).await, None);
    }
    for options in [
        none().ipc_filter_uid(uid + 1),
        none().ipc_filter_gid(gid + 1),
        none().ipc_filter_pid(pid + 1),
        none().ipc_filter_uid(uid + 1).ipc_filter_gid(gid + 1).ipc_filter_pid(pid + 1),
    ] {
        let who = refusal(options).await.unwrap();
        for part in [format!("user {uid}"), format!("group {gid}"), format!("process {pid}")] {
            assert!(who.contains(&part), "{who}");
        }
    }
}

#[tokio::test]
async fn filters_by_address_let_in_who_fits_any() {
    let filtered = |texts: &[&str]| {
        texts.iter().fold(SocketOptions::new().ipv6(true), |options, text| {
            options.tcp_accept_filter(text).unwrap()
        })
    };
    for (filters, bind, host, accepted) in [
        (&["127.0.0.0/8"][..], "127.0.0.1", "127.0.0.1", true),
        (&["127.0.0.1"], "127.0.0.1", "127.0.0.1", true),
        (&["10.0.0.0/8", "127.0.0.1/32"], "127.0.0.1", "127.0.0.1", true),
        (&["127.0.0.2/32"], "127.0.0.1", "127.0.0.2:0;127.0.0.1", true),
        // through a socket for both IPv4 and IPv6
        (&["127.0.0.0/8"], "*", "127.0.0.1", true),
        (&["::1"], "*", "[::1]", true),
        (&["127.0.0.0/8"], "*", "[::1]", false),
        (&["::1"], "*", "127.0.0.1", false),
        (&["127.0.0.2/32"], "127.0.0.1", "127.0.0.1", false),
        (&["10.0.0.0/8"], "127.0.0.1", "127.0.0.1", false),
    ] {
        let mut pull = PullSocket::with_options(filtered(filters)).unwrap();
        let mut monitor = pull.monitor();
        let port = pull.bind(format!("tcp://{bind}:*")).await.unwrap().port().unwrap();
        let push = PushSocket::with_options(SocketOptions::new().linger(Some(Duration::ZERO)));
        let push = push.unwrap();
        push.connect(format!("tcp://{host}:{port}")).await.unwrap();
        push.send("let me in").await.unwrap();
        let outcome = event(&mut monitor, |event| {
            matches!(event, Event::HandshakeSucceeded { .. } | Event::HandshakeFailed { .. })
        });
        match outcome.await {
            Event::HandshakeSucceeded { .. } => {
                assert!(accepted, "{filters:?} {host}");
                assert_eq!(within(pull.recv()).await.unwrap(), "let me in".into());
            }
            Event::HandshakeFailed { peer, cause: DisconnectCause::Filtered(who) } => {
                assert!(!accepted, "{filters:?} {host}");
                let address = peer.remote.unwrap().ip().to_canonical().to_string();
                assert!(who.contains(&address), "{who}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn filters_of_the_other_transport_are_not_asked() {
    let (uid, ..) = ours();
    let options = SocketOptions::new().ipc_filter_uid(uid + 1);
    let options = options.tcp_accept_filter("10.0.0.0/8").unwrap();
    let mut pull = PullSocket::with_options(options).unwrap();
    let mut monitor = pull.monitor();
    let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    let push = PushSocket::new();
    push.connect(&endpoint).await.unwrap();
    let failed = event(&mut monitor, |e| matches!(e, Event::HandshakeFailed { .. })).await;
    let Event::HandshakeFailed { cause, .. } = failed else { unreachable!() };
    assert!(matches!(&cause, DisconnectCause::Filtered(who) if who.contains("127.0.0.1")));
    assert!(pull.try_recv().is_err());

    let tcp = SocketOptions::new().tcp_accept_filter("10.0.0.0/8").unwrap();
    let mut pull = PullSocket::with_options(tcp).unwrap();
    let endpoint = pull.bind("ipc://*").await.unwrap();
    one_message_comes(&mut pull, &endpoint).await;
    let ipc = SocketOptions::new().ipc_filter_uid(uid + 1);
    let mut pull = PullSocket::with_options(ipc).unwrap();
    let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    one_message_comes(&mut pull, &endpoint).await;
}
