// One client's socket: opens it, keeps its place, notices when it dies, and comes back. Knows nothing of who listens to events.

import { address } from "./address.js";
import { pause, verdict, words, type Verdict } from "./closes.js";
import { within } from "./limit.js";
import { text } from "./text.js";
import { checked } from "./token.js";
import { placeOf } from "./place.js";
import type { Cursor, Frame, Options, Sink, SocketLike, Source, State, TokenReason } from "./types.js";

/** How long an answer may take, in milliseconds, where one is asked for because something may be dead. */
const PROBE = 5_000;
/** A connection that lasted so long begins anew with its pauses, in milliseconds. */
const STEADY = 10_000;
/** `WebSocket.OPEN`. */
const OPEN = 1;

/** What is known of a topic that is wanted. */
interface Hold {
  /** The `event_id` of the `subscribe` that is not answered yet. */
  asked?: string | undefined;
  /** The place from which the hub delivers it, once it has confirmed it. */
  from?: string | undefined;
  /** A confirmation is waited for. */
  awaited?: boolean;
}

/**
 * Asked before a token is used. What it returns, if anything, is waited for: somebody else's socket serves meanwhile.
 * The attempt is given up for good where another one begins.
 */
export type Gate = (token: string) => Promise<void> | undefined;

const reasonOf = (cause: unknown) => text(cause instanceof Error ? cause.message : cause);
const online = () => globalThis.navigator?.onLine !== false;

export class Link implements Source {
  readonly cursor: Cursor;
  private readonly topics = new Map<string, Hold>();
  /** The topics that stood in the URL. */
  private asked: string[] = [];
  /** The place of the connection's first frame. */
  private began = "";
  private token: string | undefined;
  private tokenAt = 0;
  /** What the next token is asked for. */
  private want: TokenReason = "connect";
  /** The token replaces one that was rejected, and nothing is known of it yet. */
  private fresh = false;
  private asking: AbortController | undefined;
  private socket: SocketLike | undefined;
  private live = false;
  private opened = false;
  /** Counts attempts, so that what an older one still says is passed over. */
  private turn = 0;
  private count = 0;
  private attempts = 0;
  private since = 0;
  private heard = 0;
  /** Milliseconds between the hub's pings. */
  private period = 30_000;
  private goaway: number | undefined;
  private timer: any;
  private watch: any;
  private reason = "";
  private ears: [EventTarget, string, () => void][] = [];

  constructor(private readonly options: Options, private readonly sink: Sink, private readonly gate?: Gate) {
    this.cursor = { ...options.cursor };
    for (const topic of options.topics ?? []) this.topics.set(topic, {});
    this.token = options.token;
  }

  open(): void {
    if (this.opened) return;
    this.opened = true;
    this.listen();
    void this.attempt();
  }

  close(): void {
    this.opened = false;
    this.ears.splice(0).forEach(([target, type, ear]) => target.removeEventListener(type, ear));
    this.drop("closed");
    this.say("closed", "");
  }

  retry(token?: string): void {
    if (token) this.token = token;
    if (!this.opened) return this.open();
    this.attempts = 0;
    if (!this.live) void this.attempt();
    else if (token) this.show(token);
  }

  /** Leaves the socket, and begins anew at the gate. */
  restart(): void { void this.attempt(); }

  subscribe(topic: string): void {
    const hold = this.topics.get(topic) ?? {};
    this.topics.set(topic, hold);
    if (this.live && hold.from) return this.sink.subscribed({ topic, event_id: hold.from });
    hold.awaited = true;
    if (this.live && !hold.asked) this.ask(topic, hold);
  }

  unsubscribe(topic: string): void {
    if (this.topics.delete(topic)) this.send({ type: "unsubscribe", topic });
  }

  private ask(topic: string, hold: Hold): void {
    hold.asked = `s${++this.count}`;
    this.send({ type: "subscribe", topic, event_id: hold.asked });
  }

  private confirm(topic: string, hold: Hold, from: string): void {
    Object.assign(hold, { from, asked: undefined, awaited: false });
    this.sink.subscribed({ topic, event_id: from });
  }

  private say(name: State["name"], reason: string, more: Partial<State> = {}): void {
    this.reason = reason;
    this.sink.state({ name, reason, ...more });
  }

  private waiting(): State["name"] {
    return !online() ? "offline" : this.cursor.connectionId ? "resuming" : "connecting";
  }

