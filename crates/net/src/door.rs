//! The door before an HTTP port: no page in a browser commands what listens on its reader's machine or network.
//!
//! Between net::serve and an HTTP service. A page of another origin, one that comes under a foreign name (DNS rebinding) and a request that a
//! browser sends without asking first (no JSON) are refused, reads too. No answer ever carries a CORS header, and OPTIONS is a method
//! like any other, so nothing is allowed to other origins. It does not say who the caller is.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body::Body as _;
use tonic::Code;

use crate::answer::{Body, Manner};

/// Asked for by probes and monitoring under whatever names, and nothing to be kept from anybody.
const OF_ANY_HOST: [&str; 3] = ["/healthz", "/readyz", "/metrics"];
/// Targets for Prometheus, for which the same holds.
const TARGETS: &str = "/sd/";
/// How much of a value is shown when it is refused.
const SHOWN: usize = 80;

/// The names, beside addresses and names without a dot, that a port answers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    names: BTreeSet<String>,
}

/// Why a text is not a host's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidHost(String);

impl fmt::Display for InvalidHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid host {:?}: a name or address without scheme and port", self.0)
    }
}

impl std::error::Error for InvalidHost {}

impl Names {
    /// These hosts, without ports.
    ///
    /// # Errors
    /// The first that is not the name of a host.
    pub fn of<T: AsRef<str>>(hosts: impl IntoIterator<Item = T>) -> Result<Self, InvalidHost> {
        let name = |host: T| match host_and_port(host.as_ref()) {
            Some((name, None)) => Ok(name),
            _ => Err(InvalidHost(host.as_ref().to_owned())),
        };
        Ok(Self { names: hosts.into_iter().map(name).collect::<Result<_, _>>()? })
    }

    /// And this one, as it is advertised.
    #[must_use]
    pub fn with(mut self, host: &str) -> Self {
        self.names.extend(host_and_port(host).map(|(name, _)| name));
        self
    }

    /// DNS cannot lead a foreign page here under an address, under a name that is not in the public DNS, or under those of this machine.
    fn has(&self, host: &str) -> bool {
        is_address(host) || !host.contains('.') || host.ends_with(".localhost") || self.names.contains(host)
    }
}

fn is_address(host: &str) -> bool {
    host.starts_with('[') || host.parse::<Ipv4Addr>().is_ok()
}

/// A host as it is compared, and its port: small letters, no dot at the end, an IPv6 address in brackets.
fn host_and_port(text: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']')?;
            let address: Ipv6Addr = address.parse().ok()?;
            (format!("[{address}]"), rest)
        }
        None => {
            let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
            let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            if host.is_empty() || !host.chars().all(fits) {
                return None;
            }
            (host, port)
        }
    };
    match port.strip_prefix(':') {
        None if port.is_empty() => Some((host, None)),
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => Some((host, Some(port.parse().ok()?))),
        _ => None,
    }
}

impl Names {
    /// What a request is answered that a page in a browser could send; none: it gets in.
    pub(crate) fn refuse(&self, request: &Request<Body>) -> Option<Response<Body>> {
        let Refusal { status, code, message } = check(request, self).err()?;
        Some(Manner::of(request).refusal(status, code, &message))
    }
}

/// Why a request does not get in.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    code: Code,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, code: Code, message: String) -> Self {
        Self { status, code, message }
    }
}

fn check(request: &Request<Body>, names: &Names) -> Result<(), Refusal> {
    let (headers, path) = (request.headers(), request.uri().path());
    let host = host(request);
    if !OF_ANY_HOST.contains(&path) && !path.starts_with(TARGETS) {
        let (name, _) = host.as_ref().map_err(|why| Refusal::new(StatusCode::BAD_REQUEST, Code::InvalidArgument, (*why).to_owned()))?;
        if !names.has(name) {
            let why = format!(
                "this server does not answer to the host {}; ask it by its address, or start it with --http-host {name}",
                shown(name)
            );
            return Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, Code::FailedPrecondition, why));
        }
    }
    check_site(headers, host.as_ref().ok())?;
    if request.body().is_end_stream() { Ok(()) } else { check_body(headers) }
}

/// The one host that a request names.
fn host(request: &Request<Body>) -> Result<(String, Option<u16>), &'static str> {
    const ONE: &str = "the header Host must be there once, as HOST or HOST:PORT";
    let mut hosts = request.headers().get_all(header::HOST).iter().map(|value| value.to_str().unwrap_or_default());
    let (header, second) = (hosts.next(), hosts.next());
    let authority = request.uri().authority().map(http::uri::Authority::as_str);
    match (header, second, authority) {
        (_, Some(_), _) | (None, None, None) => Err(ONE),
        (Some(header), None, Some(authority)) if header != authority => Err("the header Host and the request's target differ"),
        (_, None, Some(host)) | (Some(host), None, None) => host_and_port(host).ok_or(ONE),
    }
}

