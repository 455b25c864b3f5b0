//! Connecting to one of several Redis servers: the first in the list that answers and is a master.
//!
//! Each connection is looked for from the front of the list, and who uses a later server looks from
//! time to time whether an earlier one is back. So publishers and subscribers that can reach the same
//! servers come together on the same one, also when only some of them had lost it.

use std::fmt;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, FromRedisValue, RedisConnectionInfo, RedisError, Value,
    cmd,
};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::nodes::{Address, NoPlace, Place, Source, masters};
use crate::driver::error::DriverError;

/// Where servers are looked for, in the order of preference.
#[derive(Debug, Clone)]
pub(crate) struct Servers {
    sources: Vec<Source>,
    /// The masters of a cluster that one of its nodes has named.
    learnt: Vec<Source>,
}

/// The server that is used.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) address: Address,
    pub(super) login: RedisConnectionInfo,
    /// Its place in the list.
    rank: usize,
    /// Its nodes pass events on to each other.
    pub(super) is_cluster: bool,
}

impl Server {
    /// The number of the database that is used there.
    pub(crate) fn database(&self) -> i64 {
        self.login.db()
    }
}

impl Servers {
    /// Reads a list of addresses.
    pub(crate) fn new<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, NoPlace> {
        let sources = texts.into_iter().map(Source::parse).collect::<Result<Vec<_>, _>>()?;
        if sources.is_empty() {
            let reason = "no server is listed".to_owned();
            return Err(NoPlace { text: "an empty list".to_owned(), reason });
        }
        Ok(Self { sources, learnt: Vec::new() })
    }

    /// Tries each server once and returns the first that can be used.
    pub(crate) async fn connect(&mut self) -> Result<(Server, Connection), Unreachable> {
        let mut faults = Vec::new();
        for rank in 0..self.sources.len() {
            let Some(source) = self.sources.get(rank).cloned() else { break };
            match self.attempt(source, rank).await {
                Ok(found) => return Ok(found),
                Err(fault) => faults.push(fault),
            }
        }
        // those that were learnt just now too
        let mut next = 0;
        while let Some(source) = self.learnt.get(next).cloned() {
            next += 1;
            let tried = |fault: &Fault| matches!(&source.at, Place::Server(at) if fault.at == at.to_string());
            if faults.iter().any(tried) {
                continue;
            }
            match self.attempt(source, self.sources.len()).await {
                Ok(found) => return Ok(found),
                Err(fault) => faults.push(fault),
            }
        }
        Err(Unreachable { faults })
    }

    /// Resolves when a server that is preferred to the one in use can be used, or when Sentinels name
    /// another one. In a cluster none is preferred.
    pub(crate) async fn preferred(mut self, used: Server) {
        loop {
            sleep(REVIEW).await;
            if self.is_other_preferred(&used).await {
                return;
            }
        }
    }

    pub(super) async fn is_other_preferred(&mut self, used: &Server) -> bool {
        if used.is_cluster {
            return false;
        }
        for rank in 0..=used.rank {
            let Some(source) = self.sources.get(rank).cloned() else { break };
            if rank == used.rank && matches!(source.at, Place::Server(_)) {
                break;
            }
            if let Ok((server, _)) = self.attempt(source, rank).await {
                return server.address != used.address;
            }
        }
        false
    }

    async fn attempt(
        &mut self,
        source: Source,
        rank: usize,
    ) -> Result<(Server, Connection), Fault> {
        let Source { at, login } = source;
        let address = match at {
            Place::Server(address) => address,
            Place::Sentinels { sentinels, master } => locate(&sentinels, &master).await?,
        };
        let mut connection = Connection::open(&address, &login).await?;
        let role = connection.role().await?;
        let nodes = connection.nodes().await?;
        let named = masters(&nodes, &address).into_iter();
        let named: Vec<_> =
            named.map(|master| Source::new(Place::Server(master), login.clone())).collect();
        if !named.is_empty() {
            self.learnt = named;
        }
        match role.as_str() {
            "slave" => Err(connection.unusable("it is a replica, whose events stay with it")),
            "sentinel" => {
                Err(connection.unusable("it is a Sentinel: write redis+sentinel://HOST:PORT/NAME"))
            }
            _ => {
                let is_cluster = !nodes.is_empty();
                Ok((Server { address, login, rank, is_cluster }, connection))
            }
        }
    }
}

