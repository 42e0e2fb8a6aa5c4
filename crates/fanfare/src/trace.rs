//! Traces of events from publish to write. The application implements [`Tracer`] and exports the spans. The trace
//! context of a publish travels with its event through the log, so the writes of every node belong to the same trace.

use std::fmt;

/// Creates spans. All methods are called while events are processed, and must not block.
pub trait Tracer: Send + Sync + fmt::Debug + 'static {
    /// Starts the span of a publish. `parent` is the request's `traceparent` (W3C Trace Context), if it had one.
    /// Returns `None` if the publish is not sampled.
    fn publish(&self, parent: Option<&str>) -> Option<Box<dyn Publishing>>;

    /// Records that a shard has written a traced event to its clients.
    fn written(&self, written: &Written<'_>);
}

/// A publish in progress.
pub trait Publishing: Send {
    /// The context of this span, as a `traceparent`.
    fn context(&self) -> String;

    /// Ends the span.
    fn end(self: Box<Self>, published: &PublishOutcome<'_>);
}

/// The outcome of a publish.
#[derive(Debug)]
pub struct PublishOutcome<'a> {
    /// The type of its first event.
    pub event_type: &'a str,
    /// The ID of its first event.
    pub event_id: &'a str,
    /// Number of events in the publish.
    pub events: usize,
    /// The publisher.
    pub publisher: &'a str,
    /// The log position of the first event, or the reason why nothing was appended.
    pub result: Result<String, String>,
}

/// A shard's write of a traced event.
#[derive(Debug)]
pub struct Written<'a> {
    /// The context of its publish.
    pub context: &'a str,
    /// The event's type.
    pub event_type: &'a str,
    /// The event's ID.
    pub event_id: &'a str,
    /// The node that wrote it.
    pub node: &'a str,
    /// Number of clients it was written to.
    pub clients: u64,
    /// When the log accepted the event, by the log's clock, in milliseconds since 1970-01-01T00:00:00Z.
    pub appended_ms: u64,
    /// When the event was written to the last client that is not lagging, in milliseconds since 1970-01-01T00:00:00Z.
    pub written_ms: u64,
}
