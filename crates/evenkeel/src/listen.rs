//! Addresses: what `--http`, `--grpc` and `--advertise` mean on this host. Pure: the host is asked through [`Host`].
//!
//! Without authentication a port that everybody reaches is a door that stands open, so `:PORT` means loopback unless `--insecure`
//! says that an open door is wanted.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket},
    str::FromStr,
};

use evenkeel_model::shown::shown;

/// `:PORT` or `HOST:PORT`, as it was written. Port 0: any that is free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listen {
    host: Option<String>,
    port: u16,
}

/// Where a server listens, and the address that others are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Where it listens.
    pub(crate) listen: SocketAddr,
    /// The host as others reach it; an IPv6 address in brackets.
    pub(crate) host: String,
    /// That host was found, and not given: it may be another one later.
    pub(crate) is_found: bool,
}

/// Something about an address that the log is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    /// Whether it deserves a warning.
    pub(crate) warning: bool,
    /// The sentence.
    pub(crate) text: String,
}

/// What must be asked of the host.
pub(crate) trait Host {
    /// The address of a name.
    fn lookup(&self, name: &str) -> io::Result<IpAddr>;
    /// The address that others reach this host by: IPv4 where it has both.
    fn primary(&self) -> Option<IpAddr>;
    /// Whether the host has this loopback address, and so this family.
    fn has(&self, loopback: IpAddr) -> bool;
}

/// What the flags say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish<'a> {
    /// The flag, for what is told.
    pub(crate) flag: &'a str,
    /// Its value.
    pub(crate) listen: &'a Listen,
    /// `--insecure`.
    pub(crate) insecure: bool,
    /// `--advertise`.
    pub(crate) advertise: Option<&'a str>,
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, port) = text.rsplit_once(':').ok_or_else(|| format!("write :{text} or HOST:{text}, with a colon before the port"))?;
        let port = match port.parse::<u16>() {
            Ok(port) => port,
            Err(_) => return Err(format!("invalid port {}: a number from 1 to 65535, or 0 for any that is free", shown(port))),
        };
        let host = if host.is_empty() { None } else { Some(check_host(host)?) };
        Ok(Self { host, port })
    }
}

impl Listen {
    /// Where a server that listens here is reached from this machine.
    pub(crate) fn local(&self) -> String {
        let loopback = bracketed(loopback(&ThisHost));
        let host = self.host.as_deref().unwrap_or(&loopback);
        match host.trim_start_matches('[').trim_end_matches(']').parse() {
            Ok(address) => SocketAddr::new(crate::health::reached_at(address), self.port).to_string(),
            Err(_) => format!("{host}:{}", self.port),
        }
    }

    /// Whether both ask for the very same place.
    pub(crate) fn collides(&self, other: &Self) -> bool {
        self.port != 0 && self == other
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host.as_deref().unwrap_or_default(), self.port)
    }
}

/// A host name, an IPv4 address, or an IPv6 address in brackets; without scheme and port.
pub(crate) fn check_host(text: &str) -> Result<String, String> {
    if let Some(inner) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        return inner.parse::<std::net::Ipv6Addr>().map(|_| text.to_owned()).map_err(|_| format!("{inner:?} is no IPv6 address"));
    }
    if text.parse::<std::net::Ipv6Addr>().is_ok() {
        return Ok(format!("[{text}]"));
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if text.is_empty() || text.len() > 253 || !text.chars().all(is_name) {
        return Err(format!("{text:?} is no host name or address; give it without scheme and port"));
    }
    Ok(text.to_owned())
}

/// Where to listen and what to tell others.
pub(crate) fn resolve(wish: Wish<'_>, host: &dyn Host) -> Result<(Endpoint, Vec<Note>), String> {
    let Wish { flag, listen, insecure, .. } = wish;
    let mut notes = Vec::new();
    let address = match &listen.host {
        // It takes IPv4, too.
        None if insecure && host.has(Ipv6Addr::LOCALHOST.into()) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        None if insecure => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        None => {
            let address = loopback(host);
            let shown = bracketed(address);
            let text = format!(
                "{flag} {listen}: listening on {shown} only, as there is no authentication; --insecure opens it to every interface"
            );
            notes.push(Note { warning: false, text });
            address
        }
        Some(name) => {
            let bare = name.trim_start_matches('[').trim_end_matches(']');
            let address =
                bare.parse().or_else(|_| host.lookup(bare)).map_err(|e| format!("{flag} {listen}: {bare} has no address here: {e}"))?;
            if !address.is_loopback() && !insecure {
                let text = format!(
                    "{flag} {listen}: whoever reaches it may command this cluster, as there is no authentication; --insecure says that this is meant"
                );
                notes.push(Note { warning: true, text });
            }
            address
        }
    };
    let is_found = wish.advertise.is_none() && address.is_unspecified();
    let told = told(wish, address, host, &mut notes);
    Ok((Endpoint { listen: SocketAddr::new(address, listen.port), host: told, is_found }, notes))
}

