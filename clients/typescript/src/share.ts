// One socket for all tabs of a site that have the same user.
// The leading tab has the socket, and passes frames on to the followers. If the leader is closed or does not respond,
// another tab takes over and resumes from its own cursor, so that no event is lost.

import { Group, type Member } from "./group.js";
import type { Link } from "./link.js";
import { cursorAfter } from "./cursor.js";
import { userOf } from "./token.js";
import type { Cursor, Frame, Options, Problem, Sink, Source, State, Subscribed } from "./types.js";

/** How long a new leader waits for the topics of the other tabs, in milliseconds. */
const GREETING = 100;

/** A leader and its term. Messages of a leader of an earlier term are ignored. */
interface Leader { id: string; term: number }

/**
 * A message between tabs. `say` is its type, and messages of a leader have `by`.
 * Tabs can run different versions of this file, so the fields must not change.
 */
type TabMessage =
  | { say: "hello"; from: string; topics: string[] }
  | { say: "probe" }
  | { say: "want" | "unwant"; from: string; topic: string }
  | { say: "retry"; token?: string | undefined }
  | { by: Leader; say: "leader" }
  | { by: Leader; say: "frame"; frame: Frame }
  | { by: Leader; say: "state"; state: State; cursor: Cursor }
  | { by: Leader; say: "problem"; problem: Problem }
  | { by: Leader; say: "subscribed"; confirmed: Subscribed };

type LeaderMessage<M> = M extends { by: Leader } ? Omit<M, "by"> : never;

export class Shared implements Source, Member {
  private readonly link: Link;
  private readonly topics: Set<string>;
  private group: Group | undefined;
  /** The user of this tab. */
  private user: string | undefined;
  /** This tab has joined the group of its user, or is joining it. */
  private joined = false;
  /** Counts groups. Callbacks for a group that this tab has left compare it, and return without effect. */
  private generation = 0;
  private opened = false;
  /** The browser does not support sharing: the tab has its own socket. */
  private alone = false;
  private leader: Leader = { id: "", term: 0 };
  /** This tab's cursor equals the leader's. Frames are passed on to the application only then. */
  private aligned = false;
  /** Opens the gate at which the link waits while another tab is the leader. */
  private openGate: (() => void) | undefined;
  /** The topics of each tab. Only the leader keeps them. */
  private readonly tabs = new Map<string, Set<string>>();
  private state: State = { name: "closed", reason: "" };

  constructor(private readonly options: Options, private readonly sink: Sink, Socket: typeof Link) {
    this.topics = new Set(options.topics);
    this.link = new Socket(options, {
      frame: (frame, before) => {
        this.broadcast({ say: "frame", frame });
        sink.frame(frame, before);
      },
      state: (state) => this.linkStateChanged(state),
      problem: (problem) => {
        // The `cause` is not sent, because not every thrown value can be cloned.
        const { cause, ...rest } = problem;
        this.broadcast({ say: "problem", problem: rest });
        this.report(problem);
      },
      subscribed: (confirmed) => {
        this.broadcast({ say: "subscribed", confirmed });
        sink.subscribed(confirmed);
      },
    }, (token) => this.gate(token));
  }

  get cursor(): Cursor { return this.link.cursor; }

  open(): void {
    this.opened = true;
    this.link.open();
  }

  close(): void {
    this.opened = false;
    this.leave();
    this.link.close();
  }

  retry(token?: string): void {
    this.opened = true;
    const otherUser = token !== undefined && this.userOf(token) !== this.user;
    if (!this.group || this.leads || otherUser) return this.link.retry(token);
    this.group.post({ say: "retry", token } satisfies TabMessage);
  }

  subscribe(topic: string): void {
    this.topics.add(topic);
    if (this.leads) this.addTopic(this.id, topic);
    else this.send({ say: "want", from: this.id, topic });
    if (!this.leads) this.link.subscribe(topic);
  }

