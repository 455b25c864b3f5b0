//! A directory in etcd v3, over the JSON gateway that its members serve beside gRPC: requests that are
//! tried until there is an answer, and tables that are followed without a gap.

use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{self, BoxStream, StreamExt};
use hyper::Request;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::gateway::{Fault, Lines, Listing, MAX_REPLY};
use super::{Change, Directory, DirectoryError, Rows};
use crate::endpoint::{Address, Endpoint, Host};

#[cfg(any(test, fuzzing))]
pub(super) mod fuzzing;
mod gateway;

/// A directory in etcd v3: a row is the value of the key `/dragonwire/TABLE/KEY`.
///
/// Each request has 5 seconds, in which the members are tried one after the other, and again, until
/// one answers. A request that failed may have been done all the same. What etcd refuses, such as a
/// row that is too large for it, is [`DirectoryError::Refused`].
///
/// It needs a tokio runtime with IO and time. Authentication and TLS are not supported.
pub struct EtcdDirectory {
    inner: Arc<Inner>,
}

/// Shared with the streams of changes.
struct Inner {
    at: String,
    members: Vec<Member>,
    /// The one that answered last is the first to be asked.
    first: AtomicUsize,
    closed: CancellationToken,
}

/// Where one of the servers listens to clients.
#[derive(Debug, Clone)]
struct Member {
    host: String,
    port: u16,
    /// Both, as in a URI.
    authority: String,
}

impl EtcdDirectory {
    /// The directory in the etcd whose members are at `etcd://HOST:PORT[,HOST:PORT]...`. Nothing is
    /// connected to yet.
    ///
    /// # Errors
    /// [`DirectoryError::Address`].
    pub fn new(uri: &str) -> Result<Self, DirectoryError> {
        let wrong = || DirectoryError::Address {
            uri: uri.to_owned(),
            expected: "etcd://HOST:PORT[,HOST:PORT]...",
        };
        let members = uri.strip_prefix("etcd://").ok_or_else(wrong)?;
        let members = members.split(',').map(Member::parse);
        let inner = Inner {
            at: uri.to_owned(),
            members: members.collect::<Option<_>>().ok_or_else(wrong)?,
            first: AtomicUsize::new(0),
            closed: CancellationToken::new(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }
}

impl fmt::Debug for EtcdDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdDirectory").field("at", &self.inner.at).finish_non_exhaustive()
    }
}

impl Directory for EtcdDirectory {
    fn get<'a>(
        &'a self,
        table: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<Option<String>, DirectoryError>> {
        let body = gateway::get_body(table, key);
        self.inner.request(gateway::RANGE, body, gateway::row).boxed()
    }

    fn list<'a>(&'a self, table: &'a str) -> BoxFuture<'a, Result<Rows, DirectoryError>> {
        let read = |reply: &[u8]| Ok(gateway::listing(table, reply)?.rows);
        self.inner.request(gateway::RANGE, gateway::list_body(table), read).boxed()
    }

    fn put<'a>(
        &'a self,
        table: &'a str,
        key: &'a str,
        value: &'a str,
    ) -> BoxFuture<'a, Result<(), DirectoryError>> {
        let put = async move {
            if table.is_empty() || key.is_empty() {
                let reason = "a row needs a table and a key".to_owned();
                return Err(self.inner.error(Fault::Refused(reason)));
            }
            let body = gateway::put_body(table, key, value);
            self.inner.request(gateway::PUT, body, gateway::written).await
        };
        put.boxed()
    }

    fn delete<'a>(
        &'a self,
        table: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<bool, DirectoryError>> {
        let body = gateway::delete_body(table, key);
        self.inner.request(gateway::DELETE, body, gateway::deleted).boxed()
    }

    fn watch(&self, table: &str) -> BoxStream<'static, Change> {
        let follower = Follower {
            inner: self.inner.clone(),
            table: table.to_owned(),
            following: None,
            failures: 0,
            lost: false,
        };
        let changes = stream::unfold(follower, |mut follower| async {
            let closed = follower.inner.closed.clone();
            let change = tokio::select! {
                biased;
                () = closed.cancelled() => return None,
                change = follower.next() => change,
            };
            Some((change, follower))
        });
        changes.fuse().boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async { self.inner.closed.cancel() }.boxed()
    }
}

impl Member {
    fn parse(text: &str) -> Option<Self> {
        let endpoint: Endpoint = format!("tcp://{text}").parse().ok()?;
        endpoint.check_connectable().ok()?;
        let Address::Tcp { host, port, source: None } = endpoint.0 else { return None };
        let host = match host {
            Host::Ip(ip) => ip.to_string(),
            Host::Name(name) => name,
            Host::Any => return None,
        };
        Some(Self { host, port, authority: text.to_owned() })
    }
}

