//! A worker with the kind `tcp-port`: each resource holds a TCP port, and tells whoever connects who holds it.

use std::{io::ErrorKind, net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use evenkeel_worker::{
    driver::{
        SpecError,
        in_process::{Failure, InProcess, Kind, Piece, Update},
    },
    main_with,
};
use serde::Deserialize;
use tokio::{io::AsyncWriteExt, net::TcpListener, time::timeout};

#[cfg(test)]
mod tests;

/// What one answer may take. A line fits into the buffer of a new connection, so this is for a machine that stalls; it is half of the grace.
const ANSWER: Duration = Duration::from_millis(250);

fn main() -> ExitCode {
    main_with(|config| Ok(config.with_driver(Arc::new(InProcess::new("tcp-port", TcpPort)))?))
}

struct TcpPort;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TcpPortSpec {
    /// `IP:PORT`, on the machine of the worker.
    address: String,
    greeting: String,
}

impl Kind for TcpPort {
    type Spec = TcpPortSpec;

    fn check(&self, spec: &TcpPortSpec) -> Result<(), SpecError> {
        let TcpPortSpec { address, greeting } = spec;
        if !address.parse::<SocketAddr>().is_ok_and(|address| address.port() != 0) {
            return Err(SpecError(format!(
                "spec.address: must be IP:PORT with a port from 1 to 65535, such as 127.0.0.1:7001, not {address:?}"
            )));
        }
        if greeting.is_empty() || greeting.len() > 200 || greeting.contains(char::is_control) {
            return Err(SpecError(format!("spec.greeting: must be one line of 1 to 200 bytes, not {greeting:?}")));
        }
        Ok(())
    }

    /// Dropping the listener frees the port, however this ends.
    async fn run(&self, piece: Piece<TcpPortSpec>) -> Result<(), Failure> {
        let address = &piece.spec().address;
        piece.check()?;
        let listener = TcpListener::bind(address).await.map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => format!("spec.address: {address} is taken by something else on this machine"),
            _ => format!("spec.address: {address} cannot be listened on: {error}"),
        })?;
        piece.report(format!("listens on {address}"));
        piece.log().line(format_args!("listens on {address} with epoch {}", piece.epoch()));
        loop {
            let (mut connection, peer) = tokio::select! {
                accepted = listener.accept() => accepted?,
                _ = piece.stopping() => break,
            };
            piece.check()?;
            let line = format!("{} {} {}\n", piece.spec().greeting, piece.name(), piece.epoch());
            let answered = timeout(ANSWER, connection.write_all(line.as_bytes())).await;
            piece
                .log()
                .line(format_args!("{peer}: {}", if matches!(answered, Ok(Ok(()))) { line.trim_end() } else { "went away unanswered" }));
        }
        Ok(())
    }

    fn updates(&self) -> bool {
        true
    }

    /// A greeting is read anew for each connection; an address is bound once.
    async fn update(&self, piece: &Piece<TcpPortSpec>, new: &TcpPortSpec) -> Update {
        let old = &piece.spec().address;
        if *old == new.address { Update::Taken } else { Update::NeedsRestart(format!("spec.address: {} instead of {old}", new.address)) }
    }
}