  unsubscribe(topic: string): void {
    this.topics.delete(topic);
    if (this.leads) return this.removeTopic(this.id, topic);
    this.send({ say: "unwant", from: this.id, topic });
    this.link.unsubscribe(topic);
  }

  private get leads(): boolean { return this.group?.leading === true; }
  private get id(): string { return this.group?.id ?? ""; }
  private userOf(token: string): string | undefined { return this.options.user ?? userOf(token); }
  private send(message: TabMessage): void { this.group?.post(message); }

  /** Sends a message to all followers, if this tab is the leader. */
  private broadcast(message: LeaderMessage<TabMessage>): void {
    if (this.leads) this.group!.post({ ...message, by: this.leader });
  }

  private setState(state: State): void {
    this.state = state;
    this.sink.state(state);
  }

  private report(problem: Problem): void {
    // A problem with a topic concerns only the tabs that are subscribed to it.
    if (problem.topic === undefined || this.topics.has(problem.topic)) this.sink.problem(problem);
  }

  /** The gate of the link: joins the group of the token's user, and opens once this tab is its leader. */
  private gate(token: string): Promise<void> | undefined {
    const user = this.userOf(token);
    if (!this.joined || user !== this.user) {
      // A cursor is valid only for the user that it was issued to.
      if (this.user !== undefined && user !== this.user) {
        delete this.cursor.lastEventId;
        delete this.cursor.connectionId;
      }
      this.leave();
      this.user = user;
      this.joined = true;
      if (user !== undefined && !this.alone) this.join(user).catch((cause) => this.unavailable(cause));
    }
    // A socket whose token has no user is not shared.
    if (user === undefined || this.alone || this.leads) return undefined;
    return new Promise((open) => { this.openGate = open; });
  }