fn told(wish: Wish<'_>, address: IpAddr, host: &dyn Host, notes: &mut Vec<Note>) -> String {
    let Wish { flag, listen, advertise, .. } = wish;
    if let Some(advertise) = advertise {
        if address.is_loopback() && !is_loopback(advertise) {
            let text =
                format!("{flag} {listen}: {advertise} is advertised, but only this host can connect; give {flag} HOST:PORT, or --insecure");
            notes.push(Note { warning: true, text });
        }
        return advertise.to_owned();
    }
    if !address.is_unspecified() {
        return bracketed(address);
    }
    host.primary().map_or_else(
        || {
            let shown = bracketed(loopback(host));
            let text = format!("{flag} {listen}: this host's address cannot be found, so {shown} is advertised; give --advertise HOST");
            notes.push(Note { warning: true, text });
            shown
        },
        bracketed,
    )
}

/// The loopback address of this host: IPv4 where it has both.
fn loopback(host: &dyn Host) -> IpAddr {
    let v4 = IpAddr::V4(Ipv4Addr::LOCALHOST);
    if host.has(v4) || !host.has(Ipv6Addr::LOCALHOST.into()) { v4 } else { Ipv6Addr::LOCALHOST.into() }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|a| a.is_loopback())
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(a) => a.to_string(),
        IpAddr::V6(a) => format!("[{a}]"),
    }
}

/// The address that others reach this machine by now, as it is told them.
pub(crate) fn found_host() -> Option<String> {
    ThisHost.primary().map(bracketed)
}

/// The machine that this runs on.
pub(crate) struct ThisHost;

impl Host for ThisHost {
    fn lookup(&self, name: &str) -> io::Result<IpAddr> {
        let found = (name, 0).to_socket_addrs()?.next();
        found.map(|a| a.ip()).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    /// 192.0.2.0/24 and 2001:db8::/32 are kept for documentation (RFC 5737, RFC 3849). A host without a route to elsewhere is asked for
    /// its interfaces.
    fn primary(&self) -> Option<IpAddr> {
        let by_route = |from: IpAddr, to: IpAddr| route(from, to).filter(is_reachable);
        by_route(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into())
            .or_else(|| by_route(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()))
            .or_else(|| interfaces().into_iter().find(is_reachable))
    }

    fn has(&self, loopback: IpAddr) -> bool {
        UdpSocket::bind((loopback, 0)).is_ok()
    }
}

/// Connecting a datagram socket sends nothing: it only makes the kernel choose a route.
fn route(from: IpAddr, to: IpAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind((from, 0)).ok()?;
    socket.connect((to, 9)).ok()?;
    socket.local_addr().ok().map(|a| a.ip())
}

/// The addresses of all interfaces, those of IPv4 first.
fn interfaces() -> Vec<IpAddr> {
    let found = nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    });
    let mut addresses: Vec<IpAddr> = found.collect();
    addresses.sort();
    addresses
}

