//! What becomes of drivers when their process forks. It has nothing to do with libzmq; it is here
//! because forking is `unsafe`, which only this package of the workspace allows.

#![allow(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use dragonwire::driver::config::DriverOptions;
use dragonwire::driver::{
    Action, DriverContext, DriverError, MultiprocDriver, NetworkDriver, PubSubDriver, Publisher,
    SubscriberEvent, Update,
};
use tokio::runtime::Builder;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(60);

/// A fork of this process.
struct Fork(libc::pid_t);

impl Fork {
    /// Runs `child` in a fork of this process.
    fn start(child: impl FnOnce() -> bool) -> Self {
        // SAFETY: the child runs in a copy of this thread alone. It allocates, which glibc allows
        // after fork, takes no lock that another thread may have held, and ends with `_exit`, so
        // that nothing of the parent's is dropped twice.
        match unsafe { libc::fork() } {
            0 => {
                let result = catch_unwind(AssertUnwindSafe(child));
                // SAFETY: ends this process only
                unsafe { libc::_exit(if matches!(result, Ok(true)) { 0 } else { 1 }) }
            }
            pid => {
                assert!(pid > 0, "the system does not fork");
                Self(pid)
            }
        }
    }

    /// Whether the child returned true.
    fn succeeded(self) -> bool {
        let mut status = 0;
        // SAFETY: `status` is there to be written
        assert_eq!(unsafe { libc::waitpid(self.0, &raw mut status, 0) }, self.0);
        status == 0
    }
}

fn update() -> Update {
    Update::new("lport", "1", Action::Set)
}

fn options() -> DriverOptions {
    let mut options = DriverOptions::default();
    options.publisher_bind_address = "127.0.0.1".to_owned();
    options.publisher_port = 0;
    options
}

#[test]
fn what_was_initialized_before_a_fork_says_so_after_it() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let driver = NetworkDriver::new(DriverContext::new(options())).unwrap();
    let (publisher, subscriber) = (driver.get_publisher(), driver.get_subscriber());
    let _updates = subscriber.initialize_stream().unwrap();
    runtime.block_on(async {
        publisher.initialize().await.unwrap();
        subscriber.daemonize().await.unwrap();
    });
    let (in_child, of_child) = (publisher.clone(), subscriber.clone());
    let child = Fork::start(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let sent = in_child.send_event(&update(), None).await;
            let registered = of_child.register_topic("D").await;
            let closed = of_child.close().await;
            matches!(sent, Err(DriverError::Forked { .. }))
                && matches!(registered, Err(DriverError::Forked { .. }))
                && matches!(closed, Err(DriverError::Forked { .. }))
                && in_child.close().await.is_ok()
        })
    });
    assert!(child.succeeded());
    // the parent goes on
    runtime.block_on(publisher.send_event(&update(), None)).unwrap();
    assert!(runtime.block_on(subscriber.register_topic("D")).unwrap());
}

#[test]
fn drivers_that_were_made_before_a_fork_are_used_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options();
    options.publisher_multiproc_socket = folder.path().join("socket");
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let driver = MultiprocDriver::new(DriverContext::new(options)).unwrap();
    let subscriber = driver.get_subscriber();
    let mut updates = subscriber.initialize_stream().unwrap();
    runtime.block_on(subscriber.daemonize()).unwrap();
    let writers: Vec<Arc<dyn Publisher>> = (0..3).map(|_| driver.get_publisher()).collect();
    let start = |publisher: Arc<dyn Publisher>| {
        Fork::start(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                publisher.send_event(&update(), None).await.is_ok()
                    && publisher.close().await.is_ok()
            })
        })
    };
    let children: Vec<_> = writers.into_iter().map(start).collect();
    runtime.block_on(async {
        for _ in 0..3 {
            let event = timeout(DEADLINE, updates.recv()).await.unwrap();
            assert!(matches!(event, Some(SubscriberEvent::Update(_))), "{event:?}");
        }
        subscriber.close().await.unwrap();
    });
    assert!(children.into_iter().all(Fork::succeeded));
}
