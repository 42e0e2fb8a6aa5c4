// How a client reacts to a close code. docs/protocol.md has the same table.

/** How to react to a close. `lost` is an unknown code, such as 1006 for a connection that was lost. */
export type Verdict = "never" | "now" | "later" | "lost" | "new token";

const CODES: Record<number, Verdict> = {
  1000: "never", 1001: "later", 1002: "never", 1003: "never", 1007: "never", 1008: "new token", 1009: "never",
  1011: "later", 1012: "now", 1013: "later", 4000: "now", 4001: "never", 4002: "later", 4003: "never",
};

/** Reasons of 1008 that a new token of the same user does not resolve. */
const FINAL = /^(forbidden|origin_not_allowed)\b/;

/** Returns the reaction to a close with this code and reason. */
export function verdict(code: number, reason: string): Verdict {
  return code === 1008 && FINAL.test(reason) ? "never" : CODES[code] ?? "lost";
}

/** The minimum pause and its spread at the first attempt, in milliseconds. The spread doubles with each attempt. */
const PAUSE: Record<Verdict, [number, number]> = {
  never: [0, 0], "new token": [0, 250], now: [0, 250], lost: [0, 1_000], later: [1_000, 4_000],
};

/**
 * Returns the pause before the next attempt, in milliseconds.
 * The spread is fully jittered, so that clients that were disconnected together do not reconnect together.
 */
export function pause(verdict: Verdict, attempts: number, longest: number, random = Math.random): number {
  const [least, spread] = PAUSE[verdict];
  return Math.min(longest, least + random() * Math.min(longest, spread * 2 ** Math.min(attempts, 20)));
}

const WORDS: Record<number, string> = {
  1000: "the connection was closed", 1001: "the hub is shutting down", 1006: "the connection was lost",
  1011: "the hub failed", 1012: "the hub is restarting", 4000: "heartbeat timeout",
  4001: "a newer socket took over this connection", 4003: "disconnected by an operator",
};

/** Returns why a connection was closed, as a text for people. */
export const words = (code: number, reason: string): string => reason || WORDS[code] || `closed with code ${code}`;