/// Whether others may reach a host by it: a link-local address means nothing without the interface that it is of.
fn is_reachable(address: &IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !address.is_unspecified() && !address.is_loopback() && !is_link_local
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host: its address, and the families that it has.
    struct Fake(Option<IpAddr>, Families);

    #[derive(Clone, Copy, PartialEq)]
    enum Families {
        Both,
        V4,
        V6,
    }

    impl Host for Fake {
        fn lookup(&self, name: &str) -> io::Result<IpAddr> {
            match name {
                "localhost" => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                "box" => Ok(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7))),
                _ => Err(io::Error::other("unknown name")),
            }
        }
        fn primary(&self) -> Option<IpAddr> {
            self.0
        }
        fn has(&self, loopback: IpAddr) -> bool {
            assert!(loopback.is_loopback());
            self.1 != if loopback.is_ipv4() { Families::V6 } else { Families::V4 }
        }
    }

    fn told_address(endpoint: &Endpoint) -> String {
        format!("{}:{}", endpoint.host, endpoint.listen.port())
    }

    #[test]
    fn a_port_alone_is_loopback_unless_insecure() {
        let host = Fake(Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 5))), Families::V4);
        // flag value, insecure, advertise; listens on, advertises, how many notes, how many of them warnings
        let cases = [
            (":8081", false, None, "127.0.0.1:8081", "127.0.0.1:8081", 1, 0),
            (":8081", true, None, "0.0.0.0:8081", "10.0.0.5:8081", 0, 0),
            (":8081", false, Some("box"), "127.0.0.1:8081", "box:8081", 2, 1),
            (":8081", false, Some("localhost"), "127.0.0.1:8081", "localhost:8081", 1, 0),
            (":8081", true, Some("box"), "0.0.0.0:8081", "box:8081", 0, 0),
            ("127.0.0.1:8081", false, None, "127.0.0.1:8081", "127.0.0.1:8081", 0, 0),
            ("localhost:8081", false, None, "127.0.0.1:8081", "127.0.0.1:8081", 0, 0),
            ("box:8081", false, None, "10.0.0.7:8081", "10.0.0.7:8081", 1, 1),
            ("box:8081", true, None, "10.0.0.7:8081", "10.0.0.7:8081", 0, 0),
            ("0.0.0.0:8081", false, None, "0.0.0.0:8081", "10.0.0.5:8081", 1, 1),
            ("[::1]:8081", false, None, "[::1]:8081", "[::1]:8081", 0, 0),
            ("[::]:8081", true, Some("[fd00::1]"), "[::]:8081", "[fd00::1]:8081", 0, 0),
        ];
        for (text, insecure, advertise, listens, told, notes, warnings) in cases {
            let listen: Listen = text.parse().expect(text);
            let (endpoint, said) = resolve(Wish { flag: "--http", listen: &listen, insecure, advertise }, &host).expect(text);
            assert_eq!(
                (endpoint.listen.to_string(), told_address(&endpoint)),
                (listens.to_owned(), told.to_owned()),
                "{text} {insecure} {advertise:?}"
            );
            assert_eq!(
                (said.len(), said.iter().filter(|n| n.warning).count()),
                (notes, warnings),
                "{text} {insecure} {advertise:?}: {said:?}"
            );
        }
    }

    #[test]
    fn a_port_alone_is_had_on_a_host_of_either_family() {
        let (v4, v6) = ("10.0.0.5".parse().ok(), "fd00::5".parse().ok());
        // the host's address and families, insecure; listens on, advertises
        let cases = [
            (v4, Families::Both, false, "127.0.0.1:1", "127.0.0.1"),
            (v4, Families::V4, false, "127.0.0.1:1", "127.0.0.1"),
            (v6, Families::V6, false, "[::1]:1", "[::1]"),
            (v4, Families::Both, true, "[::]:1", "10.0.0.5"),
            (v6, Families::Both, true, "[::]:1", "[fd00::5]"),
            (v4, Families::V4, true, "0.0.0.0:1", "10.0.0.5"),
            (v6, Families::V6, true, "[::]:1", "[fd00::5]"),
            (None, Families::Both, true, "[::]:1", "127.0.0.1"),
            (None, Families::V6, true, "[::]:1", "[::1]"),
        ];
        for (address, families, insecure, listens, told) in cases {
            let listen: Listen = ":1".parse().expect("valid");
            let wish = Wish { flag: "--http", listen: &listen, insecure, advertise: None };
            let (endpoint, notes) = resolve(wish, &Fake(address, families)).expect("resolved");
            assert_eq!((endpoint.listen.to_string().as_str(), endpoint.host.as_str()), (listens, told), "{address:?} {insecure}");
            assert!(insecure || notes[0].text.contains(&format!("listening on {told} only")), "{notes:?}");
        }
        for (address, expected) in
            [("10.0.0.5", true), ("fd00::5", true), ("fe80::1", false), ("169.254.1.1", false), ("::1", false), ("0.0.0.0", false)]
        {
            assert_eq!(is_reachable(&address.parse().expect("address")), expected, "{address}");
        }
    }

    #[test]
    fn a_host_without_address_still_starts() {
        let listen: Listen = ":1".parse().expect("valid");
        let (endpoint, notes) =
            resolve(Wish { flag: "--grpc", listen: &listen, insecure: true, advertise: None }, &Fake(None, Families::V4))
                .expect("resolved");
        assert_eq!(told_address(&endpoint), "127.0.0.1:1");
        assert!(notes[0].warning);
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let cases = [
            ("8081", "write :8081 or HOST:8081"),
            (":", "invalid port \"\": a number from 1 to 65535"),
            (":65536", "invalid port \"65536\": a number from 1 to 65535"),
            (":http", "invalid port \"http\": a number from 1 to 65535"),
            ("a b:80", "\"a b\" is no host name"),
            ("http://a:80", "\"http://a\" is no host name"),
            ("[::g]:80", "\"::g\" is no IPv6 address"),
        ];
        for (text, expected) in cases {
            let said = text.parse::<Listen>().expect_err(text);
            assert!(said.starts_with(expected), "{text:?}: {said}");
        }
        let nowhere: Listen = "nowhere:1".parse().expect("valid");
        let wish = Wish { flag: "--http", listen: &nowhere, insecure: false, advertise: None };
        assert_eq!(
            resolve(wish, &Fake(None, Families::Both)),
            Err("--http nowhere:1: nowhere has no address here: unknown name".to_owned())
        );
    }

    #[test]
    fn asking_the_host_for_its_address_does_not_fail() {
        let primary = ThisHost.primary();
        assert!(primary.is_none_or(|a| !a.is_unspecified()));
    }
}
