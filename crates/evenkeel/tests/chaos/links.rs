//! The network of a scenario: a small proxy before each member of etcd for each process that calls it, and before each member's port for
//! its peers. What passes is decided for each pair and each direction, at any time.
//!
//! Beside the wheel. What a cut holds back is delivered when the cut ends, late, as TCP does it; connections are not reset. So a request
//! can arrive long after its sender has given up.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

/// How much is read at once.
const CHUNK: usize = 64 << 10;
/// How many chunks may be under way on one direction of a connection.
const UNDER_WAY: usize = 256;

/// What one pair of processes sees of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Weather {
    /// What the caller sends arrives.
    pub(crate) there: bool,
    /// What it is answered arrives.
    pub(crate) back: bool,
    /// How long it takes, each way.
    pub(crate) delay: Duration,
}

impl Weather {
    pub(crate) const FAIR: Self = Self { there: true, back: true, delay: Duration::ZERO };
    /// Nothing passes.
    pub(crate) const CUT: Self = Self { there: false, back: false, delay: Duration::ZERO };
    /// Requests arrive and answers do not.
    pub(crate) const DEAF: Self = Self { there: true, back: false, delay: Duration::ZERO };
    /// Requests do not arrive; what is sent unasked does.
    pub(crate) const MUTE: Self = Self { there: false, back: true, delay: Duration::ZERO };

    /// Everything passes, late.
    pub(crate) const fn slow(delay: Duration) -> Self {
        Self { there: true, back: true, delay }
    }
}

/// Who calls, and whom.
type Pair = (String, String);

#[derive(Clone, Debug, Default)]
struct State {
    weather: BTreeMap<Pair, Weather>,
    /// How often each pair has connected.
    connected: BTreeMap<Pair, usize>,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Links {
    state: Arc<watch::Sender<State>>,
}

impl Links {
    /// A port at which `from` reaches `to`, which listens on this port of 127.0.0.1.
    pub(crate) async fn open(&self, from: &str, to: &str, target: u16) -> u16 {
        let pair = (from.to_owned(), to.to_owned());
        let join = move |links: Self, caller, target| {
            let pair = pair.clone();
            async move { links.join(pair, caller, target, Vec::new()).await }
        };
        self.listen(target, join).await
    }

    /// A port at which the other members reach this one. Who calls is read from what it says first: a member's id, in hexadecimal.
    pub(crate) async fn open_for_peers(&self, to: &str, target: u16) -> u16 {
        let to = to.to_owned();
        self.listen(target, move |links, mut caller, target| {
            let to = to.clone();
            async move {
                let mut head = Vec::new();
                while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < 1 << 16 {
                    if caller.read_buf(&mut head).await? == 0 {
                        break;
                    }
                }
                links.join((introduced(&head).unwrap_or_default(), to), caller, target, head).await
            }
        })
        .await
    }

    async fn listen<F, Fut>(&self, target: u16, serve: F) -> u16
    where
        F: Fn(Links, TcpStream, u16) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("a port").port();
        let links = self.clone();
        tokio::spawn(async move {
            while let Ok((caller, _)) = listener.accept().await {
                // A connection that ends with an error ends for both, and that is all.
                tokio::spawn(serve(links.clone(), caller, target));
            }
        });
        port
    }

    /// Makes the weather between each of these callers and each of these members.
    pub(crate) fn set(&self, callers: &[&str], members: &[&str], weather: Weather) {
        self.state.send_modify(|state| {
            for from in callers {
                for to in members {
                    state.weather.insert(((*from).to_owned(), (*to).to_owned()), weather);
                }
            }
        });
    }

    /// Everything passes again, between all.
    pub(crate) fn clear(&self) {
        self.state.send_modify(|state| state.weather.clear());
    }

    /// How often this caller has connected to this member.
    pub(crate) fn connected(&self, from: &str, to: &str) -> usize {
        self.state.borrow().connected.get(&(from.to_owned(), to.to_owned())).copied().unwrap_or(0)
    }