impl Inner {
    /// Asks until there is an answer or the time is over.
    async fn request<T>(
        &self,
        path: &'static str,
        body: String,
        read: impl Fn(&[u8]) -> Result<T, Fault>,
    ) -> Result<T, DirectoryError> {
        let mut fault = Fault::Away(format!("no answer within {DEADLINE:?}"));
        let asking = async {
            let mut failures = 0;
            loop {
                match self.first_of_all(|member| member.ask(path, &body, &read)).await {
                    Err(away @ Fault::Away(_)) => fault = away,
                    answer => return answer,
                }
                failures += 1;
                sleep(pause(failures)).await;
            }
        };
        let asked = tokio::select! {
            biased;
            () = self.closed.cancelled() => return Err(DirectoryError::Closed),
            asked = timeout(DEADLINE, asking) => asked,
        };
        asked.unwrap_or(Err(fault)).map_err(|fault| self.error(fault))
    }

    /// The answer of the first member that has one. Each is tried once and has its share of the time.
    async fn first_of_all<'a, T, F>(&'a self, ask: impl Fn(&'a Member) -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let count = self.members.len();
        let share = DEADLINE / u32::try_from(count).unwrap_or(u32::MAX).max(1);
        let first = self.first.load(Ordering::Relaxed);
        let mut fault = Fault::Away("none is named".to_owned());
        let members = self.members.iter().enumerate().cycle().skip(first).take(count);
        for (index, member) in members {
            let answer = timeout(share, ask(member)).await;
            match answer.unwrap_or_else(|_| Err(no_answer(share))) {
                Err(Fault::Away(reason)) => {
                    fault = Fault::Away(format!("{}: {reason}", member.authority));
                }
                answer => {
                    self.first.store(index, Ordering::Relaxed);
                    return answer;
                }
            }
        }
        Err(fault)
    }

    fn error(&self, fault: Fault) -> DirectoryError {
        let at = self.at.clone();
        match fault {
            Fault::Refused(reason) => DirectoryError::Refused { at, reason },
            Fault::Away(reason) => DirectoryError::Unreachable { at, reason },
        }
    }
}

impl Member {
    /// Sends a request on a connection of its own and reads the reply.
    async fn ask<T>(
        &self,
        path: &'static str,
        body: &str,
        read: impl Fn(&[u8]) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let mut connection = Connection::open(self).await?;
        let mut reply = connection.post(path, body.to_owned()).await?;
        read(&whole(&mut reply).await?)
    }

    /// Lists a table and watches what changes in it from then on.
    async fn follow(&self, table: &str) -> Result<(Following, Rows), Fault> {
        let mut connection = Connection::open(self).await?;
        let mut reply = connection.post(gateway::RANGE, gateway::list_body(table)).await?;
        let Listing { revision, rows } = gateway::listing(table, &whole(&mut reply).await?)?;
        let watch = gateway::watch_body(table, revision);
        let body = connection.post(gateway::WATCH, watch).await?;
        let mut following = Following {
            member: self.clone(),
            table: table.to_owned(),
            body,
            lines: Lines::default(),
            changes: VecDeque::new(),
            check_at: Instant::now() + CHECK,
            lasts: false,
            _connection: connection,
        };
        // that it has begun, or why not
        let begun = following.message().await?;
        following.changes.extend(gateway::changes(table, &begun)?);
        Ok((following, rows))
    }
}

/// An HTTP connection to a member; dropping it closes it.
struct Connection {
    authority: String,
    requests: SendRequest<String>,
    _running: AbortOnDropHandle<()>,
}

impl Connection {
    async fn open(member: &Member) -> Result<Self, Fault> {
        let stream = TcpStream::connect((member.host.as_str(), member.port));
        let stream = stream.await.map_err(|error| broken(&error))?;
        stream.set_nodelay(true).map_err(|error| broken(&error))?;
        let (requests, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        let running = tokio::spawn(async {
            // who waits for the reply is told too
            drop(connection.await);
        });
        let authority = member.authority.clone();
        Ok(Self { authority, requests, _running: AbortOnDropHandle::new(running) })
    }

    /// The body of the reply.
    async fn post(&mut self, path: &'static str, body: String) -> Result<Incoming, Fault> {
        let request = Request::post(path)
            .header(HOST, &self.authority)
            .header(CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|error| broken(&error))?;
        self.requests.ready().await.map_err(|error| broken(&error))?;
        let reply = self.requests.send_request(request).await.map_err(|error| broken(&error))?;
        let (head, mut body) = reply.into_parts();
        if head.status.is_success() {
            return Ok(body);
        }
        Err(gateway::failure(head.status.as_u16(), &whole(&mut body).await?))
    }
}

/// The next octets of a body; `None` at its end.
async fn part(body: &mut Incoming) -> Result<Option<Bytes>, Fault> {
    loop {
        let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
        let Some(frame) = frame.transpose().map_err(|error| broken(&error))? else {
            return Ok(None);
        };
        // trailers repeat what the body says
        if let Ok(octets) = frame.into_data() {
            return Ok(Some(octets));
        }
    }
}

async fn whole(body: &mut Incoming) -> Result<Vec<u8>, Fault> {
    let mut octets = Vec::new();
    while let Some(part) = part(body).await? {
        if octets.len() + part.len() > MAX_REPLY {
            return Err(gateway::too_large());
        }
        octets.extend_from_slice(&part);
    }
    Ok(octets)
}

/// A table that is watched.
struct Following {
    member: Member,
    table: String,
    body: Incoming,
    lines: Lines,
    changes: VecDeque<Change>,
    check_at: Instant,
    /// It has told something or stood a check.
    lasts: bool,
    _connection: Connection,
}

impl Following {
    async fn next(&mut self) -> Result<Change, Fault> {
        loop {
            if let Some(change) = self.changes.pop_front() {
                self.lasts = true;
                return Ok(change);
            }
            let message = self.message().await?;
            self.changes.extend(gateway::changes(&self.table, &message)?);
        }
    }

