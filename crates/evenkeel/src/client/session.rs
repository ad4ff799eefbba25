//! The connections to masters: any of those that are named, asked in turn, and again while a new leader is being elected.
//!
//! The wheel: under every client command. A master that hangs costs a command a share of its time and no more: the next one is asked as
//! well, and the first answer counts. So a request may arrive twice. Every call of the API is made for that: a retry has one effect, and an
//! [`Answer`] says that there was one. It must not decide what a command does with an answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use evenkeel_master::NO_EFFECT;
use evenkeel_proto::v1::master_client::MasterClient;
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Response, Status, transport::Endpoint};

use super::{
    error::{ClientError, root_cause},
    grpc_only::GrpcOnly,
};
use crate::output;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(3);
/// How long one answer may take; a master that waits for a leader gives up before.
const ANSWER: Duration = Duration::from_secs(15);
/// How long a call is tried again while there is no leader.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(250);
/// The least and the most that one of several masters is waited for before the next is asked: longer than a healthy master needs for all
/// but the largest questions, and short to a person who waits.
const SHARE: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(2);
/// How often an idle connection to the only master there is is tried.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long such a try may take: it has nobody else to go to.
const KEEP_ALIVE_PATIENCE: Duration = Duration::from_secs(20);
/// The largest message: a page of resources with large specs.
const MAX_MESSAGE: usize = 256 << 20;

/// What a call is done with.
pub(crate) type Client = MasterClient<GrpcOnly>;

/// The masters that were named, and the connections to them.
#[derive(Debug)]
pub(crate) struct Session {
    masters: Vec<Master>,
    order: Mutex<Order>,
}

#[derive(Debug)]
struct Master {
    url: String,
    client: tokio::sync::Mutex<Option<Client>>,
}

/// In which order the masters are asked.
#[derive(Debug, Default)]
struct Order {
    /// Who is asked first.
    next: usize,
    /// Those that gave no answer in their share of the time, or whose connection broke: they are asked last.
    silent: BTreeSet<usize>,
}

impl Order {
    /// Who is to be asked, of so many masters, those left out that match.
    fn first(&self, count: usize, left_out: impl Fn(usize) -> bool) -> Option<usize> {
        let turn = |index: &usize| (self.silent.contains(index), (index + count - self.next % count) % count);
        (0..count).filter(|index| !left_out(*index)).min_by_key(turn)
    }

    fn answered(&mut self, index: usize) {
        self.silent.remove(&index);
    }
}

/// An answer, and whether another try may have had its effect already.
#[derive(Debug)]
pub(crate) struct Answer<T> {
    pub(crate) result: Result<T, ClientError>,
    pub(crate) retried: bool,
}

/// What became of one try.
enum Outcome<A> {
    Said(Result<A, Status>),
    /// Nothing was sent.
    Unreachable(String),
    /// No answer came in time.
    Silent,
}

/// The tries of one call.
#[derive(Default)]
struct Tries {
    /// Whose answers are awaited.
    waiting: BTreeSet<usize>,
    /// Who is not asked again for now, and why.
    out: BTreeMap<usize, String>,
    /// How many were sent and gave no answer that counts.
    lost: usize,
    /// There was a connection, and no answer came.
    silent: bool,
    /// What a master said of which nobody knows whether it had an effect. It counts more than that nobody leads afterwards.
    unknown: Option<Status>,
}

impl Session {
    /// Nothing is connected yet.
    pub(crate) fn new(urls: Vec<String>) -> Self {
        let masters = urls.into_iter().map(|url| Master { url, client: tokio::sync::Mutex::default() }).collect();
        Self { masters, order: Mutex::default() }
    }

    fn order(&self) -> MutexGuard<'_, Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long one of the masters is waited for before the next is asked.
    fn share(&self) -> Duration {
        let parts = u32::try_from(self.masters.len()).unwrap_or(u32::MAX).saturating_add(1);
        (ANSWER / parts).clamp(*SHARE.start(), *SHARE.end())
    }

