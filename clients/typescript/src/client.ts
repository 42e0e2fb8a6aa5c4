// What the application holds: hands out events in order, each once, and holds them back while the application handles a gap.

import { Later } from "./later.js";
import { within } from "./limit.js";
import { Link } from "./link.js";
import { Reader, type Entry } from "./reader.js";
import { text } from "./text.js";
import { invalid } from "./topics.js";
import type {
  AnyEvent, Cursor, EventMap, EventOf, Frame, Gap, Options, Problem, Source, State, Subscribed, SubscribeError, Subscription, TypeOf,
} from "./types.js";

type Handler<T> = (value: T) => unknown;
/** Takes a handler away again. */
export type Off = () => void;

/** How many of the newest events are known again. */
const KNOWN = 1_000;

interface Waiter {
  resolve(confirmed: Subscribed): void;
  reject(error: SubscribeError): void;
}

const rejection = (problem: Problem): SubscribeError => Object.assign(new Error(problem.message), problem);

const own = <T>(set: Set<T>, value: T): Off => {
  set.add(value);
  return () => void set.delete(value);
};

/** One client of a hub. */
export class Client<Events extends object = EventMap> {
  private readonly source: Source;
  private readonly types = new Map<string, Set<Handler<any>>>();
  private readonly all = new Set<Handler<AnyEvent<Events>>>();
  private readonly gaps = new Set<Handler<Gap>>();
  private readonly states = new Set<Handler<State>>();
  private readonly problems = new Set<Handler<Problem>>();
  private readonly readers = new Set<Reader>();
  /** How often each topic is wanted. */
  private readonly topics = new Map<string, number>();
  /** Those who await a topic's confirmation. */
  private readonly waiters = new Map<string, Waiter[]>();
  /** Topics of the options that no hub would accept. */
  private readonly invalid: Problem[] = [];
  private readonly known = new Set<string>();
  /** A gap stays the first until the application has dealt with it. */
  private readonly waiting: Entry[] = [];
  private handlingGap = false;
  private count = 0;
  private delivering: Entry | undefined;
  /** The first event that a reader left behind when it was ended, until another one is delivered. */
  private abandoned: Entry | undefined;
  private current: State = { name: "closed", reason: "" };

  constructor(private readonly options: Options) {
    for (const topic of options.topics ?? []) {
      const problem = invalid(topic);
      if (problem) this.invalid.push(problem);
      else this.topics.set(topic, 1);
    }
    const sink = {
      frame: (frame: Frame, before: string | undefined) => this.receive(frame, before),
      state: (state: State) => this.changed(state),
      problem: (problem: Problem) => this.object(problem),
      subscribed: (confirmed: Subscribed) => this.settle(confirmed.topic, ({ resolve }) => resolve(confirmed)),
    };
    const given = { ...options, topics: [...this.topics.keys()] };
    const locks = globalThis.navigator?.locks && globalThis.BroadcastChannel;
    const alone = () => new Link(given, sink);
    // A file of its own: most applications do without it.
    this.source = !options.share || !locks ? alone() : new Later(import("./share.js").then(({ Shared }) => new Shared(given, sink, Link), (cause) => {
      this.object({ error: "share", message: `share.js can't be loaded, so this tab has a socket of its own: ${cause}`, cause });
      return alone();
    }), options.cursor);
  }

  /** Connects, and stays connected until `close()`. */
  open(): this {
    this.source.open();
    // Not before handlers had a chance to be added.
    queueMicrotask(() => this.invalid.splice(0).forEach((problem) => this.object(problem)));
    return this;
  }

  /** Ends the connection. Handlers stay, and `open()` goes on where it was. */
  close(): void {
    this.source.close();
    for (const reader of this.readers) reader.end();
  }

  /** Tries at once, also after a refusal, with another token if one is given. */
  retry(token?: string): void { this.source.retry(token); }

  /** How the connection stands. The same object until it changes. */
  get state(): State { return this.current; }

