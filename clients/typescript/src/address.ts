// The URL of a connection, made of text alone: React Native's `URL` has no setters.

/** What the client itself puts into the query. */
const OWN = ["token", "connection_id", "last_event_id", "topics"];

/** A WebSocket URL with `query` in it. A path such as `/ws` is resolved against the page's address. */
export function address(url: string, query: Record<string, string | undefined>): string {
  const absolute = /^\w+:\/\//.test(url) ? url : new URL(url, globalThis.location?.href).href;
  const [base, given = ""] = absolute.replace(/^http/, "ws").split("#")[0]!.split("?");
  const kept = given.split("&").filter((field) => field && !OWN.includes(field.split("=")[0]!));
  const added = Object.entries(query).flatMap(([name, value]) => value ? [`${name}=${encodeURIComponent(value)}`] : []);
  return [base, [...kept, ...added].join("&")].filter(Boolean).join("?");
}
