// Builds the URL of a connection as text, because React Native's `URL` has no setters.

/** Query parameters that the client sets itself. */
const OWN = ["token", "connection_id", "last_event_id", "topics"];

/**
 * Returns `url` as a WebSocket URL with `query` appended.
 * A path such as `/ws` is resolved against the address of the page.
 */
export function address(url: string, query: Record<string, string | undefined>): string {
  const absolute = /^\w+:\/\//.test(url) ? url : new URL(url, globalThis.location?.href).href;
  const [base, given = ""] = absolute.replace(/^http/, "ws").split("#")[0]!.split("?");
  const kept = given.split("&").filter((field) => field && !OWN.includes(field.split("=")[0]!));
  const added = Object.entries(query).flatMap(([name, value]) => value ? [`${name}=${encodeURIComponent(value)}`] : []);
  return [base, [...kept, ...added].join("&")].filter(Boolean).join("?");
}
