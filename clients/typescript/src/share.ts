// One socket for all tabs of a site that have the same user. The leader has the socket and passes on what it hears; when it is
// gone or no longer answers, another tab leads and goes on from its own place, so that nothing is lost in between.

import { Group, type Member } from "./group.js";
import type { Link } from "./link.js";
import { placeOf } from "./place.js";
import { userOf } from "./token.js";
import type { Cursor, Frame, Options, Problem, Sink, Source, State, Subscribed } from "./types.js";

/** How long a new leader waits for the topics of the others, in milliseconds. */
const GREETING = 100;

/** Who leads, and the how-manieth leader that is: a leader that was deposed is heard no more. */
interface Leader { id: string; term: number }

type Word =
  | { say: "hello"; from: string; topics: string[] }
  | { say: "probe" }
  | { say: "want" | "unwant"; from: string; topic: string }
  | { say: "retry"; token?: string | undefined }
  | { by: Leader; say: "leader" }
  | { by: Leader; say: "frame"; frame: Frame }
  | { by: Leader; say: "state"; state: State; cursor: Cursor }
  | { by: Leader; say: "problem"; problem: Problem }
  | { by: Leader; say: "subscribed"; confirmed: Subscribed };

type Said<W> = W extends { by: Leader } ? Omit<W, "by"> : never;

export class Shared implements Source, Member {
  private readonly link: Link;
  private readonly topics: Set<string>;
  private group: Group | undefined;
  /** Whose tab this is. */
  private user: string | undefined;
  /** This tab is in its user's group, or about to be. */
  private joined = false;
  /** Counts groups, so that one that this tab has left says nothing any more. */
  private turn = 0;
  private opened = false;
  /** This browser shares nothing: the tab has a socket of its own. */
  private alone = false;
  private leader: Leader = { id: "", term: 0 };
  /** This tab's place is the leader's. */
  private level = false;
  /** Opens the gate at which the link waits while another tab leads. */
  private enter: (() => void) | undefined;
  /** What each tab wants, in the tab that leads. */
  private readonly tabs = new Map<string, Set<string>>();
  private state: State = { name: "closed", reason: "" };

