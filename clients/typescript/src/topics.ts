// Checks the names of topics, by the rules of docs/protocol.md.

import type { Problem } from "./types.js";

/**
 * Returns why the hub would reject a topic's name, or undefined if the name is valid.
 * An invalid name must not be sent: a name with a comma would be two topics in the URL.
 */
export function invalid(topic: unknown): Problem | undefined {
  const rule = typeof topic !== "string" ? "is not a string"
    : /[\s,*\p{Cc}\p{Cs}]/u.test(topic) ? "must not contain a comma, an asterisk, white space or control characters"
    : !topic ? "is empty"
    // Each byte beyond ASCII is encoded as three characters (%XX).
    : encodeURIComponent(topic).replace(/%../g, "x").length > 128 ? "is longer than 128 bytes" : "";
  if (!rule) return undefined;
  return { error: "invalid_topic", message: `the topic ${JSON.stringify(topic)} ${rule}`, topic: String(topic) };
}
