//! TCP: listening and connecting with the socket options that libzmq's users know.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};

use crate::endpoint::{Endpoint, Host};
use crate::options::SocketOptions;

/// Listens; also tells the real endpoint.
pub(crate) async fn bind(
    host: &Host,
    port: u16,
    options: &SocketOptions,
) -> io::Result<(TcpListener, Endpoint)> {
    let address = match host {
        Host::Any if options.ipv6 => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port),
        Host::Any => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port),
        _ => resolve(host, port, options).await?.first().copied().ok_or(no_address())?,
    };
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if let IpAddr::V6(ip) = address.ip() {
        // `tcp://*` with IPv6 is for both; an address is for itself
        socket.set_only_v6(!ip.is_unspecified())?;
    }
    before_connecting(&socket, address, options)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
    let listener = TcpListener::from_std(socket.into())?;
    let endpoint = Endpoint::tcp(listener.local_addr()?);
    Ok((listener, endpoint))
}

/// Connects to the first address that answers.
pub(crate) async fn connect(
    host: &Host,
    port: u16,
    source: Option<SocketAddr>,
    options: &SocketOptions,
) -> io::Result<TcpStream> {
    let mut last = no_address();
    for address in resolve(host, port, options).await? {
        match connect_to(address, source, options).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn connect_to(
    address: SocketAddr,
    source: Option<SocketAddr>,
    options: &SocketOptions,
) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    before_connecting(&socket, address, options)?;
    if let Some(source) = source {
        socket.set_reuse_address(true)?;
        socket.bind(&source.into())?;
    }
    let stream = TcpSocket::from_std_stream(socket.into()).connect(address).await?;
    // a connection of a port to itself is possible on one host, and nobody's wish
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(stream)
}

async fn resolve(host: &Host, port: u16, options: &SocketOptions) -> io::Result<Vec<SocketAddr>> {
    match host {
        Host::Any => Err(no_address()),
        Host::Ip(ip) => Ok(vec![SocketAddr::new(*ip, port)]),
        Host::Name(name) => {
            // a zoned IPv6 address is meant as it is
            let any = options.ipv6 || name.contains('%');
            let found = lookup_host((name.as_str(), port)).await?;
            Ok(found.filter(|address| any || address.is_ipv4()).collect())
        }
    }
}

fn no_address() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        "the name has no address (for IPv6 set the option ipv6)",
    )
}

/// What must be set before the connection is made.
fn before_connecting(
    socket: &Socket,
    address: SocketAddr,
    options: &SocketOptions,
) -> io::Result<()> {
    if let Some(octets) = options.send_buffer {
        socket.set_send_buffer_size(octets)?;
    }
    if let Some(octets) = options.recv_buffer {
        socket.set_recv_buffer_size(octets)?;
    }
    if let Some(interface) = &options.bind_to_device {
        socket.bind_device(Some(interface.as_bytes()))?;
    }
    if let Some(value) = options.type_of_service {
        match address {
            SocketAddr::V4(_) => socket.set_tos_v4(u32::from(value))?,
            SocketAddr::V6(_) => socket.set_tclass_v6(u32::from(value))?,
        }
    }
    Ok(())
}

/// What can be set on a connection.
pub(crate) fn set_up(stream: &TcpStream, options: &SocketOptions) -> io::Result<()> {
    // batching is this crate's own: what it writes is to go out
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let mut keepalive = TcpKeepalive::new();
    let mut tuned = false;
    if let Some(idle) = options.tcp_keepalive_idle {
        keepalive = keepalive.with_time(idle);
        tuned = true;
    }
    if let Some(interval) = options.tcp_keepalive_interval {
        keepalive = keepalive.with_interval(interval);
        tuned = true;
    }
    if let Some(count) = options.tcp_keepalive_count {
        keepalive = keepalive.with_retries(count);
        tuned = true;
    }
    if tuned {
        socket.set_tcp_keepalive(&keepalive)?;
    }
    if let Some(on) = options.tcp_keepalive {
        socket.set_keepalive(on)?;
    }
    if let Some(timeout) = options.tcp_user_timeout {
        socket.set_tcp_user_timeout(Some(timeout))?;
    }
    Ok(())
}