    /// A connection to the first master that takes one, for a stream: [`Session::give_up`] leads to the next.
    pub(crate) async fn client(&self) -> Result<Client, ClientError> {
        let mut out = BTreeMap::new();
        loop {
            let first = self.order().first(self.masters.len(), |index| out.contains_key(&index));
            let Some(index) = first else { return Err(ClientError::Unreachable(self.reasons(&out))) };
            match self.connect(index).await {
                Ok(client) => {
                    self.order().next = index;
                    return Ok(client);
                }
                Err(reason) => out.insert(index, reason),
            };
        }
    }

    /// Gives the connection of the last stream up, so that the next master is tried. One that was `silent` is tried last from now on.
    pub(crate) async fn give_up(&self, silent: bool) {
        let index = {
            let mut order = self.order();
            let Some(index) = order.first(self.masters.len(), |_| false) else { return };
            order.next = index + 1;
            if silent {
                order.silent.insert(index);
            }
            index
        };
        *self.masters[index].client.lock().await = None;
    }

    /// One call, tried again at another master as long as there is no leader to answer it. `subject` is what it is about.
    pub(crate) async fn call<Q, A, F>(&self, subject: &str, request: Q, call: F) -> Result<A, ClientError>
    where
        Q: Clone,
        F: AsyncFn(&mut Client, Q) -> Result<Response<A>, Status>,
    {
        self.ask(subject, request, call).await.result
    }

    /// As [`Session::call`], for calls whose second try reads otherwise when the first had its effect.
    pub(crate) async fn ask<Q, A, F>(&self, subject: &str, request: Q, call: F) -> Answer<A>
    where
        Q: Clone,
        F: AsyncFn(&mut Client, Q) -> Result<Response<A>, Status>,
    {
        self.ask_within(ANSWER, subject, request, call).await
    }

    /// As [`Session::ask`], for calls that are answered when something has ended that may take so long.
    pub(crate) async fn ask_within<Q, A, F>(&self, span: Duration, subject: &str, request: Q, call: F) -> Answer<A>
    where
        Q: Clone,
        F: AsyncFn(&mut Client, Q) -> Result<Response<A>, Status>,
    {
        let begun = Instant::now();
        let mut tries = Tries::default();
        let mut calls = FuturesUnordered::new();
        let mut next = self.to_ask(&tries);
        loop {
            if let Some(index) = next.take() {
                tries.waiting.insert(index);
                calls.push(self.attempt(index, span, request.clone(), &call));
            }
            let spare = self.to_ask(&tries);
            let ended = tokio::select! {
                biased;
                ended = calls.next() => ended,
                () = sleep(self.share()), if spare.is_some() => {
                    self.order().silent.extend(&tries.waiting);
                    next = spare;
                    continue;
                }
            };
            let Some((index, outcome)) = ended else {
                let reasons = self.reasons(&tries.out);
                let subject = subject.to_owned();
                return tries.end(Err(if tries.silent {
                    ClientError::Silent { subject, reasons }
                } else {
                    ClientError::Unreachable(reasons)
                }));
            };
            tries.waiting.remove(&index);
            match outcome {
                Outcome::Said(Ok(answer)) => {
                    self.order().answered(index);
                    return tries.end(Ok(answer));
                }
                Outcome::Said(Err(status)) if !is_passing(&status) => return tries.end(Err(ClientError::status(subject, &status))),
                Outcome::Said(Err(status)) => {
                    let broken = is_broken(&status);
                    if !broken && !status.metadata().contains_key(NO_EFFECT) {
                        tries.unknown = Some(status.clone());
                    }
                    self.pass_over(index, broken).await;
                    if begun.elapsed() < PATIENCE {
                        tries.again().await;
                    } else if tries.waiting.is_empty() && !broken {
                        let said = ClientError::status(subject, tries.unknown.as_ref().unwrap_or(&status));
                        return tries.end(Err(said));
                    } else {
                        tries.out.insert(index, if broken { root_cause(&status) } else { status.message().to_owned() });
                        tries.silent |= broken;
                    }
                    tries.lost += 1;
                }
                Outcome::Unreachable(reason) => {
                    tries.out.insert(index, reason);
                    // A master that answered a moment ago may be on its way out; another may be on its way in.
                    if tries.lost > 0 && tries.out.len() == self.masters.len() && begun.elapsed() < PATIENCE {
                        tries.again().await;
                    }
                }
                Outcome::Silent => {
                    tries.out.insert(index, format!("no answer within {} s", span.as_secs()));
                    tries.lost += 1;
                    tries.silent = true;
                }
            }
            next = self.to_ask(&tries);
        }
    }