  /** Opens a socket, whatever there was before. */
  private async attempt(): Promise<void> {
    this.drop();
    const turn = this.turn;
    this.say(this.waiting(), this.reason);
    // A handler may have closed it.
    if (turn !== this.turn) return;
    try {
      await this.getToken();
    } catch (cause) {
      if (turn === this.turn) this.tokenFailed(cause);
      return;
    }
    if (turn !== this.turn) return;
    const gate = this.gate?.(this.token!);
    if (gate) {
      await gate;
      if (turn !== this.turn) return;
      // It may have ended while another tab's socket served.
      if (this.options.getToken && Date.now() - this.tokenAt > STEADY) return this.again();
    }
    try {
      const Socket = this.options.WebSocket ?? globalThis.WebSocket;
      if (!Socket) throw new Error("there is no WebSocket here: pass that of the package \"ws\" as the option WebSocket");
      const protocols = this.options.tokenInUrl ? [] : ["fanfare", `bearer.${this.token}`];
      const socket: SocketLike = new Socket(this.address(), protocols);
      this.socket = socket;
      socket.onmessage = ({ data }) => { if (turn === this.turn) this.receive(data); };
      // Deno gives a failed connect the code 0.
      socket.onclose = ({ code, reason }) => { if (turn === this.turn) this.closed(code || 1006, reason); };
      // Node 22's socket fires no `close` after a failed connect. Where one follows, it comes first and has the better code.
      socket.onerror = () => void setTimeout(() => { if (turn === this.turn) this.closed(1006, ""); }, 0);
    } catch (cause) {
      // What can't even be tried is not tried again.
      return this.refuse(reasonOf(cause));
    }
    this.expect(this.options.connectTimeout ?? 10_000, "the hub does not answer");
  }

  /** Forgets the token, and begins anew. */
  private again(): void {
    this.token = undefined;
    void this.attempt();
  }

  /** Sees to it that there is a token. */
  private async getToken(): Promise<void> {
    const { getToken } = this.options;
    this.fresh = false;
    if (!this.token && !getToken) throw new Error("there is no token: give the option token or getToken");
    if (this.token || !getToken) {
      this.token = checked(this.token, "the option `token` holds");
      return;
    }
    const reason = this.want;
    this.token = await this.askFor(reason);
    this.fresh = reason === "refused";
  }

  private async askFor(reason: TokenReason): Promise<string> {
    const { getToken, tokenTimeout = 30_000 } = this.options;
    const asking = this.asking = new AbortController();
    const token = await within(tokenTimeout, "getToken", asking, (signal) => getToken!(reason, signal));
    this.tokenAt = Date.now();
    return checked(token, "getToken returned");
  }

  private tokenFailed(cause: unknown): void {
    const reason = reasonOf(cause);
    // A token that is fixed does not get better.
    if (this.token || !this.options.getToken) return this.refuse(reason);
    const turn = this.turn;
    this.sink.problem({ error: "token", message: `getToken failed: ${reason}`, cause });
    // A handler may have closed it.
    if (turn === this.turn) this.pause("later", `there is no token: ${reason}`);
  }

  private address(): string {
    const { tokenInUrl, url } = this.options;
    this.asked = [...this.topics.keys()];
    return address(url, {
      token: tokenInUrl ? this.token : undefined,
      connection_id: this.cursor.connectionId,
      last_event_id: this.cursor.lastEventId,
      topics: this.asked.join(),
    });
  }

  private receive(data: string): void {
    let frame: Frame;
    try {
      frame = JSON.parse(data);
      if (typeof frame.type !== "string") throw new TypeError("a message needs a type");
    } catch (cause) {
      return this.sink.problem({ error: "malformed", message: `unexpected message, not a fanfare hub's: ${reasonOf(cause)}`, cause });
    }
    this.heard = Date.now();
    if (this.live) this.expectPing();
    const before = this.cursor.lastEventId;
    // The first `ack` stands behind the gap that it announces: a cursor that is past it would lose the gap.
    const place = placeOf(frame);
    if (place && (this.live || !before || frame.type !== "ack")) this.cursor.lastEventId = place;
    switch (frame.type) {
      case "ack": return this.live ? this.answered(frame) : this.acknowledged(frame);
      case "ping": return this.send({ type: "pong", event_id: frame.event_id });
      case "pong": return this.ponged();
      case "error": return this.failed(frame);
      case "auth_expiring": return void this.renew();
      case "goaway": return this.leave(frame);
      default: return this.sink.frame(frame, before);
    }
  }

  private acknowledged(frame: Frame): void {
    const { connection_id, heartbeat, resumed } = frame as { connection_id?: string; heartbeat?: number; resumed?: boolean };
    if (connection_id) this.cursor.connectionId = connection_id;
    this.period = (heartbeat ?? 30) * 1_000;
    this.live = true;
    this.fresh = false;
    this.want = "connect";
    this.began = frame.event_id;
    this.since = Date.now();
    this.goaway = undefined;
    this.expectPing();
    this.say("live", "", { resumed: resumed === true });
    // What was wanted, and no longer wanted, while the socket opened.
    for (const [topic, hold] of this.topics) {
      if (this.asked.includes(topic)) hold.asked = undefined;
      else this.ask(topic, hold);
    }
    for (const topic of this.asked) if (!this.topics.has(topic)) this.send({ type: "unsubscribe", topic });
    // The hub answers topics of the URL only where it rejects them, ahead of the answer to this.
    if (this.asked.some((topic) => this.topics.get(topic)?.awaited)) this.send({ type: "ping" });
  }

  /** The answer to a `subscribe`, if it is the last one of its topic. */
  private answered({ topic, ack_event_id, event_id }: Frame): void {
    const hold = this.topics.get(topic as string);
    if (hold?.asked && hold.asked === ack_event_id) this.confirm(topic as string, hold, event_id);
  }

