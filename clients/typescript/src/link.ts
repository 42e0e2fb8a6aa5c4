// The connection of one client: opens the socket, keeps the cursor, detects a dead connection, and reconnects.
// It must not know the application's handlers: all output goes to the `Sink`.

import { address } from "./address.js";
import { pause, verdict, words, type Verdict } from "./closes.js";
import { within } from "./limit.js";
import { text } from "./text.js";
import { checked } from "./token.js";
import { cursorAfter } from "./cursor.js";
import type { Cursor, Frame, Options, Sink, SocketLike, Source, State, TokenReason } from "./types.js";

/** Time limit of the answer to a `ping` that checks whether the connection is alive, in milliseconds. */
const PROBE = 5_000;
/** A connection that was live for this time resets the reconnect pauses, in milliseconds. */
const STEADY = 10_000;
/** The reason of a connection that is closed because no frame arrives. */
const SILENT = words(4000, "");
/** `WebSocket.OPEN`. */
const OPEN = 1;

/** The state of a topic that the application is subscribed to. */
interface TopicState {
  /** The `event_id` of the `subscribe` that is not answered yet. */
  pendingId?: string | undefined;
  /** The position from which the hub delivers the topic, once the hub has acknowledged it. */
  position?: string | undefined;
  /** The application waits for the acknowledgement. */
  awaited?: boolean;
}

/**
 * Called before a token is used. If it returns a promise, the attempt waits for it, because another tab's socket serves
 * this tab meanwhile. The wait ends without effect if a newer attempt starts.
 */
export type Gate = (token: string) => Promise<void> | undefined;

const reasonOf = (cause: unknown) => text(cause instanceof Error ? cause.message : cause);
const online = () => globalThis.navigator?.onLine !== false;