  /**
   * The place up to which the application has been handed events. It stays before an event that waits in `events()`,
   * and before a gap until `onGap` has settled, so it can be saved at any time.
   */
  get cursor(): Cursor {
    const { cursor } = this.source;
    const waiting = [this.waiting[0], this.abandoned, ...[...this.readers].map(({ queue }) => queue[0])].filter((entry) => entry !== undefined);
    if (!waiting.length) return { ...cursor };
    const { before } = waiting.reduce((first, entry) => entry.number < first.number ? entry : first);
    return { ...(cursor.connectionId && { connectionId: cursor.connectionId }), ...(before && { lastEventId: before }) };
  }

  /** Calls `handler` with each event of a type, in order. A type that the map does not name does not compile. */
  on<Type extends TypeOf<Events>>(type: Type, handler: Handler<EventOf<Events, Type>>): Off;
  on(type: string, handler: Handler<any>): Off {
    let handlers = this.types.get(type);
    if (!handlers) this.types.set(type, handlers = new Set());
    return own(handlers, handler);
  }

  /** Calls `handler` with each event of any type, in order. */
  onAny(handler: Handler<AnyEvent<Events>>): Off { return own(this.all, handler); }

  /**
   * Calls `handler` when history was lost, once all events before have been taken. Events that follow wait until what it
   * returns has settled, or until `gapTimeout`: then `gap.signal` is aborted and `onProblem` receives `gap_timeout`.
   */
  onGap(handler: Handler<Gap>): Off { return own(this.gaps, handler); }

  /** Calls `handler` now and whenever the connection's state changes. */
  onState(handler: Handler<State>): Off {
    this.tell(new Set([handler]), this.current);
    return own(this.states, handler);
  }

  /** Calls `handler` with what the hub refused and what else went wrong without ending the connection. */
  onProblem(handler: Handler<Problem>): Off { return own(this.problems, handler); }

  /**
   * Asks for the events of a topic, until every subscription of it has been called. Await it to learn the hub's answer.
   * A topic that was rejected is asked for again on the next connection, as long as it is wanted.
   */
  subscribe(topic: string): Subscription {
    const problem = invalid(topic);
    const answer = new Promise<Subscribed>((resolve, reject) => {
      if (problem) return reject(rejection(problem));
      this.waiters.set(topic, [...this.waiters.get(topic) ?? [], { resolve, reject }]);
    });
    // Who awaits it learns of a rejection; for all others it is a problem.
    answer.catch(() => {});
    if (problem) this.object(problem);
    else {
      this.topics.set(topic, (this.topics.get(topic) ?? 0) + 1);
      this.source.subscribe(topic);
    }
    let held = !problem;
    const off = () => {
      if (held) this.release(topic);
      held = false;
    };
    return Object.assign(off, { then: answer.then.bind(answer), catch: answer.catch.bind(answer), finally: answer.finally.bind(answer) });
  }

  private release(topic: string): void {
    const left = this.topics.get(topic)! - 1;
    if (left) return void this.topics.set(topic, left);
    this.topics.delete(topic);
    this.source.unsubscribe(topic);
    this.settle(topic, ({ reject }) => reject(rejection({ error: "unsubscribed", message: `${topic} was given up`, topic })));
  }

  private settle(topic: string, how: (waiter: Waiter) => void): void {
    const waiters = this.waiters.get(topic) ?? [];
    this.waiters.delete(topic);
    waiters.forEach(how);
  }

  /** Events as they come, of one type or of all, until `close()`. What is not taken yet waits in memory. */
  events<Type extends TypeOf<Events>>(type: Type): AsyncIterableIterator<EventOf<Events, Type>>;
  events(): AsyncIterableIterator<AnyEvent<Events>>;
  events(type?: string): AsyncIterableIterator<any> {
    const take = () => reader.push(this.delivering!);
    const reader = new Reader(type === undefined ? this.onAny(take) : this.on(type as any, take), ({ queue: [first] }) => {
      this.readers.delete(reader);
      if (first && !(this.abandoned && this.abandoned.number < first.number)) this.abandoned = first;
    });
    this.readers.add(reader);
    return reader;
  }

  [Symbol.asyncIterator](): AsyncIterableIterator<AnyEvent<Events>> { return this.events(); }

  private changed(state: State): void {
    this.current = state;
    this.tell(this.states, state);
    if (state.name !== "refused" && state.name !== "closed") return;
    const why = { error: state.name, message: state.reason || "the client is closed" };
    for (const topic of [...this.waiters.keys()]) this.settle(topic, ({ reject }) => reject(rejection({ ...why, topic })));
  }

