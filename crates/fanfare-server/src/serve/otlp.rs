//! Exports traces to an OpenTelemetry collector over OTLP (JSON). A thread sends the spans from a queue. Spans are
//! dropped while the queue is full.

use crate::settings::{Settings, SettingsError};
use fanfare::trace::{PublishOutcome, Publishing, Tracer, Written};
use opentelemetry::{
    Context, KeyValue,
    propagation::TextMapPropagator,
    trace::{Span, SpanKind, Status, TraceContextExt, Tracer as _, TracerProvider},
};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracer, SdkTracerProvider},
};
use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

/// The time limit for sending the last spans at shutdown.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// The header of a trace context (W3C Trace Context, section 3.2).
const TRACEPARENT: &str = "traceparent";

/// The exporter of traces.
#[derive(Debug)]
pub(crate) struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    propagator: TraceContextPropagator,
}

impl Traces {
    /// Starts the exporter, if `otlp_endpoint` is set.
    pub(crate) fn start(settings: &Settings, instance: &str) -> Result<Option<Self>, SettingsError> {
        let Some(endpoint) = &settings.otlp_endpoint else { return Ok(None) };
        let wrong = |error: &dyn ToString| SettingsError::key("otlp_endpoint", endpoint, error.to_string());
        // The exporter's thread has no async runtime, so its HTTP client must be a blocking one.
        let client = std::thread::spawn(reqwest::blocking::Client::new).join();
        let client = client.map_err(|_| wrong(&"failed to create the HTTP client"))?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpJson)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')));
        let exporter = exporter.build().map_err(|error| wrong(&error))?;
        let resource = Resource::builder().with_service_name("fanfare").with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", instance.to_owned()),
        ]);
        let share = Sampler::TraceIdRatioBased(settings.trace_share);
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            // A publisher's own trace has been sampled, or not, already.
            .with_sampler(Sampler::ParentBased(Box::new(share)))
            .with_resource(resource.build())
            .build();
        let tracer = provider.tracer("fanfare");
        Ok(Some(Self { provider, tracer, propagator: TraceContextPropagator::new() }))
    }

    /// Sends the queued spans.
    pub(crate) fn end(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(FLUSH_TIMEOUT) {
            tracing::debug!(%error, "failed to send the last traces");
        }
    }

    fn parent(&self, context: Option<&str>) -> Context {
        let Some(context) = context else { return Context::new() };
        let carrier = HashMap::from([(TRACEPARENT.to_owned(), context.to_owned())]);
        self.propagator.extract_with_context(&Context::new(), &carrier)
    }
}

impl Tracer for Traces {
    fn publish(&self, parent: Option<&str>) -> Option<Box<dyn Publishing>> {
        let builder = self.tracer.span_builder("publish").with_kind(SpanKind::Producer);
        let span = builder.start_with_context(&self.tracer, &self.parent(parent));
        span.span_context()
            .is_sampled()
            .then(|| Box::new(Publish(Context::new().with_span(span))) as Box<dyn Publishing>)
    }

    fn written(&self, written: &Written<'_>) {
        let at = |ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        let mut span = self
            .tracer
            .span_builder("write")
            .with_kind(SpanKind::Consumer)
            .with_start_time(at(written.appended_ms))
            .with_attributes([
                KeyValue::new("fanfare.event.type", written.event_type.to_owned()),
                KeyValue::new("fanfare.event.id", written.event_id.to_owned()),
                KeyValue::new("fanfare.node", written.node.to_owned()),
                KeyValue::new("fanfare.clients", i64::try_from(written.clients).unwrap_or(i64::MAX)),
            ])
            .start_with_context(&self.tracer, &self.parent(Some(written.context)));
        // The clocks of the log and of this machine may differ.
        span.end_with_timestamp(at(written.written_ms.max(written.appended_ms)));
    }
}

/// The span of a publish.
struct Publish(Context);

impl Publishing for Publish {
    fn context(&self) -> String {
        let mut carrier = HashMap::new();
        TraceContextPropagator::new().inject_context(&self.0, &mut carrier);
        carrier.remove(TRACEPARENT).unwrap_or_default()
    }

    fn end(self: Box<Self>, published: &PublishOutcome<'_>) {
        let span = self.0.span();
        span.set_attribute(KeyValue::new("fanfare.event.type", published.event_type.to_owned()));
        span.set_attribute(KeyValue::new("fanfare.event.id", published.event_id.to_owned()));
        span.set_attribute(KeyValue::new("fanfare.events", i64::try_from(published.events).unwrap_or(i64::MAX)));
        span.set_attribute(KeyValue::new("fanfare.publisher", published.publisher.to_owned()));
        match &published.result {
            Ok(position) => span.set_attribute(KeyValue::new("fanfare.position", position.clone())),
            Err(error) => span.set_status(Status::error(error.clone())),
        }
        span.end();
    }
}
