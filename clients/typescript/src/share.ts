// One socket for all tabs of a site. Whoever holds the lock has the socket and passes on what it hears; when that tab is gone, the
// next has the lock and goes on from where it was itself, so that nothing is lost in between.

import { Link } from "./link.js";
import type { Cursor, Frame, Options, Problem, Sink, Source, State } from "./types.js";

type Word =
  | { say: "hello"; from: string; topics: string[] }
  | { say: "leader" }
  | { say: "want" | "unwant"; from: string; topic: string }
  | { say: "retry"; token?: string | undefined }
  | { say: "frame"; frame: Frame }
  | { say: "state"; state: State; cursor: Cursor }
  | { say: "problem"; problem: Problem };

export class Shared implements Source {
  readonly cursor: Cursor;
  private readonly name: string;
  private readonly id = Math.random().toString(36).slice(2);
  private readonly topics: Set<string>;
  private channel: BroadcastChannel | undefined;
  private leaving: AbortController | undefined;
  /** The socket, in the tab that has it. */
  private link: Link | undefined;
  /** What each tab wants, in the tab that has the socket. */
  private readonly tabs = new Map<string, Set<string>>();
  private state: State = { name: "closed", reason: "" };

  constructor(private readonly options: Options, private readonly sink: Sink) {
    this.name = `fanfare:${options.share === true ? options.url : options.share}`;
    this.topics = new Set(options.topics);
    this.cursor = { ...options.cursor };
  }

  open(): void {
    if (this.leaving) return;
    const leaving = this.leaving = new AbortController();
    this.channel = new BroadcastChannel(this.name);
    this.channel.onmessage = ({ data }) => this.hear(data);
    const gone = new Promise<void>((done) => leaving.signal.addEventListener("abort", () => done()));
    const hold = (name: string, held: () => void) =>
      void navigator.locks.request(name, { signal: leaving.signal }, () => { held(); return gone; }).catch(() => {});
    // Whoever has the socket sees by this lock when this tab is gone.
    hold(`${this.name}:${this.id}`, () => {
      this.tell({ name: "connecting", reason: "" });
      this.post({ say: "hello", from: this.id, topics: [...this.topics] });
      hold(this.name, () => this.lead());
    });
  }

  close(): void {
    this.link?.close();
    this.link = undefined;
    this.tabs.clear();
    this.leaving?.abort();
    this.leaving = undefined;
    this.channel?.close();
    this.channel = undefined;
    this.tell({ name: "closed", reason: "" });
  }

  retry(token?: string): void {
    if (!this.leaving) this.open();
    if (this.link) this.link.retry(token);
    else this.post({ say: "retry", token });
  }

  subscribe(topic: string): void {
    this.topics.add(topic);
    if (this.link) this.want(this.id, topic);
    else this.post({ say: "want", from: this.id, topic });
  }

  unsubscribe(topic: string): void {
    this.topics.delete(topic);
    if (this.link) this.unwant(this.id, topic);
    else this.post({ say: "unwant", from: this.id, topic });
  }

  private post(word: Word): void { this.channel?.postMessage(word); }

  private tell(state: State): void {
    this.state = state;
    this.sink.state(state);
  }

  private lead(): void {
    const { sink } = this;
    this.tabs.set(this.id, new Set(this.topics));
    const link = this.link = new Link({ ...this.options, topics: this.topics, cursor: this.cursor }, {
      frame: (frame) => {
        Object.assign(this.cursor, link.cursor);
        this.post({ say: "frame", frame });
        sink.frame(frame);
      },
      state: (state) => {
        Object.assign(this.cursor, link.cursor);
        this.post({ say: "state", state, cursor: this.cursor });
        this.tell(state);
      },
      problem: (problem) => {
        this.post({ say: "problem", problem });
        sink.problem(problem);
      },
    });
    this.post({ say: "leader" });
    link.open();
  }

  private hear(word: Word): void {
    if (this.link) return this.hearFollower(word);
    switch (word.say) {
      case "leader": return this.post({ say: "hello", from: this.id, topics: [...this.topics] });
      case "problem": return this.sink.problem(word.problem);
      case "state":
        // A place of one's own is never given up for that of another: this tab may have seen less.
        this.cursor.connectionId = word.cursor.connectionId ?? this.cursor.connectionId!;
        this.cursor.lastEventId ??= word.cursor.lastEventId!;
        return this.tell(word.state);
      case "frame":
        if (word.frame.event_id) this.cursor.lastEventId = word.frame.event_id;
        return this.sink.frame(word.frame);
    }
  }

  private hearFollower(word: Word): void {
    switch (word.say) {
      case "hello":
        if (!this.tabs.has(word.from)) this.greet(word.from);
        word.topics.forEach((topic) => this.want(word.from, topic));
        return this.post({ say: "state", state: this.state, cursor: this.cursor });
      case "want": return this.want(word.from, word.topic);
      case "unwant": return this.unwant(word.from, word.topic);
      case "retry": return this.link!.retry(word.token);
    }
  }

  /** Takes note of a tab, until its lock is free. */
  private greet(tab: string): void {
    this.tabs.set(tab, new Set());
    const forget = () => {
      for (const topic of this.tabs.get(tab) ?? []) this.unwant(tab, topic);
      this.tabs.delete(tab);
    };
    navigator.locks.request(`${this.name}:${tab}`, { signal: this.leaving!.signal }, forget).catch(() => {});
  }

  private isWanted = (topic: string) => [...this.tabs.values()].some((topics) => topics.has(topic));

  private want(tab: string, topic: string): void {
    const wanted = this.isWanted(topic);
    this.tabs.get(tab)?.add(topic);
    if (!wanted) this.link?.subscribe(topic);
  }

  private unwant(tab: string, topic: string): void {
    this.tabs.get(tab)?.delete(topic);
    if (!this.isWanted(topic)) this.link?.unsubscribe(topic);
  }
}