  private async join(user: string): Promise<void> {
    const { generation } = this;
    const { share, url } = this.options;
    // All scripts of the site can read the names of locks, so the name must not reveal the user.
    const bytes = new TextEncoder().encode(JSON.stringify([share === true ? url : share, user]));
    const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    if (generation !== this.generation) return;
    const name = `fanfare:${Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
    this.group = new Group(name, this, () => this.hello());
  }

  unavailable(cause: unknown): void {
    this.alone = true;
    this.leave();
    const message = `the browser does not allow this page to share a socket, so this tab opens its own: ${cause}`;
    this.report({ error: "share", message, cause });
    this.openGate?.();
  }

  private leave(): void {
    this.generation++;
    this.group?.leave();
    this.group = undefined;
    this.joined = false;
    this.leader = { id: "", term: 0 };
    this.aligned = false;
    this.dropTopicsOfOthers();
  }

  /** Unsubscribes from the topics of other tabs. */
  private dropTopicsOfOthers(): void {
    for (const topic of [...this.tabs.values()].flatMap((topics) => [...topics])) {
      if (!this.topics.has(topic)) this.link.unsubscribe(topic);
    }
    this.tabs.clear();
  }

  private hello(): void { this.send({ say: "hello", from: this.id, topics: [...this.topics] }); }

  lead(): void {
    // The other tabs answer with their topics. These must be in the URL of the connect, because the hub replays missed
    // events only of the topics in the URL.
    const wait = this.leader.term ? GREETING : 0;
    this.leader = { id: this.id, term: Math.max(Date.now(), this.leader.term + 1) };
    this.aligned = true;
    this.tabs.set(this.id, new Set(this.topics));
    this.broadcast({ say: "leader" });
    const { openGate } = this;
    if (wait) setTimeout(() => openGate?.(), wait);
    else openGate?.();
  }

  deposed(): void {
    this.aligned = false;
    this.dropTopicsOfOthers();
    this.link.restart();
    this.hello();
  }

  probe(): void { this.send({ say: "probe" }); }

  private linkStateChanged(state: State): void {
    // A follower shows the leader's state, because its own link waits at the gate.
    if (this.group && !this.leads && this.opened) {
      if (!this.aligned) this.setState({ name: "connecting", reason: "" });
      return;
    }
    // Another tab took over the connection, and its message that it leads may not have arrived yet.
    const { group } = this;
    if (group && state.code === 4001 && state.name === "refused") {
      const stillLeads = () => this.group === group && this.leads && this.link.refused;
      return void setTimeout(() => { if (stillLeads()) this.publishState(state); }, 1_000);
    }
    this.publishState(state);
  }

  private publishState(state: State): void {
    this.broadcast({ say: "state", state, cursor: this.cursor });
    this.setState(state);
  }

  receive(message: TabMessage): void {
    if ("by" in message) {
      if (message.by.term <= this.leader.term && message.by.id !== this.leader.id) return;
      const other = message.by.id !== this.leader.id;
      this.leader = message.by;
      this.group!.leaderResponded();
      // Another tab took over the lead while this tab was suspended.
      if (this.leads) return this.group!.yield();
      if (other && message.say === "leader") return this.hello();
      return this.receiveFromLeader(message);
    }
    if (this.leads) this.receiveFromFollower(message);
  }

  private receiveFromLeader(message: TabMessage & { by: Leader }): void {
    switch (message.say) {
      case "problem": return this.report(message.problem);
      case "subscribed": return this.sink.subscribed(message.confirmed);
      case "state": return this.align(message.state, message.cursor);
      case "frame": {
        if (!this.aligned) return;
        const before = this.cursor.lastEventId;
        const cursor = cursorAfter(message.frame);
        if (cursor) this.cursor.lastEventId = cursor;
        return this.sink.frame(message.frame, before);
      }
    }
  }

  /**
   * Takes over the leader's state and cursor. This tab did not receive the events between its own cursor and the
   * leader's, so the application receives a gap.
   */
  private align(state: State, { connectionId, lastEventId }: Cursor): void {
    const before = this.cursor.lastEventId;
    if (connectionId) this.cursor.connectionId = connectionId;
    if (lastEventId) this.cursor.lastEventId = lastEventId;
    if (!this.aligned && before && lastEventId && before !== lastEventId) {
      const timestamp = new Date().toISOString();
      this.sink.frame({ type: "gap", event_id: lastEventId, timestamp, reason: "expired" }, before);
    }
    if (lastEventId) this.aligned = true;
    if (JSON.stringify(state) !== JSON.stringify(this.state)) this.setState(state);
  }

  private receiveFromFollower(message: TabMessage): void {
    switch (message.say) {
      case "hello":
        if (!this.tabs.has(message.from)) this.addTab(message.from);
        // The cursor must be sent first, because events of the topics come after it.
        this.broadcast({ say: "state", state: this.state, cursor: this.cursor });
        return message.topics.forEach((topic) => this.addTopic(message.from, topic));
      case "probe": return this.broadcast({ say: "state", state: this.state, cursor: this.cursor });
      case "want": return this.addTopic(message.from, message.topic);
      case "unwant": return this.removeTopic(message.from, message.topic);
      case "retry": return this.link.retry(message.token);
    }
  }

  /** Registers a tab, until the tab is closed and its lock is released. */
  private addTab(tab: string): void {
    const { group } = this;
    this.tabs.set(tab, new Set());
    group!.whenGone(tab, () => {
      if (this.group !== group || !this.leads) return;
      for (const topic of this.tabs.get(tab) ?? []) this.removeTopic(tab, topic);
      this.tabs.delete(tab);
    });
  }

  private addTopic(tab: string, topic: string): void {
    this.tabs.get(tab)?.add(topic);
    this.link.subscribe(topic);
  }

  private removeTopic(tab: string, topic: string): void {
    this.tabs.get(tab)?.delete(topic);
    if (![...this.tabs.values()].some((topics) => topics.has(topic))) this.link.unsubscribe(topic);
  }
}
