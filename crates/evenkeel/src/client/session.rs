//! The connection to a master: any of those that are named, tried in turn, and again while a new leader is being elected.

use std::time::{Duration, Instant};

use evenkeel_proto::v1::master_client::MasterClient;
use tokio::sync::Mutex;
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint},
};

use super::error::ClientError;
use crate::output;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(3);
/// How long one answer may take; a master that waits for a leader gives up before.
const ANSWER: Duration = Duration::from_secs(15);
/// How long a call is tried again while there is no leader.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(250);
/// The largest message: a page of resources with large specs.
const MAX_MESSAGE: usize = 256 << 20;

/// What a call is done with.
pub(crate) type Client = MasterClient<Channel>;

/// The masters that were named, and the connection to one of them.
#[derive(Debug)]
pub(crate) struct Session {
    urls: Vec<String>,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    /// Which URL is to be tried first.
    next: usize,
    client: Option<Client>,
}

/// An answer, and whether an earlier try may have had its effect already.
#[derive(Debug)]
pub(crate) struct Answer<T> {
    pub(crate) result: Result<T, ClientError>,
    pub(crate) retried: bool,
}

impl Session {
    /// Nothing is connected yet.
    pub(crate) fn new(urls: Vec<String>) -> Self {
        Self { urls, open: Mutex::default() }
    }

    /// The connection that stands, or a new one to the first master that answers.
    pub(crate) async fn client(&self) -> Result<Client, ClientError> {
        let mut open = self.open.lock().await;
        if let Some(client) = &open.client {
            return Ok(client.clone());
        }
        let mut reasons = Vec::new();
        for turn in 0..self.urls.len() {
            let index = (open.next + turn) % self.urls.len();
            match connect(&self.urls[index]).await {
                Ok(client) => {
                    open.next = index;
                    return Ok(open.client.insert(client).clone());
                }
                Err(reason) => reasons.push(format!("{} ({reason})", self.urls[index])),
            }
        }
        Err(ClientError::Unreachable(reasons.join(", ")))
    }

    /// Gives the connection up, so that the next master is tried.
    pub(crate) async fn rotate(&self) {
        let mut open = self.open.lock().await;
        open.client = None;
        open.next = (open.next + 1) % self.urls.len();
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
        let started = Instant::now();
        let mut retried = false;
        loop {
            let mut client = match self.client().await {
                Ok(client) => client,
                // A master that answered a moment ago may be on its way out; another may be on its way in.
                Err(_) if retried && started.elapsed() < PATIENCE => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                Err(error) => return Answer { result: Err(error), retried },
            };
            let status = match tokio::time::timeout(ANSWER, call(&mut client, request.clone())).await {
                Ok(Ok(response)) => return Answer { result: Ok(response.into_inner()), retried },
                Ok(Err(status)) => status,
                Err(_) => return Answer { result: Err(ClientError::Silent { subject: subject.to_owned(), span: ANSWER }), retried },
            };
            if !is_passing(&status) || started.elapsed() >= PATIENCE {
                return Answer { result: Err(ClientError::status(subject, &status)), retried };
            }
            if !retried && output::progress() {
                eprintln!("no leader answers; trying for {} s", PATIENCE.as_secs());
            }
            retried = true;
            self.rotate().await;
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Whether another try, perhaps at another master, may be answered: there is no leader, or the connection broke.
fn is_passing(status: &Status) -> bool {
    let broke = std::error::Error::source(status).is_some();
    match status.code() {
        Code::Unavailable => true,
        Code::Unknown | Code::Cancelled | Code::Internal => broke,
        _ => false,
    }
}

/// Why a stream ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Another try, perhaps at another master, may go on with it.
    Passing(ClientError),
    /// It makes no sense to go on.
    For(ClientError),
}

impl Ended {
    /// By what a master said.
    pub(crate) fn by(subject: &str, status: &Status) -> Self {
        let error = ClientError::status(subject, status);
        if is_passing(status) { Self::Passing(error) } else { Self::For(error) }
    }
}

/// How long a stream that breaks has been broken.
#[derive(Debug, Default)]
pub(crate) struct Breaks {
    since: Option<Instant>,
}

impl Breaks {
    /// Waits a little before the next try; the error when that has been done for long enough.
    pub(crate) async fn wait(&mut self, session: &Session, ended: Ended) -> Result<(), ClientError> {
        let since = *self.since.get_or_insert_with(Instant::now);
        match ended {
            Ended::For(error) => Err(error),
            Ended::Passing(error) if since.elapsed() >= PATIENCE => Err(error),
            Ended::Passing(_) => {
                session.rotate().await;
                tokio::time::sleep(PAUSE).await;
                Ok(())
            }
        }
    }
}

async fn connect(url: &str) -> Result<Client, String> {
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|e| e.to_string())?;
    let endpoint =
        endpoint.connect_timeout(CONNECT).tcp_nodelay(true).http2_keep_alive_interval(Duration::from_secs(10)).keep_alive_while_idle(true);
    let channel = match tokio::time::timeout(CONNECT, endpoint.connect()).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => return Err(root_cause(&error)),
        Err(_) => return Err(format!("no answer within {} s", CONNECT.as_secs())),
    };
    Ok(MasterClient::new(channel).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE))
}

/// The innermost error says what happened; those around it say only that something did.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