  private ponged(): void {
    for (const topic of this.asked) {
      const hold = this.topics.get(topic);
      if (hold?.awaited && !hold.asked) this.confirm(topic, hold, this.began);
    }
  }

  private failed(frame: Frame): void {
    const { error = "error", details, topic } = frame as { error?: string; details?: { message?: string }; topic?: string };
    const hold = this.topics.get(topic!);
    if (hold) Object.assign(hold, { from: undefined, asked: undefined, awaited: false });
    this.sink.problem({ error, message: details?.message ?? "", ...(topic !== undefined && { topic }) });
  }

  /** Nothing goes on by itself. */
  get refused(): boolean { return this.opened && !this.live && !this.socket && !this.timer; }

  private expectPing(): void { this.expect(this.period * 1.5 + PROBE, "the connection went silent"); }

  /** Comes back if nothing is heard for so long. */
  private expect(ms: number, reason: string): void {
    clearTimeout(this.watch);
    this.watch = setTimeout(() => this.closed(4000, reason), ms);
  }

  /** Asks for a sign of life, or tries at once if there is no socket. */
  private check(): void {
    if (!this.live) {
      if (this.timer) void this.attempt();
    } else if (Date.now() - this.heard >= PROBE) {
      this.send({ type: "ping" });
      this.expect(PROBE, "the connection went silent");
    }
  }

  private async renew(): Promise<void> {
    if (!this.options.getToken) return;
    const turn = this.turn;
    try {
      const token = await this.askFor("expiring");
      if (turn !== this.turn) return;
      this.token = token;
      this.show(token);
    } catch (cause) {
      if (turn !== this.turn) return;
      // The hub will close, and then it is asked for again.
      this.token = undefined;
      this.sink.problem({ error: "token", message: `getToken failed: ${reasonOf(cause)}`, cause });
    }
  }

  /** Goes on with a newer token, or with another socket if that is another user's. */
  private show(token: string): void {
    if (this.gate?.(token)) this.restart();
    else this.send({ type: "auth", token });
  }

  /** The hub ends: it closes, or is left, and found again when it said. */
  private leave(frame: Frame): void {
    this.goaway = Number(frame.reconnect_after_ms) || 0;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.goaway = undefined;
      this.closed(1012, String(frame.reason ?? ""));
    }, this.goaway);
  }

  private closed(code: number, reason: string): void {
    if (this.live && Date.now() - this.since >= STEADY) this.attempts = 0;
    let what = verdict(code, reason);
    const why = words(code, reason);
    if (what === "new token") {
      if (!this.options.getToken) return this.refuse(why, code);
      this.token = undefined;
      this.want = "refused";
      // One that replaced a rejected one, and is rejected too, is final, unless time changes that.
      if (this.fresh && !/^token_(expired|not_yet_valid)/.test(reason)) return this.refuse(why, code);
      if (this.fresh) what = "later";
    }
    if (what === "never") return this.refuse(why, code);
    this.pause(what, why, code);
  }

  private refuse(reason: string, code?: number): void {
    this.drop();
    this.say("refused", reason, code === undefined ? {} : { code });
  }

  private pause(what: Verdict, reason: string, code?: number): void {
    const after = this.goaway;
    this.drop();
    this.goaway = undefined;
    const longest = this.options.maxPause ?? 30_000;
    const ms = (after ?? 0) + pause(what, this.attempts++, longest);
    // Being told that there is a network again is the sooner end of the wait.
    this.timer = setTimeout(() => void this.attempt(), online() ? ms : Math.max(ms, longest));
    this.say(this.waiting(), reason, { ...(code === undefined ? {} : { code }), retryAt: Date.now() + ms });
  }

  /** Leaves the socket, and what waits, as they are. */
  private drop(reason = ""): void {
    this.turn++;
    clearTimeout(this.timer);
    clearTimeout(this.watch);
    this.timer = this.watch = undefined;
    this.asking?.abort();
    this.live = false;
    const socket = this.socket;
    this.socket = undefined;
    if (!socket) return;
    // `onerror` stays: the package `ws` ends the process if a socket that is closed early fails without one.
    socket.onmessage = socket.onclose = null;
    try {
      socket.close(1000, reason);
    } catch { /* It was never open, or is gone. */ }
  }

  private send(message: object): void {
    if (this.live && this.socket?.readyState === OPEN) this.socket.send(JSON.stringify(message));
  }

  private listen(): void {
    const hear = (target: EventTarget | undefined, type: string, ear: () => void) => {
      if (!target?.addEventListener) return;
      target.addEventListener(type, ear);
      this.ears.push([target, type, ear]);
    };
    const { window, document } = globalThis as { window?: EventTarget; document?: Document };
    hear(window, "online", () => this.check());
    hear(window, "offline", () => { if (this.live || this.timer || this.socket) this.pause("now", "this device has no network"); });
    hear(window, "pageshow", () => this.check());
    hear(document, "resume", () => this.check());
    hear(document, "visibilitychange", () => { if (document?.visibilityState === "visible") this.check(); });
  }
}