/// Asks the Sentinels, in their order, where the master is.
async fn locate(sentinels: &[Address], master: &str) -> Result<Address, Fault> {
    let mut reasons = Vec::new();
    for sentinel in sentinels {
        let asked = async {
            let mut connection = Connection::open(sentinel, &no_login()).await?;
            let mut question = cmd("SENTINEL");
            question.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
            let answer: Option<(String, u16)> = connection.ask(&question).await?;
            answer.ok_or_else(|| connection.unusable(&format!("it knows no master {master:?}")))
        };
        match asked.await {
            Ok((host, port)) => return Ok(Address { host, port }),
            Err(Fault { at, reason, .. }) => reasons.push(format!("Sentinel {at}: {reason}")),
        }
    }
    let (at, reason) = (format!("{master:?}"), reasons.join("; "));
    Err(Fault { at, reason, kind: FaultKind::Unusable })
}

fn no_login() -> RedisConnectionInfo {
    RedisConnectionInfo::default().set_skip_set_lib_name()
}

/// A connection for commands.
pub(crate) struct Connection {
    at: String,
    inner: MultiplexedConnection,
    _driver: AbortOnDropHandle<()>,
}

impl Connection {
    pub(crate) async fn open(
        address: &Address,
        login: &RedisConnectionInfo,
    ) -> Result<Self, Fault> {
        let at = address.to_string();
        let opening = async {
            let stream = dial(address).await?;
            let config = AsyncConnectionConfig::new().set_response_timeout(Some(ANSWER));
            let (inner, driver) =
                MultiplexedConnection::new_with_config(login, stream, config).await?;
            let driver = AbortOnDropHandle::new(tokio::spawn(driver));
            Ok(Self { at: at.clone(), inner, _driver: driver })
        };
        within(CONNECT, opening).await.map_err(|error| Fault::new(&at, &error))
    }

    /// Sends a command and waits for the answer.
    pub(crate) async fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, Fault> {
        let asked = command.query_async(&mut self.inner).await;
        asked.map_err(|error| Fault::new(&self.at, &error))
    }

    /// Sends commands that are done together or not at all.
    pub(crate) async fn ask_all<T: FromRedisValue>(
        &mut self,
        commands: &::redis::Pipeline,
    ) -> Result<T, Fault> {
        let asked = commands.query_async(&mut self.inner).await;
        asked.map_err(|error| Fault::new(&self.at, &error))
    }

    /// `master`, `slave` or `sentinel`; nothing if the server does not tell.
    async fn role(&mut self) -> Result<String, Fault> {
        match self.ask::<Vec<Value>>(&cmd("ROLE")).await {
            Ok(role) => {
                let word = role.into_iter().next().map(String::from_redis_value);
                Ok(word.and_then(Result::ok).unwrap_or_default())
            }
            Err(fault) if fault.kind == FaultKind::Answer => Ok(String::new()),
            Err(fault) => Err(fault),
        }
    }

    /// The nodes of the server's cluster; nothing if it is of none.
    async fn nodes(&mut self) -> Result<String, Fault> {
        match self.ask(cmd("CLUSTER").arg("NODES")).await {
            Err(fault) if fault.kind == FaultKind::Answer => Ok(String::new()),
            answered => answered,
        }
    }

    fn unusable(&self, reason: &str) -> Fault {
        Fault { at: self.at.clone(), reason: reason.to_owned(), kind: FaultKind::Unusable }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("at", &self.at).finish_non_exhaustive()
    }
}

