// What a close asks of a client: docs/protocol.md has the same table.

/** What to do after a close. */
export type Verdict = "never" | "now" | "later" | "lost" | "new token";

const CODES: Record<number, Verdict> = {
  1000: "never", 1001: "later", 1002: "never", 1003: "never", 1007: "never", 1008: "new token", 1009: "never",
  1011: "later", 1012: "now", 1013: "later", 4000: "now", 4001: "never", 4002: "later", 4003: "never",
};

/** Reasons of 1008 for which a new token of the same user does not help. */
const FINAL = /^(forbidden|origin_not_allowed)\b/;

export function verdict(code: number, reason: string): Verdict {
  return code === 1008 && FINAL.test(reason) ? "never" : CODES[code] ?? "lost";
}

/** The least pause and its spread at the first attempt, in milliseconds. The spread doubles with each further one. */
const PAUSE: Record<Verdict, [number, number]> = {
  never: [0, 0], "new token": [0, 250], now: [0, 250], lost: [0, 1_000], later: [1_000, 4_000],
};

/** How long to wait before the next attempt, in milliseconds: full jitter, so that those who broke off together come back apart. */
export function pause(verdict: Verdict, attempts: number, longest: number, random = Math.random): number {
  const [least, spread] = PAUSE[verdict];
  return Math.min(longest, least + random() * Math.min(longest, spread * 2 ** Math.min(attempts, 20)));
}

const WORDS: Record<number, string> = {
  1000: "the connection was closed", 1001: "the hub shuts down", 1006: "the connection broke off", 1011: "the hub failed",
  1012: "the hub restarts", 4000: "the connection went silent", 4001: "another socket took this connection over",
  4003: "disconnected by an operator",
};

/** Why a connection ended, in words. */
export const words = (code: number, reason: string): string => reason || WORDS[code] || `closed with code ${code}`;