    async fn join(&self, pair: Pair, caller: TcpStream, target: u16, head: Vec<u8>) -> io::Result<()> {
        self.state.send_modify(|state| *state.connected.entry(pair.clone()).or_default() += 1);
        // A connection is not made while its first packet would not arrive.
        self.passes(&pair, |weather| weather.there).await;
        let target = TcpStream::connect(("127.0.0.1", target)).await?;
        caller.set_nodelay(true)?;
        target.set_nodelay(true)?;
        let ((from_caller, to_caller), (from_target, to_target)) = (caller.into_split(), target.into_split());
        let there = self.clone().carry(pair.clone(), |weather| weather.there, from_caller, to_target, head);
        let back = self.clone().carry(pair, |weather| weather.back, from_target, to_caller, Vec::new());
        let (there, back) = (tokio::spawn(there), tokio::spawn(back));
        let _ = tokio::join!(there, back);
        Ok(())
    }

    /// Carries one direction. What was read waits its time apart from the reading, so that a slow link is late and not narrow.
    async fn carry(
        self,
        pair: Pair,
        way: fn(&Weather) -> bool,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        head: Vec<u8>,
    ) -> io::Result<()> {
        let (read, mut waiting) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
        let reading = tokio::spawn(async move {
            let mut chunk = head;
            loop {
                // The end of a connection is news as well, and comes through after all else.
                let ended = chunk.is_empty() && {
                    chunk.reserve(CHUNK);
                    from.read_buf(&mut chunk).await.unwrap_or(0) == 0
                };
                if ended || read.send((Instant::now(), std::mem::take(&mut chunk))).await.is_err() {
                    return;
                }
            }
        });
        let written = async {
            while let Some((since, chunk)) = waiting.recv().await {
                let weather = self.passes(&pair, way).await;
                sleep_until(since + weather.delay).await;
                to.write_all(&chunk).await?;
            }
            self.passes(&pair, way).await;
            to.shutdown().await
        };
        let written = written.await;
        reading.abort();
        written
    }

    /// Waits until this direction is open.
    async fn passes(&self, pair: &Pair, way: fn(&Weather) -> bool) -> Weather {
        let mut changes = self.state.subscribe();
        let weather = |state: &State| state.weather.get(pair).copied().unwrap_or(Weather::FAIR);
        let state = changes.wait_for(|state| way(&weather(state))).await.expect("we hold the sender");
        weather(&state)
    }
}

/// The id of the member that says this.
fn introduced(head: &[u8]) -> Option<String> {
    let head = String::from_utf8_lossy(head);
    let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with("x-server-from:"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The network itself is tried.
pub(crate) mod tests {
    use tokio::time::timeout;

    use super::*;

    /// What a cut holds back arrives when it ends, and only then; each direction by itself.
    pub(crate) async fn cuts_hold_back_and_deliver_late() {
        let echo = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = echo.local_addr().expect("a port").port();
        let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            let (mut stream, _) = echo.accept().await.expect("a caller");
            let mut byte = [0];
            while stream.read_exact(&mut byte).await.is_ok() {
                heard.send(byte[0]).expect("a listener");
                stream.write_all(&byte).await.expect("answered");
            }
        });
        let links = Links::default();
        let front = links.open("a", "b", port).await;
        let mut caller = TcpStream::connect(("127.0.0.1", front)).await.expect("connected");
        let mut answer = [0];
        let silence = Duration::from_millis(100);

        caller.write_all(b"1").await.expect("sent");
        caller.read_exact(&mut answer).await.expect("answered");
        assert_eq!((hears.recv().await, &answer), (Some(b'1'), b"1"));

        links.set(&["a"], &["b"], Weather::DEAF);
        caller.write_all(b"2").await.expect("sent");
        assert_eq!(hears.recv().await, Some(b'2'), "the request arrives");
        assert!(timeout(silence, caller.read_exact(&mut answer)).await.is_err(), "its answer does not");

        links.set(&["a"], &["b"], Weather::CUT);
        caller.write_all(b"3").await.expect("sent");
        assert!(timeout(silence, hears.recv()).await.is_err(), "nothing arrives");
        links.set(&["a"], &["other"], Weather::CUT);
        links.set(&["a"], &["b"], Weather::FAIR);
        for byte in [b"2", b"3"] {
            caller.read_exact(&mut answer).await.expect("answered");
            assert_eq!(&answer, byte, "in order, and late");
        }
    }
}
