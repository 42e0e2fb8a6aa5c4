//! Limits the time of a request's body, and discards bodies that no handler reads. Knows bytes and time, and no route.

use crate::timed_stream::time_for;
use axum::{
    body::{Body, Bytes, HttpBody},
    extract::{Request, State},
    http::{HeaderValue, header},
    middleware::Next,
    response::Response,
};
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use std::{
    error::Error,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::oneshot,
    time::{Instant, Sleep, sleep_until, timeout},
};

/// Maximum number of bytes of an unread body that are discarded.
const MAX_DISCARDED: usize = 32 << 20;

/// A request's body was not received in time.
#[derive(Debug, thiserror::Error)]
#[error("the body was not received in time (handshake_timeout)")]
pub struct BodyTimeout;

impl BodyTimeout {
    /// Whether an error was caused by a body timeout.
    pub fn caused(error: &(dyn Error + 'static)) -> bool {
        let mut error = Some(error);
        while let Some(this) = error {
            if this.is::<Self>() {
                return true;
            }
            error = this.source();
        }
        false
    }
}

/// Middleware that limits the time of a request's body to `limit`, plus a second for each KiB of it. Reading the body
/// then fails with [`BodyTimeout`].
///
/// A body that is unread when the response is ready is discarded first, up to 32 MiB and within `limit`. A client that
/// is still sending would otherwise see its connection reset instead of the response.
///
/// The hub's own routes use it. For other routes of an application: `axum::middleware::from_fn_with_state(limit,
/// limit_body)`.
pub async fn limit_body(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    // With `Expect: 100-continue` the client sends the body only once it is read.
    let expects = request.headers().contains_key(header::EXPECT);
    let (give_back, mut rest) = oneshot::channel();
    let timed = |body| {
        let (body, give_back) = (Some(body), Some(give_back));
        Body::new(TimedBody { body, give_back, was_read: false, clock: Clock::new(limit) })
    };
    let mut response = next.run(request.map(timed)).await;
    // Empty if the body was read to its end, or if the response still reads it.
    if let Ok((rest, was_read)) = rest.try_recv() {
        let is_sent = was_read || !expects;
        let discarded = is_sent && timeout(limit, discard(rest)).await.unwrap_or(false);
        if !discarded {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
    response
}

/// Reads a body to its end. Returns false if it is too long or fails.
async fn discard(mut body: Body) -> bool {
    let mut discarded = 0;
    while let Some(frame) = body.frame().await {
        discarded += frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len);
        if frame.is_err() || discarded > MAX_DISCARDED {
            return false;
        }
    }
    true
}

/// A body with a deadline. If it is dropped before its end, the rest is sent back, together with whether any of it was
/// read.
struct TimedBody {
    body: Option<Body>,
    give_back: Option<oneshot::Sender<(Body, bool)>>,
    was_read: bool,
    clock: Clock,
}

struct Clock {
    begun: Instant,
    limit: Duration,
    bytes: u64,
    /// Set once a read had to wait.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Clock {
    fn new(limit: Duration) -> Self {
        Self { begun: Instant::now(), limit, bytes: 0, sleep: None }
    }

    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = self.begun + self.limit + time_for(self.bytes);
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() != deadline {
            sleep.as_mut().reset(deadline);
        }
        sleep.as_mut().poll(cx)
    }
}

impl HttpBody for TimedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.was_read = true;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        match Pin::new(body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.clock.bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(ended) => {
                self.body = None;
                Poll::Ready(ended)
            }
            Poll::Pending => self.clock.poll_over(cx).map(|()| {
                // The deadline has passed, so the rest is not discarded either.
                self.body = None;
                Some(Err(axum::Error::new(BodyTimeout)))
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for TimedBody {
    fn drop(&mut self) {
        if let (Some(body), Some(give_back)) = (self.body.take(), self.give_back.take())
            && !body.is_end_stream()
        {
            // Sending fails once the middleware no longer waits.
            let _ = give_back.send((body, self.was_read));
        }
    }
}
