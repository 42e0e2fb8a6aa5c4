//! A stream whose writes time out when its peer stops reading. Knows bytes and time, and nothing of HTTP.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// Minimum rate at which a peer must send a body or read a response after its initial time limit, in bytes a second.
pub(crate) const MIN_BYTES_PER_SECOND: u64 = 1 << 10;

/// A stream whose writes fail with [`io::ErrorKind::TimedOut`] if the peer does not read them in time.
///
/// A pending write may take `timeout`, plus a second for each KiB that the peer reads meanwhile, until everything is
/// written. Reads are not limited: an HTTP server has its own limits for them. Serve a hub's routes on such a stream,
/// so that clients that never read cannot hold connections. The upgrade to WebSocket removes the wrapper.
#[derive(Debug)]
pub struct TimedStream<S> {
    stream: S,
    timeout: Duration,
    /// Set only while a write is pending, so that connections that are read need no timer.
    waiting: Option<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    since: Instant,
    written: u64,
    deadline: Pin<Box<Sleep>>,
}

impl<S> TimedStream<S> {
    /// Limits the writes of `stream`.
    pub fn new(stream: S, timeout: Duration) -> Self {
        Self { stream, timeout, waiting: None }
    }

    /// The wrapped stream.
    pub fn into_inner(self) -> S {
        self.stream
    }

    /// Returns an error once the peer has exceeded its time limit.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let timeout = self.timeout;
        let waiting = self.waiting.get_or_insert_with(|| {
            let since = Instant::now();
            Waiting { since, written: 0, deadline: Box::pin(sleep_until(since + timeout)) }
        });
        loop {
            ready!(waiting.deadline.as_mut().poll(cx));
            let deadline = waiting.since + timeout + time_for(waiting.written);
            if Instant::now() >= deadline {
                return Poll::Ready(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the peer did not read the response in time",
                ));
            }
            waiting.deadline.as_mut().reset(deadline);
        }
    }

    /// Handles the result of a write.
    fn wrote(&mut self, result: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match result {
            Poll::Pending => self.poll_deadline(cx).map(Err),
            Poll::Ready(Ok(bytes)) => {
                if let Some(waiting) = &mut self.waiting {
                    waiting.written += bytes as u64;
                }
                Poll::Ready(Ok(bytes))
            }
            failed @ Poll::Ready(Err(_)) => failed,
        }
    }

    /// Handles the result of a flush or a shutdown. Once it completes, everything is written and the time limit is
    /// cleared.
    fn flushed(&mut self, result: Poll<io::Result<()>>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if result.is_pending() {
            return self.poll_deadline(cx).map(Err);
        }
        self.waiting = None;
        result
    }
}

/// The time that `bytes` may take at the minimum rate.
pub(crate) fn time_for(bytes: u64) -> Duration {
    Duration::from_millis(bytes.saturating_mul(1_000) / MIN_BYTES_PER_SECOND)
}

impl<S: AsyncRead + Unpin> AsyncRead for TimedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(result, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(result, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.flushed(result, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.flushed(result, cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const TIMEOUT: Duration = Duration::from_secs(10);

    // attack: a client that never reads its response => the connection ends at handshake_timeout
    #[tokio::test(start_paused = true)]
    async fn a_write_to_a_peer_that_never_reads_times_out() {
        let (ours, _theirs) = duplex(16);
        let begun = Instant::now();
        let error = TimedStream::new(ours, TIMEOUT).write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed().as_secs(), 10);
    }

    // attack: a client that reads its response byte by byte => the connection ends soon after handshake_timeout
    #[tokio::test(start_paused = true)]
    async fn a_peer_that_reads_byte_by_byte_times_out() {
        let (ours, mut theirs) = duplex(16);
        let reader = tokio::spawn(async move {
            while theirs.read_u8().await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let begun = Instant::now();
        TimedStream::new(ours, TIMEOUT).write_all(&[0; 4_096]).await.unwrap_err();
        assert!(begun.elapsed() < 2 * TIMEOUT, "{:?}", begun.elapsed());
        reader.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_peer_that_keeps_reading_receives_everything() {
        const BYTES: usize = 200 << 10;
        let (ours, mut theirs) = duplex(4 << 10);
        let writer = tokio::spawn(async move {
            let mut stream = TimedStream::new(ours, TIMEOUT);
            stream.write_all(&vec![0; BYTES]).await?;
            stream.shutdown().await
        });
        let (mut buffer, mut read) = ([0; 2_048], 0);
        while read < BYTES {
            read += theirs.read(&mut buffer).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        writer.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn each_response_has_its_own_time_limit() {
        let (ours, mut theirs) = duplex(16);
        let mut stream = TimedStream::new(ours, TIMEOUT);
        for _ in 0..5 {
            let reader = async {
                tokio::time::sleep(Duration::from_secs(8)).await;
                theirs.read_exact(&mut [0; 32]).await.unwrap();
            };
            let ((), written) = tokio::join!(reader, async {
                stream.write_all(&[0; 32]).await?;
                stream.flush().await
            });
            written.unwrap();
        }
    }
}