pub(super) async fn dial(address: &Address) -> Result<TcpStream, RedisError> {
    let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// What the future resolves to, or that it took too long.
pub(super) async fn within<T>(
    time: Duration,
    future: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, RedisError> {
    timeout(time, future).await.unwrap_or_else(|_| {
        let error =
            std::io::Error::new(std::io::ErrorKind::TimedOut, format!("no answer within {time:?}"));
        Err(error.into())
    })
}

/// What one server did not do.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) at: String,
    pub(crate) reason: String,
    pub(super) kind: FaultKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FaultKind {
    /// There is no connection, or not any more, or no answer. A command may have been done.
    Gone,
    /// It is not to be used as it is now: it starts, or is not the master. Nothing was done.
    Unusable,
    /// It does not let this user. Nothing was done.
    Refused,
    /// It answered that there was an error. Nothing was done.
    Answer,
}

impl Fault {
    pub(super) fn new(at: &str, error: &RedisError) -> Self {
        let code = error.code().unwrap_or_default();
        let kind = match (error.kind(), code) {
            (ErrorKind::AuthenticationFailed, _) | (_, "NOAUTH" | "NOPERM" | "WRONGPASS") => {
                FaultKind::Refused
            }
            (_, "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "BUSY") => FaultKind::Unusable,
            (ErrorKind::Server(_) | ErrorKind::Extension, _) => FaultKind::Answer,
            _ => FaultKind::Gone,
        };
        Self { at: at.to_owned(), reason: error.to_string(), kind }
    }

    pub(crate) fn gone(address: &Address, reason: String) -> Self {
        Self { at: address.to_string(), reason, kind: FaultKind::Gone }
    }

    /// Whether the server does not do what it is asked for, and will not next time.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self.kind, FaultKind::Refused | FaultKind::Answer)
    }

    /// Whether the server has answered, so that a command was not done.
    pub(super) fn is_answer(&self) -> bool {
        self.kind != FaultKind::Gone
    }
}

/// No server could be used.
#[derive(Debug, Clone)]
pub(crate) struct Unreachable {
    pub(super) faults: Vec<Fault>,
}

impl Unreachable {
    /// All of them.
    pub(crate) fn at(&self) -> String {
        let at: Vec<_> = self.faults.iter().map(|fault| fault.at.as_str()).collect();
        at.join(", ")
    }

    /// What each of them said.
    pub(crate) fn reason(&self) -> String {
        match self.faults.as_slice() {
            [fault] => fault.reason.clone(),
            faults => {
                let told = faults.iter().map(|Fault { at, reason, .. }| format!("{at}: {reason}"));
                told.collect::<Vec<_>>().join("; ")
            }
        }
    }

    /// Whether there is a server, which will not do what it was asked for.
    pub(crate) fn is_final(&self) -> bool {
        self.faults.iter().all(Fault::is_refusal)
    }

    /// Whether it is of no use to try again as it is.
    pub(crate) fn is_refusal(&self) -> bool {
        self.faults.iter().all(|fault| fault.kind == FaultKind::Refused)
    }
}

impl From<Fault> for Unreachable {
    fn from(fault: Fault) -> Self {
        Self { faults: vec![fault] }
    }
}

impl From<Unreachable> for DriverError {
    fn from(unreachable: Unreachable) -> Self {
        Self::Broker { at: unreachable.at(), reason: unreachable.reason() }
    }
}

/// How long to wait before the next attempt: nothing at first, then ever longer.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    pub(crate) fn new(longest: Duration) -> Self {
        Self { next: Duration::ZERO, longest }
    }

    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).clamp(SHORTEST_PAUSE, self.longest);
        pause
    }

    pub(crate) fn reset(&mut self) {
        self.next = Duration::ZERO;
    }
}

/// How long a server may take until it has been connected to and has let the user in.
pub(super) const CONNECT: Duration = Duration::from_secs(3);

/// How long it may take to answer.
pub(crate) const ANSWER: Duration = Duration::from_secs(5);

/// How often who uses a later server looks for an earlier one.
pub(super) const REVIEW: Duration = Duration::from_secs(2);

/// A connection that has lasted so long does not count as a failed attempt when it breaks.
pub(crate) const STEADY: Duration = Duration::from_secs(5);

const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound_and_begin_anew() {
        let mut backoff = Backoff::new(Duration::from_millis(500));
        let pauses: Vec<_> = (0..5).map(|_| backoff.pause().as_millis()).collect();
        assert_eq!(pauses, [0, 100, 200, 400, 500]);
        backoff.reset();
        assert_eq!(backoff.pause(), Duration::ZERO);
    }

    #[test]
    fn a_list_has_to_have_servers() {
        assert_eq!(Servers::new([]).unwrap_err().reason, "no server is listed");
        assert_eq!(Servers::new(["a:1", "b"]).unwrap_err().text, "b");
        assert_eq!(Servers::new(["a:1", "redis://b"]).unwrap().sources.len(), 2);
    }

    #[test]
    fn errors_name_every_server() {
        let gone =
            Fault { at: "a:1".to_owned(), reason: "refused".to_owned(), kind: FaultKind::Gone };
        let one = Unreachable::from(gone.clone());
        assert_eq!(DriverError::from(one).to_string(), "Redis at a:1: refused");
        let other = Fault { at: "b:2".to_owned(), kind: FaultKind::Refused, ..gone.clone() };
        let both = Unreachable { faults: vec![gone, other] };
        assert!(!both.is_refusal());
        let error = DriverError::from(both).to_string();
        assert_eq!(error, "Redis at a:1, b:2: a:1: refused; b:2: refused");
    }
}