    /// One try at one master.
    async fn attempt<Q, A, F>(&self, index: usize, span: Duration, request: Q, call: &F) -> (usize, Outcome<A>)
    where
        F: AsyncFn(&mut Client, Q) -> Result<Response<A>, Status>,
    {
        let mut client = match self.connect(index).await {
            Ok(client) => client,
            Err(reason) => return (index, Outcome::Unreachable(reason)),
        };
        match timeout(span, call(&mut client, request)).await {
            Ok(said) => (index, Outcome::Said(said.map(Response::into_inner))),
            Err(_) => (index, Outcome::Silent),
        }
    }

    /// The open connection to a master, or a new one.
    async fn connect(&self, index: usize) -> Result<Client, String> {
        let Master { url, client } = &self.masters[index];
        let mut client = client.lock().await;
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        Ok(client.insert(connect(url, self.masters.len()).await?).clone())
    }

    /// The next try is another master's, if there is one; a master that was `silent` is asked last from now on.
    async fn pass_over(&self, index: usize, silent: bool) {
        {
            let mut order = self.order();
            order.next = index + 1;
            if silent {
                order.silent.insert(index);
            } else {
                order.answered(index);
            }
        }
        if silent {
            *self.masters[index].client.lock().await = None;
        }
    }

    fn to_ask(&self, tries: &Tries) -> Option<usize> {
        self.order().first(self.masters.len(), |index| tries.waiting.contains(&index) || tries.out.contains_key(&index))
    }

    /// Each master with the reason why it did not answer.
    fn reasons(&self, out: &BTreeMap<usize, String>) -> String {
        out.iter().map(|(index, reason)| format!("{} ({reason})", self.masters[*index].url)).collect::<Vec<_>>().join(", ")
    }
}

impl Tries {
    /// One more round, a little later.
    async fn again(&mut self) {
        if self.lost == 0 && output::progress() {
            eprintln!("no leader answers; trying for {} s", PATIENCE.as_secs());
        }
        self.out.clear();
        sleep(PAUSE).await;
    }

    fn end<A>(&self, result: Result<A, ClientError>) -> Answer<A> {
        Answer { result, retried: self.lost > 0 || !self.waiting.is_empty() }
    }
}

/// Whether another try, perhaps at another master, may be answered: there is no leader, or the connection broke.
fn is_passing(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable => true,
        Code::Unknown | Code::Cancelled | Code::Internal => is_broken(status),
        _ => false,
    }
}

/// Whether the connection says this, and not the master.
fn is_broken(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// Why a stream ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Another try, perhaps at another master, may go on with it.
    Passing {
        /// What is said if that is in vain.
        error: ClientError,
        /// The master did not say this itself: it hangs, or has gone.
        silent: bool,
    },
    /// It makes no sense to go on.
    For(ClientError),
}

impl Ended {
    /// By what a master said.
    pub(crate) fn by(subject: &str, status: &Status) -> Self {
        let error = ClientError::status(subject, status);
        if is_passing(status) { Self::Passing { error, silent: is_broken(status) } } else { Self::For(error) }
    }

    /// The master did as it should, and another may go on.
    pub(crate) fn passing(error: ClientError) -> Self {
        Self::Passing { error, silent: false }
    }
}

/// How long a stream that breaks has been broken.
#[derive(Debug)]
pub(crate) struct Breaks {
    since: Option<Instant>,
    patience: Duration,
}

impl Default for Breaks {
    fn default() -> Self {
        Self::of(PATIENCE)
    }
}

impl Breaks {
    /// Of a stream that is worth so long a wait.
    pub(crate) fn of(patience: Duration) -> Self {
        Self { since: None, patience }
    }