  private object(problem: Problem): void {
    if (this.problems.size) this.tell(this.problems, problem);
    else console.warn(`fanfare: ${problem.error}: ${problem.message}`);
    if (problem.topic !== undefined) this.settle(problem.topic, ({ reject }) => reject(rejection(problem)));
  }

  private receive(frame: Frame, before: string | undefined): void {
    // What the hub tells of itself ($sys) has no place in the log.
    if (frame.type !== "gap" && frame.event_id && !this.isNew(frame.event_id)) return;
    this.waiting.push({ frame, before, number: this.count++ });
    this.deliver();
  }

  private isNew(id: string): boolean {
    if (this.known.has(id)) return false;
    this.known.add(id);
    // A set remembers the order: its first is the oldest.
    if (this.known.size > KNOWN) this.known.delete(this.known.values().next().value!);
    return true;
  }

  /** Hands out what waits, up to the next gap that takes time. */
  private deliver(): void {
    for (let entry; !this.handlingGap && (entry = this.waiting[0]);) {
      if (entry.frame.type === "gap") {
        this.handleGap(entry.frame);
        continue;
      }
      this.waiting.shift();
      this.delivering = entry;
      const told = [...this.tell(this.types.get(entry.frame.type), entry.frame), ...this.tell(this.all, entry.frame as any)];
      if (told.length) this.abandoned = undefined;
    }
  }

  /** Waits for those who still read what came before a gap, for at most `gapTimeout`, and tells the handlers. */
  private handleGap(frame: Frame): void {
    this.handlingGap = true;
    const behind = this.gaps.size ? [...this.readers].filter(({ idle }) => !idle) : [];
    if (!behind.length) return this.tellGap(frame);
    void this.limited("taking what came before a gap from events()", Promise.all(behind.map((reader) => reader.settled())), () => {
      for (const reader of behind) reader.discard();
    }).then(() => {
      this.tellGap(frame);
      this.deliver();
    });
  }

  private tellGap(frame: Frame): void {
    const abort = new AbortController();
    const told = this.tell(this.gaps, { ...frame as unknown as Gap, signal: abort.signal }, "onGap", abort.signal);
    const pending = told.filter((result) => result instanceof Promise);
    const handled = () => {
      this.waiting.shift();
      this.handlingGap = false;
    };
    if (!pending.length) return handled();
    void this.limited("onGap", Promise.all(pending), () => {}, abort).then(() => {
      handled();
      this.deliver();
    });
  }

  /** Resolves when `work` has, or is late: then that is reported, and `late` called. */
  private limited(name: string, work: Promise<unknown>, late: () => void, abort = new AbortController()): Promise<unknown> {
    return within(this.options.gapTimeout ?? 30_000, name, abort, () => work, true).catch((cause: Error) => {
      late();
      this.object({ error: "gap_timeout", message: `${cause.message}: events are delivered again`, cause });
    });
  }

  /** Calls each handler; one that throws, or whose promise rejects, keeps nothing from the others. */
  private tell<T>(handlers: Set<Handler<T>> | undefined, value: T, who = "a handler", unwanted?: AbortSignal): unknown[] {
    const failed = (cause: unknown) => { if (!unwanted?.aborted) this.report(who, cause, handlers); };
    return [...handlers ?? []].map((handler) => {
      try {
        const result = handler(value) as PromiseLike<unknown> | undefined;
        return typeof result?.then === "function" ? Promise.resolve(result).catch(failed) : result;
      } catch (cause) {
        return failed(cause);
      }
    });
  }

  private report(who: string, cause: unknown, handlers: unknown): void {
    // A handler of problems that fails would be told of itself without end.
    if (handlers !== this.problems && this.problems.size) {
      this.tell(this.problems, { error: "handler", message: `${who} failed: ${text(cause)}`, cause });
    // A page's own error reports see it; elsewhere an uncaught error ends the process.
    } else if (globalThis.document) queueMicrotask(() => { throw cause; });
    else console.error(`fanfare: ${who} failed:`, cause);
  }
}

/** Connects to a hub. */
export function connect<Events extends object = EventMap>(options: Options): Client<Events> {
  return new Client<Events>(options).open();
}
