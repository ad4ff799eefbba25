//! `evenkeel health`: asks the master or worker on this machine whether it is ready. Images have it as their health check, as they have no
//! other program that could ask.
//!
//! Beside the wheel: it reads one page, and changes nothing.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use clap::Args;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use crate::listen::Listen;

/// Both may take this long together. Longer than it takes a machine that is busy, shorter than what a health check is given.
const DEADLINE: Duration = Duration::from_secs(2);
/// What is read of an answer.
const LONGEST_ANSWER: usize = 4096;

#[derive(Clone, Debug, Args)]
pub(crate) struct HealthArgs {
    /// Where it serves HTTP: the --http that it was started with
    #[arg(long, value_name = "[HOST]:PORT", env = "EVENKEEL_HTTP", default_value = ":8081", hide_env = true)]
    http: Listen,
}

/// Exit status 0 and its word, if it is ready.
pub(crate) fn run(args: &HealthArgs) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| format!("cannot start: {e}"))?;
    let address = args.http.local();
    let asked = runtime.block_on(async { timeout(DEADLINE, ask(&address, "/readyz")).await });
    let (status, answer) = match asked {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            return Err(format!("nothing answers at http://{address}/readyz: {error}; is it the --http of a master or worker?"));
        }
        Err(_) => return Err(format!("http://{address}/readyz does not answer within {} s", DEADLINE.as_secs())),
    };
    if status == StatusCode::OK { Ok(answer) } else { Err(answer.trim_end().to_owned()) }
}

/// Asks a server on this machine for one of its pages.
pub(crate) async fn ask(address: &str, path: &str) -> Result<(StatusCode, String), Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path).header(HOST, address).body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), LONGEST_ANSWER).collect().await?.to_bytes();
    connection.abort();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// Where a server on this machine is reached that listens there: one that listens everywhere listens on the loopback, too.
pub(crate) fn reached_at(listens: IpAddr) -> IpAddr {
    match listens {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn it_is_asked_where_it_listens() {
        let cases = [
            (None, "127.0.0.1"),
            (Some("0.0.0.0"), "127.0.0.1"),
            (Some("[::]"), "[::1]"),
            (Some("10.0.0.5"), "10.0.0.5"),
            (Some("[fd00::1]"), "[fd00::1]"),
            (Some("localhost"), "localhost"),
        ];
        for (host, expected) in cases {
            let listen: Listen = format!("{}:7", host.unwrap_or_default()).parse().expect("valid");
            assert_eq!(listen.local(), format!("{expected}:7"), "{host:?}");
        }
    }

    /// Serves one connection with these bytes.
    fn answering(with: &'static str) -> HealthArgs {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let http = format!("127.0.0.1:{}", listener.local_addr().expect("bound").port()).parse().expect("valid");
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a caller");
            let mut request = [0; 512];
            let count = stream.read(&mut request).expect("a request");
            assert!(request[..count].starts_with(b"GET /readyz HTTP/1.1\r\n"));
            stream.write_all(with.as_bytes()).expect("sent");
        });
        HealthArgs { http }
    }

    #[test]
    fn readiness_is_told_with_its_reason() {
        let ready = answering("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nready\n");
        assert_eq!(run(&ready), Ok("ready\n".to_owned()));
        let unready = answering("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 21\r\n\r\nnot ready: no leader\n");
        assert_eq!(run(&unready), Err("not ready: no leader".to_owned()));
        let other = answering("+OK this is another protocol\r\n");
        assert!(run(&other).expect_err("no HTTP").contains("is it the --http of a master or worker?"));
        let nobody = HealthArgs { http: "127.0.0.1:1".parse().expect("valid") };
        assert!(run(&nobody).expect_err("nobody").starts_with("nothing answers at http://127.0.0.1:1/readyz: "));
    }
}
