//! A stream whose traffic is noted in its connection's activity, and which lingers where it is closed before all was read.
//!
//! Under net::serve. It changes no byte.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use crate::activity::Activity;

/// How every HTTP/2 connection begins (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What is read at once of what nobody wants.
const SCRATCH: usize = 8 << 10;

/// A stream that is watched.
pub(crate) struct Watched<T> {
    inner: T,
    activity: Arc<Activity>,
    /// How much of HTTP/2's preface has come; none: it is decided what the stream speaks.
    preface: Option<usize>,
    is_at_end: bool,
    is_stalled: bool,
    linger: Duration,
    closing: Closing,
}

/// How far the stream is closed. Closing a socket with unread bytes resets it, and its peer may lose the answer that it was sent.
enum Closing {
    Open,
    /// The peer has been told; what it still sends is thrown away for a while.
    Lingers(Pin<Box<Sleep>>),
    Done,
}

impl<T> Watched<T> {
    pub(crate) fn new(inner: T, activity: Arc<Activity>, linger: Duration) -> Self {
        Self { inner, activity, preface: Some(0), is_at_end: false, is_stalled: false, linger, closing: Closing::Open }
    }

    fn wrote<R>(&mut self, result: Poll<R>) -> Poll<R> {
        if result.is_pending() != self.is_stalled {
            self.is_stalled = result.is_pending();
            self.activity.stalled(self.is_stalled);
        }
        result
    }

    fn arrived(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            self.is_at_end = true;
            return;
        }
        self.activity.arrived();
        let Some(seen) = self.preface else { return };
        let rest = &PREFACE[seen..];
        let count = rest.len().min(bytes.len());
        let is_preface = rest[..count] == bytes[..count];
        if is_preface && count < rest.len() {
            self.preface = Some(seen + count);
            return;
        }
        self.preface = None;
        self.activity.is_known(is_preface);
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let has_room = buffer.remaining() > 0;
        ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
        if has_room {
            self.arrived(&buffer.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.wrote(result)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, slices);
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match &mut this.closing {
                Closing::Open => {
                    ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
                    let lingers = this.activity.is_owed_the_end() && !this.is_at_end;
                    this.closing = if lingers { Closing::Lingers(Box::pin(sleep(this.linger))) } else { Closing::Done };
                }
                Closing::Lingers(end) => {
                    let mut scratch = [0; SCRATCH];
                    let mut buffer = ReadBuf::new(&mut scratch);
                    let is_over = end.as_mut().poll(cx).is_ready();
                    let more = if is_over { false } else { ready!(Pin::new(&mut this.inner).poll_read(cx, &mut buffer)).is_ok() };
                    if !more || buffer.filled().is_empty() {
                        this.closing = Closing::Done;
                    }
                }
                Closing::Done => return Poll::Ready(Ok(())),
            }
        }
    }
}
