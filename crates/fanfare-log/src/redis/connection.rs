//! A connection with timeouts. A timeout is measured from the request or from the last byte that was sent or received,
//! whichever is later. A slow connection that makes progress does not time out.

use super::{error::LinkError, limits::ANSWER};
use crate::environment::{self, Stream};
use redis::{AsyncConnectionConfig, Cmd, RedisConnectionInfo, RedisResult, Value, aio::MultiplexedConnection};
use std::{
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, timeout_at},
};

/// A multiplexed connection.
#[derive(Clone)]
pub(super) struct Connection {
    commands: MultiplexedConnection,
    progress: Arc<Progress>,
    /// How long the connection may make no progress while a response is pending.
    timeout: Duration,
}

/// The time at which bytes were last sent or received.
struct Progress {
    opened: Instant,
    /// In milliseconds since `opened`.
    last_ms: AtomicU64,
}

impl Connection {
    /// Performs the handshake on a stream, and spawns the driver of the connection.
    pub(super) async fn over(
        stream: impl Stream + 'static,
        info: &RedisConnectionInfo,
        timeout: Duration,
    ) -> RedisResult<Self> {
        let progress = Arc::new(Progress { opened: Instant::now(), last_ms: AtomicU64::new(0) });
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let stream = Watched { stream, progress: progress.clone() };
        let (commands, driver) = MultiplexedConnection::new_with_config(info, stream, config).await?;
        environment::spawn(driver);
        Ok(Self { commands, progress, timeout })
    }

    /// Sends a command and waits for the response.
    pub(super) async fn call(&mut self, command: &Cmd) -> Result<Value, LinkError> {
        let (progress, timeout) = (self.progress.clone(), self.timeout);
        let answer = progress.within(timeout, self.commands.send_packed_command(command)).await?;
        Ok(answer?.extract_error()?)
    }

    /// Sends a pipeline of commands and waits for all responses.
    pub(super) async fn call_all(&mut self, commands: &redis::Pipeline) -> Result<Vec<Value>, LinkError> {
        let (progress, timeout) = (self.progress.clone(), self.timeout);
        Ok(progress.within(timeout, commands.query_async(&mut self.commands)).await??)
    }
}

/// Sends a command and waits for the response.
pub(super) async fn call(connection: &mut Connection, command: &Cmd) -> Result<Value, LinkError> {
    connection.call(command).await
}

/// Decodes a response. The error does not contain the response, because it may contain events.
pub(super) fn read<T: redis::FromRedisValue>(answer: Value) -> Result<T, LinkError> {
    redis::from_redis_value(answer).map_err(|_| LinkError::Answer(format!("not a {}", std::any::type_name::<T>())))
}

impl Progress {
    fn note(&self) {
        let ms = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(ms, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.opened + Duration::from_millis(self.last_ms.load(Ordering::Relaxed))
    }

    /// Waits for a response until the connection has made no progress for `timeout`.
    async fn within<T>(&self, timeout: Duration, answer: impl Future<Output = T>) -> Result<T, LinkError> {
        let (asked, mut answer) = (Instant::now(), pin!(answer));
        loop {
            let since = asked.max(self.last());
            match timeout_at(since + timeout, &mut answer).await {
                Ok(answer) => return Ok(answer),
                Err(_) if self.last() > since => {}
                Err(_) => {
                    return Err(LinkError::Silent(format!("Redis did not respond within {} s", ANSWER.as_secs())));
                }
            }
        }
    }
}

/// A stream that records when bytes pass.
struct Watched<S> {
    stream: S,
    progress: Arc<Progress>,
}

impl<S: Stream> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (own, before) = (self.get_mut(), buf.filled().len());
        let polled = Pin::new(&mut own.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            own.progress.note();
        }
        polled
    }
}

impl<S: Stream> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let own = self.get_mut();
        let polled = Pin::new(&mut own.stream).poll_write(cx, bytes);
        if matches!(polled, Poll::Ready(Ok(written)) if written > 0) {
            own.progress.note();
        }
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redis::cmd;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A server that sends its response byte by byte with a pause before each, and answers the commands of the
    /// handshake immediately.
    async fn ask(pause: Duration) -> Result<Value, LinkError> {
        let (ours, mut theirs) = tokio::io::duplex(4_096);
        tokio::spawn(async move {
            let mut asked = [0; 4_096];
            loop {
                let read = theirs.read(&mut asked).await.unwrap();
                let asked = String::from_utf8_lossy(&asked[..read]);
                if asked.contains("GET") {
                    break;
                }
                for _ in 0..asked.matches("CLIENT").count() {
                    theirs.write_all(b"+OK\r\n").await.unwrap();
                }
            }
            for byte in b"$5\r\nhello\r\n" {
                tokio::time::sleep(pause).await;
                theirs.write_all(&[*byte]).await.unwrap();
            }
        });
        let opened = Connection::over(ours, &RedisConnectionInfo::default(), ANSWER).await;
        opened.unwrap().call(cmd("GET").arg("a")).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_makes_progress_does_not_time_out() {
        let begun = Instant::now();
        assert_eq!(ask(ANSWER / 2).await, Ok(Value::BulkString(b"hello".to_vec())));
        assert!(begun.elapsed() > ANSWER * 5, "{:?}", begun.elapsed());
        assert!(matches!(ask(ANSWER * 2).await, Err(LinkError::Silent(_))));
    }
}