    async fn message(&mut self) -> Result<BytesMut, Fault> {
        loop {
            if let Some(message) = self.lines.next() {
                return Ok(message);
            }
            tokio::select! {
                biased;
                part = part(&mut self.body) => match part? {
                    Some(octets) => self.lines.push(&octets)?,
                    None => return Err(Fault::Away("the watch ended".to_owned())),
                },
                () = sleep_until(self.check_at) => self.check().await?,
            }
        }
    }

    /// A member that hangs, or has no contact with the others, watches in silence.
    async fn check(&mut self) -> Result<(), Fault> {
        let body = gateway::check_body(&self.table);
        let asked = self.member.ask(gateway::RANGE, &body, gateway::answered);
        timeout(CHECK, asked).await.unwrap_or_else(|_| Err(no_answer(CHECK)))?;
        self.lasts = true;
        self.check_at = Instant::now() + CHECK;
        Ok(())
    }
}

/// A stream of changes.
struct Follower {
    inner: Arc<Inner>,
    table: String,
    /// `None`: the table has to be listed.
    following: Option<Following>,
    /// How many times in a row it did not come about or did not last.
    failures: u32,
    /// [`Change::Lost`] was told and nothing since.
    lost: bool,
}

impl Follower {
    async fn next(&mut self) -> Change {
        loop {
            let Some(following) = &mut self.following else {
                if let Some(change) = self.begin().await {
                    return change;
                }
                continue;
            };
            match following.next().await {
                Ok(change) => return change,
                Err(fault) => {
                    let error = self.inner.error(fault);
                    tracing::debug!(table = self.table, %error, "a table is listed anew");
                    self.failures = if following.lasts { 1 } else { self.failures + 1 };
                    self.following = None;
                }
            }
        }
    }

    /// Tries once to follow the table; `None` if it failed once more.
    async fn begin(&mut self) -> Option<Change> {
        if self.failures > 0 {
            sleep(pause(self.failures)).await;
        }
        match self.inner.first_of_all(|member| member.follow(&self.table)).await {
            Ok((following, rows)) => {
                (self.following, self.lost) = (Some(following), false);
                Some(Change::All(rows))
            }
            Err(fault) => {
                self.failures += 1;
                let told = std::mem::replace(&mut self.lost, true);
                (!told).then(|| Change::Lost { reason: self.inner.error(fault).to_string() })
            }
        }
    }
}

/// How long to wait after so many failures in a row.
fn pause(failures: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
    FIRST_PAUSE.saturating_mul(doubled).min(LONGEST_PAUSE)
}

fn no_answer(within: Duration) -> Fault {
    Fault::Away(format!("no answer within {within:?}"))
}

/// What went wrong with a connection, with the reasons of the reason.
fn broken(error: &(dyn Error + 'static)) -> Fault {
    let mut reasons = vec![error.to_string()];
    let mut next = error.source();
    while let Some(error) = next {
        reasons.push(error.to_string());
        next = error.source();
    }
    Fault::Away(reasons.join(": "))
}

/// How long a request is tried.
const DEADLINE: Duration = Duration::from_secs(5);
/// How often a member that has a watch is asked whether it is there, and how long it may take to answer.
const CHECK: Duration = Duration::from_secs(3);
/// A leader is elected within a second or so, and a server starts within a few.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_the_members() {
        let members = |uri: &str| {
            let inner = EtcdDirectory::new(uri).unwrap().inner;
            let hosts = inner.members.iter().map(|member| (member.host.clone(), member.port));
            hosts.collect::<Vec<_>>()
        };
        assert_eq!(members("etcd://10.0.0.1:2379"), [("10.0.0.1".to_owned(), 2379)]);
        let several = members("etcd://node-1:1,[::1]:2");
        assert_eq!(several, [("node-1".to_owned(), 1), ("::1".to_owned(), 2)]);
        for wrong in [
            "tcp://a:1",
            "etcd://",
            "etcd://a",
            "etcd://a:0",
            "etcd://*:1",
            "etcd://a:1,",
            "etcd://a:1, b:1",
            "etcd://a:1/x",
            "etcd://u@a:1",
            "etcd://a:1;b:1",
            "etcd://a\r\n:1",
        ] {
            let refused = EtcdDirectory::new(wrong).unwrap_err();
            assert!(matches!(&refused, DirectoryError::Address { uri, .. } if uri == wrong));
        }
    }

    #[test]
    fn pauses_grow_up_to_a_limit() {
        let pauses = [1, 2, 3, 6, 7, u32::MAX].map(|failures| pause(failures).as_millis());
        assert_eq!(pauses, [100, 200, 400, 3000, 3000, 3000]);
    }
}