  constructor(private readonly options: Options, private readonly sink: Sink, Socket: typeof Link) {
    this.topics = new Set(options.topics);
    this.link = new Socket(options, {
      frame: (frame, before) => {
        this.say({ say: "frame", frame });
        sink.frame(frame, before);
      },
      state: (state) => this.changed(state),
      problem: (problem) => {
        // What was thrown stays here: not all of it can be sent to another tab.
        const { cause, ...rest } = problem;
        this.say({ say: "problem", problem: rest });
        this.object(problem);
      },
      subscribed: (confirmed) => {
        this.say({ say: "subscribed", confirmed });
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
    const other = token !== undefined && this.who(token) !== this.user;
    if (!this.group || this.leads || other) return this.link.retry(token);
    this.group.post({ say: "retry", token } satisfies Word);
  }

  subscribe(topic: string): void {
    this.topics.add(topic);
    if (this.leads) this.want(this.id, topic);
    else this.ask({ say: "want", from: this.id, topic });
    if (!this.leads) this.link.subscribe(topic);
  }

  unsubscribe(topic: string): void {
    this.topics.delete(topic);
    if (this.leads) return this.unwant(this.id, topic);
    this.ask({ say: "unwant", from: this.id, topic });
    this.link.unsubscribe(topic);
  }

  private get leads(): boolean { return this.group?.leading === true; }
  private get id(): string { return this.group?.id ?? ""; }
  private who(token: string): string | undefined { return this.options.user ?? userOf(token); }
  private ask(word: Word): void { this.group?.post(word); }

  /** To all followers, if this tab leads. */
  private say(word: Said<Word>): void { if (this.leads) this.group!.post({ ...word, by: this.leader }); }

  private tell(state: State): void {
    this.state = state;
    this.sink.state(state);
  }

  private object(problem: Problem): void {
    // Topics of other tabs are no concern of this one.
    if (problem.topic === undefined || this.topics.has(problem.topic)) this.sink.problem(problem);
  }

  /** Lets the link through in the tab that leads its user's group, and puts it into that group before. */
  private gate(token: string): Promise<void> | undefined {
    const user = this.who(token);
    if (!this.joined || user !== this.user) {
      // Another user's events begin anew.
      if (this.user !== undefined && user !== this.user) delete this.cursor.lastEventId, delete this.cursor.connectionId;
      this.leave();
      this.user = user;
      this.joined = true;
      if (user !== undefined && !this.alone) this.join(user).catch((cause) => this.unavailable(cause));
    }
    // A token that names nobody is shared with nobody.
    if (user === undefined || this.alone || this.leads) return undefined;
    return new Promise((enter) => { this.enter = enter; });
  }

  private async join(user: string): Promise<void> {
    const turn = this.turn;
    const { share, url } = this.options;
    // The name can be read by everything else on this site: it tells nothing of the user.
    const bytes = new TextEncoder().encode(JSON.stringify([share === true ? url : share, user]));
    const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    if (turn !== this.turn) return;
    const name = `fanfare:${Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
    this.group = new Group(name, this, () => this.hello());
  }

  unavailable(cause: unknown): void {
    this.alone = true;
    this.leave();
    this.object({ error: "share", message: `this page may not share a socket, so this tab has its own: ${cause}`, cause });
    this.enter?.();
  }

  private leave(): void {
    this.turn++;
    this.group?.leave();
    this.group = undefined;
    this.joined = false;
    this.leader = { id: "", term: 0 };
    this.level = false;
    this.follow();
  }

  /** Keeps this tab's own topics only. */
  private follow(): void {
    for (const topics of this.tabs.values()) for (const topic of topics) if (!this.topics.has(topic)) this.link.unsubscribe(topic);
    this.tabs.clear();
  }

  private hello(): void { this.ask({ say: "hello", from: this.id, topics: [...this.topics] }); }

  lead(): void {
    // The others answer with their topics, which have to stand in the URL for what they missed.
    const wait = this.leader.term ? GREETING : 0;
    this.leader = { id: this.id, term: Math.max(Date.now(), this.leader.term + 1) };
    this.level = true;
    this.tabs.set(this.id, new Set(this.topics));
    this.say({ say: "leader" });
    const { enter } = this;
    if (wait) setTimeout(() => enter?.(), wait);
    else enter?.();
  }

  deposed(): void {
    this.level = false;
    this.follow();
    this.link.restart();
    this.hello();
  }

  probe(): void { this.ask({ say: "probe" }); }

  private changed(state: State): void {
    // While it waits at the gate, the leader's state counts.
    if (this.group && !this.leads && this.opened) {
      if (!this.level) this.tell({ name: "connecting", reason: "" });
      return;
    }
    // Another tab took the connection over; its claim to the lead is on the way.
    const { group } = this;
    if (group && state.code === 4001 && state.name === "refused") {
      return void setTimeout(() => { if (this.group === group && this.leads && this.link.refused) this.pass(state); }, 1_000);
    }
    this.pass(state);
  }

  private pass(state: State): void {
    this.say({ say: "state", state, cursor: this.cursor });
    this.tell(state);
  }

  hear(word: Word): void {
    if ("by" in word) {
      if (word.by.term <= this.leader.term && word.by.id !== this.leader.id) return;
      const other = word.by.id !== this.leader.id;
      this.leader = word.by;
      this.group!.heard();
      // It was stolen: this tab was halted for so long that another one had to lead.
      if (this.leads) return this.group!.yield();
      if (other && word.say === "leader") return this.hello();
      return this.hearLeader(word);
    }
    if (this.leads) this.hearFollower(word);
  }

  private hearLeader(word: Word & { by: Leader }): void {
    switch (word.say) {
      case "problem": return this.object(word.problem);
      case "subscribed": return this.sink.subscribed(word.confirmed);
      case "state": return this.align(word.state, word.cursor);
      case "frame": {
        if (!this.level) return;
        const before = this.cursor.lastEventId;
        const place = placeOf(word.frame);
        if (place) this.cursor.lastEventId = place;
        return this.sink.frame(word.frame, before);
      }
    }
  }

  /** Takes the leader's place. What lies between this tab's own and that one did not pass here, so it is a gap. */
  private align(state: State, { connectionId, lastEventId }: Cursor): void {
    const before = this.cursor.lastEventId;
    if (connectionId) this.cursor.connectionId = connectionId;
    if (lastEventId) this.cursor.lastEventId = lastEventId;
    if (!this.level && before && lastEventId && before !== lastEventId) {
      this.sink.frame({ type: "gap", event_id: lastEventId, timestamp: new Date().toISOString(), reason: "expired" }, before);
    }
    if (lastEventId) this.level = true;
    if (JSON.stringify(state) !== JSON.stringify(this.state)) this.tell(state);
  }

  private hearFollower(word: Word): void {
    switch (word.say) {
      case "hello":
        if (!this.tabs.has(word.from)) this.greet(word.from);
        // The place first: what the topics bring comes after it.
        this.say({ say: "state", state: this.state, cursor: this.cursor });
        return word.topics.forEach((topic) => this.want(word.from, topic));
      case "probe": return this.say({ say: "state", state: this.state, cursor: this.cursor });
      case "want": return this.want(word.from, word.topic);
      case "unwant": return this.unwant(word.from, word.topic);
      case "retry": return this.link.retry(word.token);
    }
  }

  /** Takes note of a tab, until its lock is free. */
  private greet(tab: string): void {
    const { group } = this;
    this.tabs.set(tab, new Set());
    group!.whenGone(tab, () => {
      if (this.group !== group || !this.leads) return;
      for (const topic of this.tabs.get(tab) ?? []) this.unwant(tab, topic);
      this.tabs.delete(tab);
    });
  }

  private want(tab: string, topic: string): void {
    this.tabs.get(tab)?.add(topic);
    this.link.subscribe(topic);
  }

  private unwant(tab: string, topic: string): void {
    this.tabs.get(tab)?.delete(topic);
    if (![...this.tabs.values()].some((topics) => topics.has(topic))) this.link.unsubscribe(topic);
  }
}
