// The public client: delivers events to the application in order, each once, and delays them while it handles a gap.

import { Later } from "./later.js";
import { within } from "./limit.js";
import { Link } from "./link.js";
import { Reader, type Entry } from "./reader.js";
import { text } from "./text.js";
import { invalid } from "./topics.js";
import type {
  AnyEvent, Cursor, EventMap, EventOf, Frame, Gap, Options, Problem, Source, State, Subscribed, SubscribeError,
  Subscription, TypeOf,
} from "./types.js";

type Handler<T> = (value: T) => unknown;
/** Removes the handler. */
export type Off = () => void;

/** The number of newest event IDs that are stored to drop duplicates. */
const KNOWN_IDS = 1_000;

interface Waiter {
  resolve(confirmed: Subscribed): void;
  reject(error: SubscribeError): void;
}

const rejection = (problem: Problem): SubscribeError => Object.assign(new Error(problem.message), problem);

const addTo = <T>(set: Set<T>, value: T): Off => {
  set.add(value);
  return () => void set.delete(value);
};

/** A client of a hub. */
export class Client<Events extends object = EventMap> {
  private readonly source: Source;
  private readonly types = new Map<string, Set<Handler<any>>>();
  private readonly all = new Set<Handler<AnyEvent<Events>>>();
  private readonly gaps = new Set<Handler<Gap>>();
  private readonly states = new Set<Handler<State>>();
  private readonly problems = new Set<Handler<Problem>>();
  private readonly readers = new Set<Reader>();
  /** The number of subscriptions of each topic. */
  private readonly topics = new Map<string, number>();
  /** The awaited subscriptions of each topic. */
  private readonly waiters = new Map<string, Waiter[]>();
  /** Invalid topics in the options. They are reported when the client is opened. */
  private readonly invalid: Problem[] = [];
  private readonly known = new Set<string>();
  /** Frames to deliver. A gap stays the first entry until the application has handled it. */
  private readonly waiting: Entry[] = [];
  private handlingGap = false;
  private count = 0;
  private delivering: Entry | undefined;
  /** The first event that a reader had not read when its loop was left. Cleared when another event is delivered. */
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
      problem: (problem: Problem) => this.report(problem),
      subscribed: (confirmed: Subscribed) => this.settle(confirmed.topic, ({ resolve }) => resolve(confirmed)),
    };
    const given = { ...options, topics: [...this.topics.keys()] };
    const locks = globalThis.navigator?.locks && globalThis.BroadcastChannel;
    const alone = () => new Link(given, sink);
    // share.js is a separate file, because most applications do not need it.
    const shared = () => import("./share.js").then(({ Shared }) => new Shared(given, sink, Link), (cause) => {
      const message = `share.js cannot be loaded, so this tab opens its own socket: ${cause}`;
      this.report({ error: "share", message, cause });
      return alone();
    });
    this.source = !options.share || !locks ? alone() : new Later(shared(), options.cursor);
  }

  /** Connects, and reconnects until `close()`. */
  open(): this {
    this.source.open();
    // Deferred, so that the caller can add handlers first.
    queueMicrotask(() => this.invalid.splice(0).forEach((problem) => this.report(problem)));
    return this;
  }

  /** Closes the connection. Handlers are kept, and `open()` resumes from the cursor. */
  close(): void {
    this.source.close();
    for (const reader of this.readers) reader.end();
  }

  /** Connects immediately, also in the state `refused`, with `token` if one is given. */
  retry(token?: string): void { this.source.retry(token); }

  /** The state of the connection. It is the same object until the state changes. */
  get state(): State { return this.current; }

  /**
   * The position up to which events have been delivered to the application. It can be saved at any time:
   * it stays before an event that waits in `events()`, and before a gap until `onGap` has settled.
   */
  get cursor(): Cursor {
    const { cursor } = this.source;
    const unread = [this.waiting[0], this.abandoned, ...[...this.readers].map(({ queue }) => queue[0])]
      .filter((entry) => entry !== undefined);
    if (!unread.length) return { ...cursor };
    const { before } = unread.reduce((first, entry) => entry.number < first.number ? entry : first);
    const { connectionId } = cursor;
    return { ...(connectionId && { connectionId }), ...(before && { lastEventId: before }) };
  }

  /** Calls `handler` with each event of a type, in order. A type that is not in the event map does not compile. */
  on<Type extends TypeOf<Events>>(type: Type, handler: Handler<EventOf<Events, Type>>): Off;
  on(type: string, handler: Handler<any>): Off {
    let handlers = this.types.get(type);
    if (!handlers) this.types.set(type, handlers = new Set());
    return addTo(handlers, handler);
  }

  /** Calls `handler` with each event of any type, in order. */
  onAny(handler: Handler<AnyEvent<Events>>): Off { return addTo(this.all, handler); }

  /**
   * Calls `handler` when events are no longer available, after all events before the gap have been handled.
   * Later events wait until the promise of `handler` has settled, for at most `gapTimeout`.
   * Then `gap.signal` is aborted, and `onProblem` receives `gap_timeout`.
   */
  onGap(handler: Handler<Gap>): Off { return addTo(this.gaps, handler); }

  /** Calls `handler` immediately, and whenever the state of the connection changes. */
  onState(handler: Handler<State>): Off {
    this.call(new Set([handler]), this.current);
    return addTo(this.states, handler);
  }

  /** Calls `handler` with each {@link Problem}: an error that does not end the connection. */
  onProblem(handler: Handler<Problem>): Off { return addTo(this.problems, handler); }

  /**
   * Subscribes to a topic until all its subscriptions have been called. Await the subscription for the hub's answer.
   * A rejected topic is requested again with each new connection, as long as it has a subscription.
   */
  subscribe(topic: string): Subscription {
    const problem = invalid(topic);
    const answer = new Promise<Subscribed>((resolve, reject) => {
      if (problem) return reject(rejection(problem));
      this.waiters.set(topic, [...this.waiters.get(topic) ?? [], { resolve, reject }]);
    });
    // A subscription that is not awaited must not cause an unhandled rejection: the rejection is a problem as well.
    answer.catch(() => {});
    if (problem) this.report(problem);
    else {
      this.topics.set(topic, (this.topics.get(topic) ?? 0) + 1);
      this.source.subscribe(topic);
    }
    let subscribed = !problem;
    const off = () => {
      if (subscribed) this.release(topic);
      subscribed = false;
    };
    return Object.assign(off, {
      then: answer.then.bind(answer), catch: answer.catch.bind(answer), finally: answer.finally.bind(answer),
    });
  }

  private release(topic: string): void {
    const left = this.topics.get(topic)! - 1;
    if (left) return void this.topics.set(topic, left);
    this.topics.delete(topic);
    this.source.unsubscribe(topic);
    const problem = { error: "unsubscribed", message: `${topic} was unsubscribed`, topic };
    this.settle(topic, ({ reject }) => reject(rejection(problem)));
  }

  private settle(topic: string, how: (waiter: Waiter) => void): void {
    const waiters = this.waiters.get(topic) ?? [];
    this.waiters.delete(topic);
    waiters.forEach(how);
  }

  /** Iterates over events as they arrive, of one type or of all, until `close()`. Unread events wait in memory. */
  events<Type extends TypeOf<Events>>(type: Type): AsyncIterableIterator<EventOf<Events, Type>>;
  events(): AsyncIterableIterator<AnyEvent<Events>>;
  events(type?: string): AsyncIterableIterator<any> {
    const push = () => reader.push(this.delivering!);
    const off = type === undefined ? this.onAny(push) : this.on(type as any, push);
    const reader = new Reader(off, ({ queue: [first] }) => {
      this.readers.delete(reader);
      if (first && !(this.abandoned && this.abandoned.number < first.number)) this.abandoned = first;
    });
    this.readers.add(reader);
    return reader;
  }

  [Symbol.asyncIterator](): AsyncIterableIterator<AnyEvent<Events>> { return this.events(); }

  private changed(state: State): void {
    this.current = state;
    this.call(this.states, state);
    if (state.name !== "refused" && state.name !== "closed") return;
    const problem = { error: state.name, message: state.reason || "the client is closed" };
    for (const topic of [...this.waiters.keys()]) {
      this.settle(topic, ({ reject }) => reject(rejection({ ...problem, topic })));
    }
  }

  private report(problem: Problem): void {
    if (this.problems.size) this.call(this.problems, problem);
    else console.warn(`fanfare: ${problem.error}: ${problem.message}`);
    if (problem.topic !== undefined) this.settle(problem.topic, ({ reject }) => reject(rejection(problem)));
  }

  private receive(frame: Frame, before: string | undefined): void {
    // `$sys` has no `event_id`, because it has no position in the log.
    if (frame.type !== "gap" && frame.event_id && !this.isNew(frame.event_id)) return;
    this.waiting.push({ frame, before, number: this.count++ });
    this.deliver();
  }

  private isNew(id: string): boolean {
    if (this.known.has(id)) return false;
    this.known.add(id);
    // A set iterates in the order of insertion, so its first element is the oldest.
    if (this.known.size > KNOWN_IDS) this.known.delete(this.known.values().next().value!);
    return true;
  }

  /** Delivers the waiting frames, up to the next gap that is handled asynchronously. */
  private deliver(): void {
    for (let entry; !this.handlingGap && (entry = this.waiting[0]);) {
      if (entry.frame.type === "gap") {
        this.handleGap(entry.frame);
        continue;
      }
      this.waiting.shift();
      this.delivering = entry;
      const { frame } = entry;
      const results = [...this.call(this.types.get(frame.type), frame), ...this.call(this.all, frame as any)];
      if (results.length) this.abandoned = undefined;
    }
  }

  /** Waits until all readers have processed the events before a gap, for at most `gapTimeout`. Then calls `onGap`. */
  private handleGap(frame: Frame): void {
    this.handlingGap = true;
    const behind = this.gaps.size ? [...this.readers].filter(({ idle }) => !idle) : [];
    if (!behind.length) return this.callGap(frame);
    const read = Promise.all(behind.map((reader) => reader.settled()));
    const discard = () => { for (const reader of behind) reader.discard(); };
    void this.limited("reading events() up to a gap", read, discard).then(() => {
      this.callGap(frame);
      this.deliver();
    });
  }

  private callGap(frame: Frame): void {
    const abort = new AbortController();
    const results = this.call(this.gaps, { ...frame as unknown as Gap, signal: abort.signal }, "onGap", abort.signal);
    const pending = results.filter((result) => result instanceof Promise);
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

  /** Resolves when `work` settles, or after `gapTimeout`. The latter calls `onTimeout`, and reports a problem. */
  private limited(
    name: string, work: Promise<unknown>, onTimeout: () => void, abort = new AbortController(),
  ): Promise<unknown> {
    return within(this.options.gapTimeout ?? 30_000, name, abort, () => work, true).catch((cause: Error) => {
      onTimeout();
      this.report({ error: "gap_timeout", message: `${cause.message}: events are delivered again`, cause });
    });
  }

  /** Calls each handler. A handler that throws, or whose promise rejects, is reported, and the others are called. */
  private call<T>(
    handlers: Set<Handler<T>> | undefined, value: T, name = "a handler", ignoreFailures?: AbortSignal,
  ): unknown[] {
    const failed = (cause: unknown) => { if (!ignoreFailures?.aborted) this.handlerError(name, cause, handlers); };
    return [...handlers ?? []].map((handler) => {
      try {
        const result = handler(value) as PromiseLike<unknown> | undefined;
        return typeof result?.then === "function" ? Promise.resolve(result).catch(failed) : result;
      } catch (cause) {
        return failed(cause);
      }
    });
  }

  private handlerError(name: string, cause: unknown, handlers: unknown): void {
    // The failure of an `onProblem` handler is not reported to `onProblem`, which would recurse forever.
    if (handlers !== this.problems && this.problems.size) {
      this.call(this.problems, { error: "handler", message: `${name} failed: ${text(cause)}`, cause });
    // In a page, an uncaught error reaches the page's error reporting. Elsewhere it would end the process.
    } else if (globalThis.document) queueMicrotask(() => { throw cause; });
    else console.error(`fanfare: ${name} failed:`, cause);
  }
}

/** Returns a client that connects to a hub. */
export function connect<Events extends object = EventMap>(options: Options): Client<Events> {
  return new Client<Events>(options).open();
}