export class Link implements Source {
  readonly cursor: Cursor;
  private readonly topics = new Map<string, TopicState>();
  /** The topics in the URL of the current socket. */
  private urlTopics: string[] = [];
  /** The position of the first `ack` of the connection. */
  private start = "";
  private token: string | undefined;
  private tokenAt = 0;
  /** The reason for the next call of `getToken`. */
  private tokenReason: TokenReason = "connect";
  /** The token replaces a rejected one, and the hub has neither accepted nor rejected it yet. */
  private fresh = false;
  private asking: AbortController | undefined;
  private socket: SocketLike | undefined;
  private live = false;
  private opened = false;
  /** Counts attempts. Callbacks of an older attempt compare it, and return without effect. */
  private generation = 0;
  private count = 0;
  private attempts = 0;
  private liveAt = 0;
  private lastFrame = 0;
  /** Milliseconds between the hub's pings. */
  private period = 30_000;
  private goaway: number | undefined;
  private timer: any;
  private watch: any;
  private reason = "";
  private listeners: [EventTarget, string, () => void][] = [];

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
    this.listeners.splice(0).forEach(([target, type, listener]) => target.removeEventListener(type, listener));
    this.drop("closed");
    this.setState("closed", "");
  }

  retry(token?: string): void {
    if (token) this.token = token;
    if (!this.opened) return this.open();
    this.attempts = 0;
    if (!this.live) void this.attempt();
    else if (token) this.auth(token);
  }

  /** Closes the socket, and starts a new attempt, which passes the gate again. */
  restart(): void { void this.attempt(); }

  subscribe(topic: string): void {
    const state = this.topics.get(topic) ?? {};
    this.topics.set(topic, state);
    if (this.live && state.position) return this.sink.subscribed({ topic, event_id: state.position });
    state.awaited = true;
    if (this.live && !state.pendingId) this.request(topic, state);
  }

  unsubscribe(topic: string): void {
    if (this.topics.delete(topic)) this.send({ type: "unsubscribe", topic });
  }

  private request(topic: string, state: TopicState): void {
    state.pendingId = `s${++this.count}`;
    this.send({ type: "subscribe", topic, event_id: state.pendingId });
  }

  private confirm(topic: string, state: TopicState, position: string): void {
    Object.assign(state, { position, pendingId: undefined, awaited: false });
    this.sink.subscribed({ topic, event_id: position });
  }

  private setState(name: State["name"], reason: string, more: Partial<State> = {}): void {
    this.reason = reason;
    this.sink.state({ name, reason, ...more });
  }

  private waitState(): State["name"] {
    return !online() ? "offline" : this.cursor.connectionId ? "resuming" : "connecting";
  }

  /** Closes the current socket, if any, and opens a new one. */
  private async attempt(): Promise<void> {
    this.drop();
    const generation = this.generation;
    this.setState(this.waitState(), this.reason);
    // A handler may have closed the client.
    if (generation !== this.generation) return;
    try {
      await this.getToken();
    } catch (cause) {
      if (generation === this.generation) this.tokenFailed(cause);
      return;
    }
    if (generation !== this.generation) return;
    const gate = this.gate?.(this.token!);
    if (gate) {
      await gate;
      if (generation !== this.generation) return;
      // The token may have expired during the wait at the gate.
      if (this.options.getToken && Date.now() - this.tokenAt > STEADY) return this.reattempt();
    }
    try {
      const Socket = this.options.WebSocket ?? globalThis.WebSocket;
      if (!Socket) {
        throw new Error("no WebSocket: set the option WebSocket to that of the package \"ws\"");
      }
      const protocols = this.options.tokenInUrl ? [] : ["fanfare", `bearer.${this.token}`];
      const socket: SocketLike = new Socket(this.address(), protocols);
      this.socket = socket;
      socket.onmessage = ({ data }) => { if (generation === this.generation) this.receive(data); };
      // Deno reports a failed connect with the code 0.
      socket.onclose = ({ code, reason }) => { if (generation === this.generation) this.closed(code || 1006, reason); };
      // Node 22 fires no `close` after a failed connect. Other runtimes do: the timer lets that `close` come first,
      // because it has the code.
      socket.onerror = () => void setTimeout(() => { if (generation === this.generation) this.closed(1006, ""); }, 0);
    } catch (cause) {
      // The constructor fails only for invalid options, so another attempt would fail in the same way.
      return this.refuse(reasonOf(cause));
    }
    this.expect(this.options.connectTimeout ?? 10_000, "the hub does not respond");
  }

  private reattempt(): void {
    this.token = undefined;
    void this.attempt();
  }

  /** Sets `token`, by calling `getToken` if there is none. */
  private async getToken(): Promise<void> {
    const { getToken } = this.options;
    this.fresh = false;
    if (!this.token && !getToken) throw new Error("no token: set the option `token` or `getToken`");
    if (this.token || !getToken) {
      this.token = checked(this.token, "the option `token`");
      return;
    }
    const reason = this.tokenReason;
    this.token = await this.askToken(reason);
    this.fresh = reason === "refused";
  }

  private async askToken(reason: TokenReason): Promise<string> {
    const { getToken, tokenTimeout = 30_000 } = this.options;
    const asking = this.asking = new AbortController();
    const token = await within(tokenTimeout, "getToken", asking, (signal) => getToken!(reason, signal));
    this.tokenAt = Date.now();
    return checked(token, "the result of getToken");
  }

  private tokenFailed(cause: unknown): void {
    const reason = reasonOf(cause);
    // A fixed token stays invalid.
    if (this.token || !this.options.getToken) return this.refuse(reason);
    const generation = this.generation;
    this.sink.problem({ error: "token", message: `getToken failed: ${reason}`, cause });
    // A handler may have closed the client.
    if (generation === this.generation) this.pause("later", `no token: ${reason}`);
  }

  private address(): string {
    const { tokenInUrl, url } = this.options;
    this.urlTopics = [...this.topics.keys()];
    return address(url, {
      token: tokenInUrl ? this.token : undefined,
      connection_id: this.cursor.connectionId,
      last_event_id: this.cursor.lastEventId,
      topics: this.urlTopics.join(),
    });
  }

  private receive(data: string): void {
    let frame: Frame;
    try {
      frame = JSON.parse(data);
      if (typeof frame.type !== "string") throw new TypeError("a message needs a type");
    } catch (cause) {
      const message = `not a message of a fanfare hub: ${reasonOf(cause)}`;
      return this.sink.problem({ error: "malformed", message, cause });
    }
    this.lastFrame = Date.now();
    if (this.live) this.expectPing();
    const before = this.cursor.lastEventId;
    // The position of the first `ack` is after the gap that may follow it. With that position as the cursor, a client
    // that is disconnected between the two would not receive the gap again.
    const cursor = cursorAfter(frame);
    if (cursor && (this.live || !before || frame.type !== "ack")) this.cursor.lastEventId = cursor;
    switch (frame.type) {
      case "ack": return this.live ? this.acknowledged(frame) : this.connected(frame);
      case "ping": return this.send({ type: "pong", event_id: frame.event_id });
      case "pong": return this.ponged();
      case "error": return this.rejected(frame);
      case "auth_expiring": return void this.renew();
      case "goaway": return this.leave(frame);
      default: return this.sink.frame(frame, before);
    }
  }

  /** Handles the first `ack` of a connection. */
  private connected(frame: Frame): void {
    interface Ack { connection_id?: string; heartbeat?: number; resumed?: boolean }
    const { connection_id, heartbeat, resumed } = frame as Ack;
    if (connection_id) this.cursor.connectionId = connection_id;
    this.period = (heartbeat ?? 30) * 1_000;
    this.live = true;
    this.fresh = false;
    this.tokenReason = "connect";
    this.start = frame.event_id;
    this.liveAt = Date.now();
    this.goaway = undefined;
    this.expectPing();
    this.setState("live", "", { resumed: resumed === true });
    // Topics that were subscribed or unsubscribed while the socket was opening.
    for (const [topic, state] of this.topics) {
      if (this.urlTopics.includes(topic)) state.pendingId = undefined;
      else this.request(topic, state);
    }
    for (const topic of this.urlTopics) if (!this.topics.has(topic)) this.send({ type: "unsubscribe", topic });
    // The hub sends an `error` for each topic of the URL that it rejects, and nothing for the others. All these errors
    // come before the `pong`, so the `pong` acknowledges the rest.
    if (this.urlTopics.some((topic) => this.topics.get(topic)?.awaited)) this.send({ type: "ping" });
  }

  /** Handles the `ack` of a `subscribe`. It counts only if it answers the newest `subscribe` of the topic. */
  private acknowledged({ topic, ack_event_id, event_id }: Frame): void {
    const state = this.topics.get(topic as string);
    if (state?.pendingId && state.pendingId === ack_event_id) this.confirm(topic as string, state, event_id);
  }

  private ponged(): void {
    for (const topic of this.urlTopics) {
      const state = this.topics.get(topic);
      if (state?.awaited && !state.pendingId) this.confirm(topic, state, this.start);
    }
  }

  private rejected(frame: Frame): void {
    interface Rejection { error?: string; details?: { message?: string }; topic?: string }
    const { error = "error", details, topic } = frame as Rejection;
    const state = this.topics.get(topic!);
    if (state) Object.assign(state, { position: undefined, pendingId: undefined, awaited: false });
    this.sink.problem({ error, message: details?.message ?? "", ...(topic !== undefined && { topic }) });
  }

  /** The client does not reconnect by itself. */
  get refused(): boolean { return this.opened && !this.live && !this.socket && !this.timer; }

  private expectPing(): void { this.expect(this.period * 1.5 + PROBE, SILENT); }

  /** Reconnects if no frame arrives within `ms` milliseconds. */
  private expect(ms: number, reason: string): void {
    clearTimeout(this.watch);
    this.watch = setTimeout(() => this.closed(4000, reason), ms);
  }

  /** Sends a `ping` to check the connection, or starts the next attempt immediately if there is no connection. */
  private check(): void {
    if (!this.live) {
      if (this.timer) void this.attempt();
    } else if (Date.now() - this.lastFrame >= PROBE) {
      this.send({ type: "ping" });
      this.expect(PROBE, SILENT);
    }
  }

  private async renew(): Promise<void> {
    if (!this.options.getToken) return;
    const generation = this.generation;
    try {
      const token = await this.askToken("expiring");
      if (generation !== this.generation) return;
      this.token = token;
      this.auth(token);
    } catch (cause) {
      if (generation !== this.generation) return;
      // The hub closes the connection when the token expires. The next attempt then calls `getToken` again.
      this.token = undefined;
      this.sink.problem({ error: "token", message: `getToken failed: ${reasonOf(cause)}`, cause });
    }
  }

  /** Sends a newer token to the hub, or opens another socket if the token names another user. */
  private auth(token: string): void {
    if (this.gate?.(token)) this.restart();
    else this.send({ type: "auth", token });
  }

  /**
   * Handles `goaway`: events are delivered until the hub closes the socket, or until `reconnect_after_ms` have passed.
   * The client then reconnects.
   */
  private leave(frame: Frame): void {
    this.goaway = Number(frame.reconnect_after_ms) || 0;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.goaway = undefined;
      this.closed(1012, String(frame.reason ?? ""));
    }, this.goaway);
  }

  private closed(code: number, reason: string): void {
    if (this.live && Date.now() - this.liveAt >= STEADY) this.attempts = 0;
    let reaction = verdict(code, reason);
    const message = words(code, reason);
    if (reaction === "new token") {
      if (!this.options.getToken) return this.refuse(message, code);
      this.token = undefined;
      this.tokenReason = "refused";
      // A second rejection in a row is final, unless it depends on the time.
      if (this.fresh && !/^token_(expired|not_yet_valid)/.test(reason)) return this.refuse(message, code);
      if (this.fresh) reaction = "later";
    }
    if (reaction === "never") return this.refuse(message, code);
    this.pause(reaction, message, code);
  }

  private refuse(reason: string, code?: number): void {
    this.drop();
    this.setState("refused", reason, code === undefined ? {} : { code });
  }

  private pause(reaction: Verdict, reason: string, code?: number): void {
    const after = this.goaway;
    this.drop();
    this.goaway = undefined;
    const longest = this.options.maxPause ?? 30_000;
    const ms = (after ?? 0) + pause(reaction, this.attempts++, longest);
    // Without a network the pause is long, because the event `online` ends it.
    this.timer = setTimeout(() => void this.attempt(), online() ? ms : Math.max(ms, longest));
    const retryAt = Date.now() + ms;
    this.setState(this.waitState(), reason, { ...(code === undefined ? {} : { code }), retryAt });
  }

  /** Closes the socket, cancels the timers, and makes callbacks of earlier attempts ineffective. */
  private drop(reason = ""): void {
    this.generation++;
    clearTimeout(this.timer);
    clearTimeout(this.watch);
    this.timer = this.watch = undefined;
    this.asking?.abort();
    this.live = false;
    const socket = this.socket;
    this.socket = undefined;
    if (!socket) return;
    // `onerror` must stay: with the package `ws`, the error of a socket without it would end the process.
    socket.onmessage = socket.onclose = null;
    try {
      socket.close(1000, reason);
    } catch { /* The socket was never open, or is closed already. */ }
  }

  private send(message: object): void {
    if (this.live && this.socket?.readyState === OPEN) this.socket.send(JSON.stringify(message));
  }

  private listen(): void {
    const add = (target: EventTarget | undefined, type: string, listener: () => void) => {
      if (!target?.addEventListener) return;
      target.addEventListener(type, listener);
      this.listeners.push([target, type, listener]);
    };
    const { window, document } = globalThis as { window?: EventTarget; document?: Document };
    const offline = () => {
      if (this.live || this.timer || this.socket) this.pause("now", "the device has no network");
    };
    add(window, "online", () => this.check());
    add(window, "offline", offline);
    add(window, "pageshow", () => this.check());
    add(document, "resume", () => this.check());
    add(document, "visibilitychange", () => { if (document?.visibilityState === "visible") this.check(); });
  }
}
