// Names of topics, by the rule of docs/protocol.md.

import type { Problem } from "./types.js";

/** Why the hub would reject a topic's name. A comma would even make two topics of it in the URL. */
export function invalid(topic: unknown): Problem | undefined {
  const rule = typeof topic !== "string" ? "is no text"
    : /[\s,*\p{Cc}\p{Cs}]/u.test(topic) ? "must not contain a comma, an asterisk, white space or control characters"
    : !topic ? "is empty"
    // Each byte beyond ASCII is three characters in a URL.
    : encodeURIComponent(topic).replace(/%../g, "x").length > 128 ? "is longer than 128 bytes" : "";
  return rule ? { error: "invalid_topic", message: `the topic ${JSON.stringify(topic)} ${rule}`, topic: String(topic) } : undefined;
}