/// A browser says of what another origin has made it send that it does so: by `Origin` with every method but GET and HEAD, and by
/// `Sec-Fetch-Site` with all.
fn check_site(headers: &HeaderMap, host: Option<&(String, Option<u16>)>) -> Result<(), Refusal> {
    let refused = |header: &str, value: &http::HeaderValue| {
        let value = shown(&String::from_utf8_lossy(value.as_bytes()));
        let why = format!(
            "{header}: {value} says that a page of another origin sends this; send it without a browser, or from this server's own pages"
        );
        Err(Refusal::new(StatusCode::FORBIDDEN, Code::PermissionDenied, why))
    };
    for origin in headers.get_all(header::ORIGIN) {
        if !origin.to_str().is_ok_and(|origin| is_own(origin, host)) {
            return refused("Origin", origin);
        }
    }
    for site in headers.get_all("sec-fetch-site") {
        if !matches!(site.as_bytes(), b"same-origin" | b"none") {
            return refused("Sec-Fetch-Site", site);
        }
    }
    Ok(())
}

/// Whether an origin is that of the host that was asked; the port that goes without saying may be left out of either.
fn is_own(origin: &str, host: Option<&(String, Option<u16>)>) -> bool {
    let Some((scheme, rest)) = origin.split_once("://") else { return false };
    let usual = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return false,
    };
    let own = host.map(|(name, port)| (name, port.unwrap_or(usual)));
    host_and_port(rest).is_some_and(|(name, port)| own == Some((&name, port.unwrap_or(usual))))
}

/// A browser sends JSON to another origin only after it was allowed to, which it never is.
fn check_body(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter().map(|value| value.to_str().unwrap_or_default());
    let (first, second) = (types.next(), types.next());
    if second.is_some() {
        let why = "the header Content-Type is there twice; send it once".to_owned();
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::InvalidArgument, why));
    }
    let is_json =
        first.is_some_and(|text| text.split(';').next().is_some_and(|media| media.trim().eq_ignore_ascii_case("application/json")));
    if is_json {
        return Ok(());
    }
    let given = first.map_or_else(|| "none".to_owned(), shown);
    let why = format!("the body's Content-Type is {given}; send it with Content-Type: application/json");
    Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::InvalidArgument, why))
}

fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(SHOWN).collect::<String>())
}

