//! Traces from publish to write. What spans are and where they go is the application's business; the context of a publish travels
//! with its event through the log, so that every node's writes belong to it.

use std::fmt;

/// Makes spans. Everything here is called on the way of events and must not block.
pub trait Tracer: Send + Sync + fmt::Debug + 'static {
    /// Begins the span of a publish, under `parent` if there is one, in the form of a `traceparent` (W3C Trace Context). `None`:
    /// this one is not traced.
    fn publish(&self, parent: Option<&str>) -> Option<Box<dyn Publishing>>;

    /// Notes that a shard has written a traced event to its clients.
    fn written(&self, written: &Written<'_>);
}

/// A publish that is under way.
pub trait Publishing: Send {
    /// Its own context, in the form of a `traceparent`.
    fn context(&self) -> String;

    /// Ends it.
    fn end(self: Box<Self>, published: &PublishOutcome<'_>);
}

/// What became of a publish.
#[derive(Debug)]
pub struct PublishOutcome<'a> {
    /// The type of its first event.
    pub event_type: &'a str,
    /// The id of its first event.
    pub event_id: &'a str,
    /// How many events there were.
    pub events: usize,
    /// Who published.
    pub publisher: &'a str,
    /// Where the first of them stands in the log, or why nothing does.
    pub result: Result<String, String>,
}

/// What a shard did with a traced event.
#[derive(Debug)]
pub struct Written<'a> {
    /// The context of its publish.
    pub context: &'a str,
    /// The event's type.
    pub event_type: &'a str,
    /// The event's id.
    pub event_id: &'a str,
    /// The node that wrote it.
    pub node: &'a str,
    /// To how many clients.
    pub clients: u64,
    /// When the log took it, by the log's clock, in milliseconds since 1970-01-01T00:00:00Z.
    pub appended_ms: u64,
    /// When the last client that keeps up was sent it.
    pub written_ms: u64,
}