    /// Waits a little before the next try; the error when that has been done for long enough.
    pub(crate) async fn wait(&mut self, session: &Session, ended: Ended) -> Result<(), ClientError> {
        let since = *self.since.get_or_insert_with(Instant::now);
        match ended {
            Ended::For(error) => Err(error),
            Ended::Passing { error, .. } if since.elapsed() >= self.patience => Err(error),
            Ended::Passing { silent, .. } => {
                session.give_up(silent).await;
                sleep(PAUSE).await;
                Ok(())
            }
        }
    }
}

/// Connects to one of so many masters. Where there are others, one that does not even answer at the level of the connection is given up
/// soon, also under a stream, which may be silent for good reasons.
async fn connect(url: &str, masters: usize) -> Result<Client, String> {
    let (span, interval, patience) = match u32::try_from(masters) {
        Ok(1) => (CONNECT, KEEP_ALIVE, KEEP_ALIVE_PATIENCE),
        _ => (*SHARE.start(), *SHARE.end(), *SHARE.end()),
    };
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|e| e.to_string())?;
    let endpoint = endpoint.tcp_nodelay(true).http2_keep_alive_interval(interval).keep_alive_timeout(patience).keep_alive_while_idle(true);
    let channel = match timeout(span, endpoint.connect()).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => return Err(root_cause(&error)),
        Err(_) => return Err(format!("no answer within {} s", span.as_secs())),
    };
    let client = MasterClient::new(GrpcOnly::new(channel, url));
    Ok(client.max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE))
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        future::{Ready, ready},
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::{Context, Poll},
    };

    use evenkeel_proto::v1::{ListMastersRequest, ListMastersResponse, WatchEventsRequest};
    use tokio::net::TcpListener;
    use tonic::{
        body::Body,
        codegen::{
            Service,
            http::{Request, Response as HttpResponse},
        },
        server::NamedService,
        transport::{Server, server::TcpIncoming},
    };

    use super::*;

    /// A master of one answer, which counts what it is asked.
    #[derive(Clone)]
    struct Fake {
        headers: &'static [(&'static str, &'static str)],
        body: &'static [u8],
        asked: Arc<AtomicUsize>,
    }

    impl NamedService for Fake {
        const NAME: &'static str = "evenkeel.v1.Master";
    }

    impl Service<Request<Body>> for Fake {
        type Response = HttpResponse<Body>;
        type Error = Infallible;
        type Future = Ready<Result<HttpResponse<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let mut answer = HttpResponse::new(Body::new(http_body_util::Full::new(tonic::codegen::Bytes::from_static(self.body))));
            for (name, value) in self.headers {
                answer.headers_mut().insert(*name, value.parse().expect("a value"));
            }
            ready(Ok(answer))
        }
    }

    const GOOD: &[(&str, &str)] = &[("content-type", "application/grpc"), ("grpc-status", "5"), ("grpc-message", "it answered")];
    const NO_LEADER: &[(&str, &str)] = &[("content-type", "application/grpc"), ("grpc-status", "14"), ("grpc-message", "no leader")];
    const HTTP: &[(&str, &str)] = &[("content-type", "application/json")];

    async fn fake(headers: &'static [(&'static str, &'static str)]) -> (String, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let asked = Arc::new(AtomicUsize::new(0));
        let service = Fake { headers, body: b"{}", asked: Arc::clone(&asked) };
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener)));
        (url, asked)
    }

    /// Accepts, and never answers. The connections stand as long as the listener.
    async fn hanging() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                held.push(stream);
            }
        });
        url
    }

    async fn refusing() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        format!("http://{}", listener.local_addr().expect("its address"))
    }

    async fn ask(session: &Session) -> Answer<ListMastersResponse> {
        session.ask("masters", ListMastersRequest {}, async |client, request| client.list_masters(request).await).await
    }

    fn is_answered(answer: &Answer<ListMastersResponse>) -> bool {
        answer.result.as_ref().is_err_and(|error| error.is(Code::NotFound))
    }

    #[test]
    fn who_was_silent_is_asked_last() {
        let mut order = Order::default();
        let all = |order: &Order| {
            let mut left = Vec::new();
            while let Some(index) = order.first(3, |index| left.contains(&index)) {
                left.push(index);
            }
            left
        };
        assert_eq!(all(&order), [0, 1, 2]);
        order.next = 2;
        assert_eq!(all(&order), [2, 0, 1]);
        order.silent.insert(2);
        assert_eq!(all(&order), [0, 1, 2]);
        order.silent.extend([0, 1]);
        assert_eq!(all(&order), [2, 0, 1], "all the same again");
        order.answered(1);
        assert_eq!(all(&order), [1, 2, 0]);
        order.next = 7;
        assert_eq!(order.first(3, |_| true), None);
    }

    #[tokio::test]
    async fn a_master_that_hangs_does_not_keep_a_command_from_the_next() {
        let (good, asked) = fake(GOOD).await;
        let session = Session::new(vec![hanging().await, good]);
        let first = ask(&session).await;
        assert!(is_answered(&first) && first.retried, "the one that hangs may have done it: {first:?}");
        assert_eq!(session.order().first(2, |_| false), Some(1), "the one that hangs is asked last from now on");
        let second = ask(&session).await;
        assert!(is_answered(&second) && !second.retried, "{second:?}");
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_stream_leaves_a_master_that_hangs() {
        let (good, asked) = fake(GOOD).await;
        let session = Session::new(vec![hanging().await, good]);
        let mut breaks = Breaks::default();
        loop {
            let mut client = session.client().await.expect("connected");
            let status = client.watch_events(WatchEventsRequest { after: 0 }).await.expect_err("no stream");
            if status.code() == Code::NotFound {
                break;
            }
            let ended = Ended::by("events", &status);
            assert!(matches!(ended, Ended::Passing { silent: true, .. }), "{ended:?}");
            breaks.wait(&session, ended).await.expect("another may answer");
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert_eq!(session.order().first(2, |_| false), Some(1));
    }

    #[tokio::test]
    async fn without_a_leader_the_others_are_asked_and_one_that_hangs_last() {
        let (none, asked) = fake(NO_LEADER).await;
        let (good, _) = fake(GOOD).await;
        let session = Session::new(vec![none, hanging().await, good]);
        let answer = ask(&session).await;
        assert!(is_answered(&answer) && answer.retried, "{answer:?}");
        assert!(asked.load(Ordering::SeqCst) >= 1);
    }

    #[tokio::test]
    async fn one_that_refuses_costs_nothing_and_is_no_try() {
        let (good, _) = fake(GOOD).await;
        let session = Session::new(vec![refusing().await, good]);
        let answer = ask(&session).await;
        assert!(is_answered(&answer) && !answer.retried, "{answer:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn when_nobody_answers_each_is_named() {
        let urls = vec![hanging().await, refusing().await];
        let session = Session::new(urls.clone());
        let error = ask(&session).await.result.expect_err("nobody").to_string();
        assert!(urls.iter().all(|url| error.contains(&format!("{url} ("))), "{error}");
        let error = Session::new(vec![urls[1].clone(), refusing().await]).client().await.expect_err("nobody").to_string();
        assert!(
            error.starts_with(&format!("no master can be reached at {} (", urls[1])) && error.matches("http://").count() == 2,
            "{error}"
        );
    }

    /// Answers whatever comes as a web server does that knows no HTTP/2.
    async fn http1() -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 24]).await;
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
                // What it sent is to arrive before the end does.
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        });
        url
    }

    #[tokio::test]
    async fn an_http_port_is_called_one() {
        let url = http1().await;
        let error = ask(&Session::new(vec![url.clone()])).await.result.expect_err("no gRPC").to_string();
        assert!(error.starts_with(&format!("masters: {url} is not a gRPC port: HTTP/1 answers there; give")), "{error}");
        let (http, asked) = fake(HTTP).await;
        let error = ask(&Session::new(vec![http.clone()])).await.result.expect_err("no gRPC").to_string();
        let expected = format!(
            "masters: {http} is not a gRPC port: HTTP answers there, with status 200; give the master's gRPC port, which is 9091 by default"
        );
        assert_eq!((error, asked.load(Ordering::SeqCst)), (expected, 1));
    }
}
