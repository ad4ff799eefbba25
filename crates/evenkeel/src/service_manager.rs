//! What a service manager such as systemd is told, by the protocol of sd_notify(3): that this process serves, that it is alive, and in a word
//! how it is.
//!
//! Beside the wheel. A manager that does not read holds up one thread here, and nobody else. It is told what `/healthz` and `/readyz` say, asked for as anybody asks: whoever looks at a master or a worker by
//! whatever means hears the same. It decides nothing.

use std::{
    io,
    net::SocketAddr,
    sync::mpsc::{SyncSender, sync_channel},
    time::Duration,
};

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

/// What may wait for a manager that is slow to read; the rest is dropped, as it will be said again.
const WAITING: usize = 4;

/// One thing that is said.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Ready,
    Alive,
    Status(String),
}

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
        let notify = |said: Said| {
            sd_notify::notify(&[match &said {
                Said::Ready => NotifyState::Ready,
                Said::Alive => NotifyState::Watchdog,
                Said::Status(text) => NotifyState::Status(text.trim_end()),
            }])
        };
        let speaker = match speaker(notify) {
            Ok(speaker) => speaker,
            Err(error) => return tracing::warn!(%error, "the service manager hears nothing: no thread can be had"),
        };
        let (mut serves, mut said) = (false, String::new());
        let period = self.watchdog.map_or(PERIOD, |span| PERIOD.min(span / 3));
        loop {
            let alive = look(&address, "/healthz").await.is_some_and(|(status, _)| status == StatusCode::OK);
            if alive {
                // It is ready once the manager has been told so.
                serves = serves || speaker.try_send(Said::Ready).is_ok();
                let _ = speaker.try_send(Said::Alive);
            }
            if let Some((_, text)) = look(&address, "/readyz").await
                && text != said
                && speaker.try_send(Said::Status(text.clone())).is_ok()
            {
                said = text;
            }
            sleep(if serves { period } else { FIRST_PERIOD }).await;
        }
    }
}

/// A thread that speaks: its socket may be full, and then it waits.
fn speaker(mut notify: impl FnMut(Said) -> io::Result<()> + Send + 'static) -> io::Result<SyncSender<Said>> {
    let (speaker, to_say) = sync_channel(WAITING);
    std::thread::Builder::new().name("service-manager".to_owned()).spawn(move || {
        for said in to_say {
            if let Err(error) = notify(said) {
                tracing::debug!(%error, "the service manager does not hear");
            }
        }
    })?;
    Ok(speaker)
}

async fn look(address: &str, path: &str) -> Option<(StatusCode, String)> {
    timeout(DEADLINE, ask(address, path)).await.ok()?.ok()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_manager_that_does_not_read_holds_nobody_up_and_hears_what_fits_once_it_does() {
        let (read, reads) = channel::<()>();
        let (hear, heard) = channel();
        let speaker = speaker(move |said| {
            // It goes on when the manager reads.
            reads.recv().map_err(io::Error::other)?;
            hear.send(said).map_err(io::Error::other)
        })
        .expect("a thread");
        let states = (0..100).map(|number| Said::Status(number.to_string()));
        let taken: Vec<Said> = states.filter(|said| speaker.try_send(said.clone()).is_ok()).collect();
        // One more than waits may be on its way.
        assert!((WAITING..=WAITING + 1).contains(&taken.len()), "{taken:?}");
        taken.iter().for_each(|_| read.send(()).expect("it is there"));
        let come: Vec<Said> = taken.iter().map(|_| heard.recv_timeout(Duration::from_secs(20)).expect("heard")).collect();
        assert_eq!(come, taken);
    }
}
