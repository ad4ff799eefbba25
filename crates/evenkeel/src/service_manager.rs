//! What a service manager such as systemd is told, by the protocol of sd_notify(3): that this process serves, that it is alive, and in a word
//! how it is.
//!
//! Beside the wheel. It is told what `/healthz` and `/readyz` say, asked for as anybody asks: whoever looks at a master or a worker by
//! whatever means hears the same. It decides nothing.

use std::{net::SocketAddr, time::Duration};

use hyper::StatusCode;
use sd_notify::NotifyState;
use tokio::time::{sleep, timeout};

use crate::health::{ask, reached_at};

/// How often it is looked, where no watchdog asks for more.
const PERIOD: Duration = Duration::from_secs(5);
/// Until it serves for the first time somebody waits.
const FIRST_PERIOD: Duration = Duration::from_millis(100);
/// How long one look may take.
const DEADLINE: Duration = Duration::from_secs(2);

/// A service manager that wants to be told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manager {
    /// It ends what has not been called alive for so long.
    watchdog: Option<Duration>,
}

impl Manager {
    /// The one that started this process, or the guard of this process. None: nobody wants to be told.
    pub(crate) fn from_environment() -> Option<Self> {
        std::env::var_os("NOTIFY_SOCKET")?;
        // WATCHDOG_PID names the guard, for whom its agent speaks.
        let micros = std::env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse().ok());
        Some(Self { watchdog: micros.map(Duration::from_micros) })
    }

    /// Tells it of the server on this port for as long as the process lives.
    pub(crate) async fn tell_of(self, http: SocketAddr) {
        if http.port() == 0 {
            tracing::warn!("the service manager hears nothing of a process whose --http has port 0");
            return;
        }
        let address = SocketAddr::new(reached_at(http.ip()), http.port()).to_string();
        let (mut serves, mut said) = (false, String::new());
        let period = self.watchdog.map_or(PERIOD, |span| PERIOD.min(span / 3));
        loop {
            let alive = look(&address, "/healthz").await.is_some_and(|(status, _)| status == StatusCode::OK);
            if alive {
                if !std::mem::replace(&mut serves, true) {
                    notify(NotifyState::Ready);
                }
                notify(NotifyState::Watchdog);
            }
            if let Some((_, text)) = look(&address, "/readyz").await
                && text != said
            {
                notify(NotifyState::Status(text.trim_end()));
                said = text;
            }
            sleep(if serves { period } else { FIRST_PERIOD }).await;
        }
    }
}

fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "the service manager does not hear");
    }
}

async fn look(address: &str, path: &str) -> Option<(StatusCode, String)> {
    timeout(DEADLINE, ask(address, path)).await.ok()?.ok()
}
