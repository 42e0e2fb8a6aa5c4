// Code of an application, only for the compiler: each line that is marked as an error must be one.

import { connect, type Client, type EventMap, type Problem, type Subscribed, type TokenReason } from "fanfare-client";
import {
  FanfareProvider, createHooks, useConnection, useEvent, useFanfare, useGap, useTopic,
} from "fanfare-client/react";

declare module "fanfare-client" {
  interface EventMap { note: { text: string }; "invoice.sent": { invoice: number } }
}

type Own = EventMap & { "order.paid": { order: number } };

const getToken = async (reason: TokenReason, signal: AbortSignal) => reason === "refused" && signal.aborted ? "s" : "t";
const client = connect<Own>({ url: "/ws", getToken, topics: ["a"] });
client.on("task_status_update", ({ data }) => data.task_id.length);
client.on("note", ({ data }) => data.text.length);
client.on("order.paid", ({ data }) => data.order.toFixed());
client.on("invoice.sent", ({ data }) => data.invoice.toFixed());
// @ts-expect-error: `order` is a number
client.on("order.paid", ({ data }) => data.order.length);
// @ts-expect-error: a type that is not in the map
client.on("order.payed", ({ data }) => data);
// @ts-expect-error: a type that is not in the map
client.events("order.payed");
// @ts-expect-error: `url` is missing
connect({ token: "t" });
client.onGap(async ({ missed, signal }) => fetch("/state", { signal }).then(() => missed?.toFixed()));
client.onState(({ name, retryAt }) => name === "live" && retryAt);
// @ts-expect-error: not a state
client.onState(({ name }) => name === "connected");
client.onProblem(({ topic }: Problem) => topic?.length);

client.onAny((event) => {
  if (event.type === "order.paid") event.data.order.toFixed();
  // @ts-expect-error: `text` is a field of another event
  if (event.type === "order.paid") event.data.text;
  // @ts-expect-error: a type that is not in the map
  if (event.type === "order.payed") event.data;
  switch (event.type) {
    case "note": return event.data.text.length;
    case "invoice.sent": return event.data.invoice.toFixed();
    default: return event.event_id.length;
  }
});

export async function iterate() {
  for await (const { data } of client.events("order.paid")) data.order.toFixed();
  for await (const event of client) {
    event.event_id.length;
    if (event.type === "invoice.sent") event.data.invoice.toFixed();
    // @ts-expect-error: `order` is a number
    if (event.type === "order.paid") event.data.order.length;
  }
}

/** A client without an event map. */
type Any = Record<string, { text: string }>;
const any: Client<Any> = connect<Any>({ url: "/ws", token: "t" });
any.on("whatever.comes", ({ data }) => data.text.length);

export async function subscribe() {
  const off = client.subscribe("a");
  const { topic, event_id }: Subscribed = await off;
  off();
  return topic + event_id;
}

const own = createHooks<Own>();

function List() {
  const { name, retry } = useConnection();
  useTopic(name === "live" ? "a" : null);
  useEvent("task_status_update", ({ data }) => data.task_id.length);
  useEvent("note", ({ data }) => data.text.length);
  useEvent("invoice.sent", ({ data }) => data.invoice.toFixed());
  // @ts-expect-error: a type that is not in the map
  useEvent("invoice.send", () => {});
  own.useEvent("order.paid", ({ data }) => data.order.toFixed());
  // @ts-expect-error: `order` is a number
  own.useEvent("order.paid", ({ data }) => data.order.length);
  own.useEvent("*", (event) => event.type === "order.paid" && event.data.order.toFixed());
  own.useFanfare().on("order.paid", ({ data }) => data.order.toFixed());
  useFanfare().on("note", ({ data }) => data.text.length);
  useEvent("*", ({ type }) => type.length);
  useGap(() => Promise.resolve());
  return <button onClick={() => retry()}>{name}</button>;
}

export const application = (
  <FanfareProvider url="/ws" getToken={() => "t"} user="ann" topics={["a"]} share><List /></FanfareProvider>
);
