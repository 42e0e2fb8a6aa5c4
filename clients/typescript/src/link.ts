// One client's socket: opens it, keeps its place, notices when it dies, and comes back. Knows nothing of who listens to events.

import { pause, verdict, words, type Verdict } from "./closes.js";
import type { Cursor, Frame, Options, Sink, SocketLike, Source, State, TokenReason } from "./types.js";

/** How long an answer may take, in milliseconds, where one is asked for because something may be dead. */
const PROBE = 5_000;
/** A connection that lasted so long begins anew with its pauses, in milliseconds. */
const STEADY = 10_000;
/** `WebSocket.OPEN`. */
const OPEN = 1;

const online = () => globalThis.navigator?.onLine !== false;

export class Link implements Source {
  readonly cursor: Cursor;
  private readonly topics: Set<string>;
  /** The topics that stood in the URL. */
  private asked: string[] = [];
  private token: string | undefined;
  /** The token was given for this attempt, and nothing is known of it yet. */
  private fresh = false;
  private socket: SocketLike | undefined;
  private live = false;
  private opened = false;
  /** Counts attempts, so that what an older one still says is passed over. */
  private turn = 0;
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

  constructor(private readonly options: Options, private readonly sink: Sink) {
    this.cursor = { ...options.cursor };
    this.topics = new Set(options.topics);
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
  }

  subscribe(topic: string): void {
    this.topics.add(topic);
    this.send({ type: "subscribe", topic });
  }

  unsubscribe(topic: string): void {
    this.topics.delete(topic);
    this.send({ type: "unsubscribe", topic });
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
    let token: string;
    try {
      token = await this.getToken("connect");
    } catch (cause) {
      if (turn !== this.turn) return;
      this.sink.problem({ error: "token", message: `getToken failed: ${cause}`, cause });
      return this.pause("later", `there is no token: ${cause}`);
    }
    if (turn !== this.turn) return;
    try {
      const Socket = this.options.WebSocket ?? globalThis.WebSocket;
      if (!Socket) throw new Error("there is no WebSocket here: pass that of the package \"ws\" as the option WebSocket");
      const protocols = this.options.tokenInUrl ? [] : ["fanfare", `bearer.${token}`];
      const socket: SocketLike = new Socket(this.address(token), protocols);
      this.socket = socket;
      socket.onmessage = ({ data }) => { if (turn === this.turn) this.receive(data); };
      socket.onclose = ({ code, reason }) => { if (turn === this.turn) this.closed(code, reason); };
      // Node 22's socket fires no `close` after a failed connect. Where one follows, it comes first and has the better code.
      socket.onerror = () => void setTimeout(() => { if (turn === this.turn) this.closed(1006, ""); }, 0);
    } catch (cause) {
      // What can't even be tried is not tried again.
      return this.refuse(String(cause instanceof Error ? cause.message : cause));
    }
    this.expect(this.options.connectTimeout ?? 10_000, "the hub does not answer");
  }

  private async getToken(reason: TokenReason): Promise<string> {
    const { getToken } = this.options;
    this.fresh = false;
    if (!this.token && getToken) {
      this.token = await getToken(reason);
      this.fresh = true;
    }
    if (!this.token) throw new Error("neither token nor getToken gave one");
    return this.token;
  }

  private address(token: string): string {
    const url = new URL(this.options.url, globalThis.location?.href);
    url.protocol = url.protocol.replace("http", "ws");
    const query = url.searchParams;
    if (this.options.tokenInUrl) query.set("token", token);
    if (this.cursor.connectionId) query.set("connection_id", this.cursor.connectionId);
    if (this.cursor.lastEventId) query.set("last_event_id", this.cursor.lastEventId);
    this.asked = [...this.topics];
    if (this.asked.length) query.set("topics", this.asked.join());
    return url.href;
  }

  private receive(text: string): void {
    let frame: Frame;
    try {
      frame = JSON.parse(text);
    } catch (cause) {
      return this.sink.problem({ error: "malformed", message: "the hub sent something that is not JSON", cause });
    }
    this.heard = Date.now();
    if (this.live) this.expectPing();
    if (frame.event_id) this.cursor.lastEventId = frame.event_id;
    switch (frame.type) {
      case "ack": return this.acknowledged(frame);
      case "ping": return this.send({ type: "pong", event_id: frame.event_id });
      case "pong": return;
      case "auth_expiring": return void this.renew();
      case "goaway": return this.leave(frame);
      default: return this.sink.frame(frame);
    }
  }

  private acknowledged(frame: Frame): void {
    // Others answer a subscribe or an auth.
    if (this.live) return;
    const { connection_id, heartbeat, resumed } = frame as { connection_id?: string; heartbeat?: number; resumed?: boolean };
    if (connection_id) this.cursor.connectionId = connection_id;
    this.period = (heartbeat ?? 30) * 1_000;
    this.live = true;
    this.fresh = false;
    this.since = Date.now();
    this.goaway = undefined;
    this.expectPing();
    // What was wanted, and no longer wanted, while the socket opened.
    for (const topic of this.topics) if (!this.asked.includes(topic)) this.send({ type: "subscribe", topic });
    for (const topic of this.asked) if (!this.topics.has(topic)) this.send({ type: "unsubscribe", topic });
    this.say("live", "", { resumed: resumed === true });
  }

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
      const token = await this.options.getToken("expiring");
      this.token = token;
      if (turn === this.turn) this.send({ type: "auth", token });
    } catch (cause) {
      // The hub will close, and then it is asked for again.
      this.token = undefined;
      this.sink.problem({ error: "token", message: `getToken failed: ${cause}`, cause });
    }
  }

  /** The hub ends: it closes, or is left, and found again when it said. */
  private leave(frame: Frame): void {
    this.goaway = Number(frame.reconnect_after_ms) || 0;
    const turn = this.turn;
    setTimeout(() => {
      if (turn !== this.turn) return;
      this.goaway = undefined;
      this.closed(1012, String(frame.reason ?? ""));
    }, this.goaway);
  }

  private closed(code: number, reason: string): void {
    if (this.live && Date.now() - this.since >= STEADY) this.attempts = 0;
    let what = verdict(code, reason);
    const why = words(code, reason);
    if (what === "new token") {
      const { getToken } = this.options;
      // One that was just given and is refused all the same is not mended by another, unless time does it.
      if (!getToken || (this.fresh && !/^token_(expired|not_yet_valid)/.test(reason))) return this.refuse(why, code);
      if (this.fresh) what = "later";
      this.token = undefined;
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