/// Whether a host, as it is advertised or listened on, is this machine's own: an address of the loopback, or a name for it.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name = bare.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost") || bare.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use http_body_util::{Empty, Full};

    use super::*;
    use crate::answer::boxed;

    fn asked(head: &str, body: &str) -> u16 {
        let mut lines = head.lines();
        let first: Vec<&str> = lines.next().expect("a first line").split(' ').collect();
        let mut request = Request::builder().method(first[0]).uri(first[1]);
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            request = request.header(name, value);
        }
        let body = if body.is_empty() { boxed(Empty::new()) } else { boxed(Full::from(body.to_owned())) };
        let names = Names::of(["master-1.example", "[FD00::1]", "Own.Example."]).expect("hosts");
        check(&request.body(body).expect(head), &names).map_or_else(|refusal| refusal.status.as_u16(), |()| 200)
    }

    #[test]
    fn hosts_are_known_by_address_by_a_name_without_dots_or_by_flag() {
        let good = [
            "127.0.0.1",
            "127.0.0.1:8081",
            "10.1.2.3",
            "[::1]",
            "[::1]:8081",
            "[fd00:0::1]:1",
            "localhost",
            "LOCALHOST:8081",
            "localhost.",
            "master-1:8081",
            "a.localhost",
            "a.b.localhost.:80",
            "master-1.example",
            "MASTER-1.example.:8081",
            "own.example",
        ];
        let bad = [
            "evil.example",
            "evil.example:8081",
            "master-1.example.evil.example",
            "localhost.example",
            "1.2.3",
            "0x7f.1",
            "127.0.0.1.example",
            "1.2.3.4.5",
        ];
        let wrong = ["[::g]", "[::1", "[::1]x", "a b", "a:b", "a:70000", "a@b", "http://a", ":80", "."];
        for (hosts, expected) in [(&good[..], 200), (&bad[..], 421), (&wrong[..], 400)] {
            for host in hosts {
                assert_eq!(asked(&format!("GET /v1/resources\nhost: {host}"), ""), expected, "{host}");
            }
        }
        assert_eq!(asked("GET /v1/resources", ""), 400);
        assert_eq!(asked("GET /v1/resources\nhost: a\nhost: a", ""), 400);
        assert_eq!(asked("GET http://a/v1/resources\nhost: b", ""), 400);
        assert_eq!(asked("GET http://a:1/v1/resources\nhost: a:1", ""), 200);
        assert_eq!(asked("GET http://evil.example/v1/resources", ""), 421);
        for path in ["/healthz", "/readyz", "/metrics", "/sd/node", "/sd/"] {
            assert_eq!(asked(&format!("GET {path}\nhost: evil.example"), ""), 200, "{path}");
            assert_eq!(asked(&format!("GET {path}"), ""), 200, "{path}");
        }
        for path in ["/healthz/", "/metricsx", "/sd", "/v1/sd/"] {
            assert_eq!(asked(&format!("GET {path}\nhost: evil.example"), ""), 421, "{path}");
        }
    }

    #[test]
    fn pages_of_other_origins_stay_outside() {
        let cases = [
            ("a:8081", "origin: http://a:8081", 200),
            ("a:8081", "origin: http://A.:8081", 200),
            ("a", "origin: http://a", 200),
            ("a", "origin: https://a", 200),
            ("a:80", "origin: http://a", 200),
            ("[::1]:8081", "origin: http://[::1]:8081", 200),
            ("a:8081", "origin: http://a", 403),
            ("a:8081", "origin: http://a:8082", 403),
            ("a:443", "origin: http://a", 403),
            ("a:8081", "origin: http://evil.example", 403),
            ("a:8081", "origin: http://evil.example:8081", 403),
            ("a:8081", "origin: null", 403),
            ("a:8081", "origin: ", 403),
            ("a:8081", "origin: chrome-extension://a:8081", 403),
            ("a:8081", "origin: http://a:8081\norigin: http://evil.example", 403),
            ("a:8081", "sec-fetch-site: cross-site", 403),
            ("a:8081", "sec-fetch-site: same-site", 403),
            ("a:8081", "sec-fetch-site: same-origin", 200),
            ("a:8081", "sec-fetch-site: none", 200),
        ];
        for (host, header, expected) in cases {
            for line in ["GET /v1/resources", "POST /v1/brake:release", "OPTIONS /v1/resources"] {
                assert_eq!(asked(&format!("{line}\nhost: {host}\n{header}"), ""), expected, "{line} {host} {header}");
            }
        }
        assert_eq!(asked("GET /metrics\norigin: http://evil.example", ""), 403);
        assert_eq!(asked("GET /metrics\nhost: evil.example\norigin: http://evil.example", ""), 200);
    }

    #[test]
    fn a_body_must_be_json() {
        let cases = [
            ("content-type: application/json", 200),
            ("content-type: Application/JSON; charset=utf-8", 200),
            ("content-type: application/json ;charset=utf-8", 200),
            ("accept: */*", 415),
            ("content-type: text/plain", 415),
            ("content-type: text/plain; application/json", 415),
            ("content-type: application/jsonx", 415),
            ("content-type: application/x-ndjson", 415),
            ("content-type: application/x-www-form-urlencoded", 415),
            ("content-type: application/json\ncontent-type: text/plain", 415),
        ];
        for (header, expected) in cases {
            for method in ["POST", "PUT", "DELETE", "GET"] {
                let head = format!("{method} /v1/resources\nhost: a\n{header}");
                assert_eq!(asked(&head, "{}"), expected, "{method} {header}");
                assert_eq!(asked(&head, ""), 200, "{method} {header} without body");
            }
        }
    }

    #[test]
    fn what_is_refused_is_shown_with_the_way_out() {
        let request = |host: &str| Request::get("/v1/resources").header("host", host).body(boxed(Empty::new())).expect(host);
        let said = check(&request("evil.example:80"), &Names::default()).expect_err("foreign").message;
        assert_eq!(
            said,
            "this server does not answer to the host \"evil.example\"; ask it by its address, or start it with --http-host evil.example"
        );
        let wrong = Names::of(["a:80"]).expect_err("with a port");
        assert_eq!(wrong.to_string(), "invalid host \"a:80\": a name or address without scheme and port");
    }

    #[test]
    fn this_machines_own_names_are_known() {
        for (host, expected) in [
            ("127.0.0.1", true),
            ("[::1]", true),
            ("::ffff:127.0.0.1", true),
            ("localhost", true),
            ("a.Localhost.", true),
            ("10.0.0.1", false),
            ("a", false),
        ] {
            assert_eq!(is_loopback(host), expected, "{host}");
        }
    }
}
