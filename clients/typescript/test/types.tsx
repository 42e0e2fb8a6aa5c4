// What applications write, for the compiler alone: each line marked as an error has to be one.

import { connect, type EventMap } from "fanfare-client";
import { FanfareProvider, useConnection, useEvent, useGap, useTopic } from "fanfare-client/react";

declare module "fanfare-client" {
  interface EventMap { note: { text: string } }
}

type Own = EventMap & { "order.paid": { order: number } };

const client = connect<Own>({ url: "/ws", getToken: async () => "t", topics: ["a"] });
client.on("task_status_update", ({ data }) => data.task_id.length);
client.on("note", ({ data }) => data.text.length);
client.on("order.paid", ({ data }) => data.order.toFixed());
client.on("anything", ({ data }) => data.whatever);
// @ts-expect-error: it is a number
client.on("order.paid", ({ data }) => data.order.length);
// @ts-expect-error: a hub has an address
connect({ token: "t" });
client.onGap(async ({ missed }) => missed?.toFixed());
client.onState(({ name, retryAt }) => name === "live" && retryAt);
// @ts-expect-error: there is no such state
client.onState(({ name }) => name === "connected");

export async function iterate() {
  for await (const { data } of client.events("order.paid")) data.order.toFixed();
  for await (const event of client) event.event_id.length;
}

function List() {
  const { name, retry } = useConnection();
  useTopic(name === "live" ? "a" : null);
  useEvent("task_status_update", ({ data }) => data.task_id.length);
  useEvent("note", ({ data }) => data.text.length);
  useEvent<Own>("order.paid", ({ data }) => data);
  useEvent("*", ({ type }) => type.length);
  useGap(() => Promise.resolve());
  return <button onClick={() => retry()}>{name}</button>;
}

export const application = <FanfareProvider url="/ws" getToken={() => "t"} share><List /></FanfareProvider>;
