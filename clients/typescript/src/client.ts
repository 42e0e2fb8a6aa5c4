// What the application holds: hands out events in order, each once, and holds them back while a gap is mended.

import { Link } from "./link.js";
import { Shared } from "./share.js";
import type { AnyEvent, Cursor, EventMap, EventOf, FanfareEvent, Frame, Gap, Options, Problem, Source, State, TypeOf } from "./types.js";

type Handler<T> = (value: T) => unknown;
/** Takes a handler away again. */
export type Off = () => void;

/** How many of the newest events are known again. */
const KNOWN = 1_000;

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
  private readonly ends = new Set<() => void>();
  /** How often each topic is wanted. */
  private readonly topics = new Map<string, number>();
  private readonly known = new Set<string>();
  private readonly waiting: Frame[] = [];
  private mending = false;
  private current: State = { name: "closed", reason: "" };

  constructor(options: Options) {
    const sink = {
      frame: (frame: Frame) => this.receive(frame),
      state: (state: State) => {
        this.current = state;
        this.tell(this.states, state);
      },
      problem: (problem: Problem) => this.tell(this.problems, problem),
    };
    const locks = globalThis.navigator?.locks && globalThis.BroadcastChannel;
    this.source = options.share && locks ? new Shared(options, sink) : new Link(options, sink);
    for (const topic of options.topics ?? []) this.topics.set(topic, 1);
  }

  /** Connects, and stays connected until `close()`. */
  open(): this {
    this.source.open();
    return this;
  }

  /** Ends the connection. Handlers stay, and `open()` goes on where it was. */
  close(): void {
    this.source.close();
    for (const end of this.ends) end();
  }

  /** Tries at once, also after a refusal, with another token if one is given. */
  retry(token?: string): void { this.source.retry(token); }

  /** How the connection stands. The same object until it changes. */
  get state(): State { return this.current; }

  /** Where this client is. */
  get cursor(): Cursor { return { ...this.source.cursor }; }

  /** Calls `handler` with each event of a type, in order. */
  on<Type extends TypeOf<Events>>(type: Type, handler: Handler<EventOf<Events, Type>>): Off;
  on(type: string, handler: Handler<FanfareEvent>): Off;
  on(type: string, handler: Handler<any>): Off {
    let handlers = this.types.get(type);
    if (!handlers) this.types.set(type, handlers = new Set());
    return own(handlers, handler);
  }

  /** Calls `handler` with each event of any type, in order. */
  onAny(handler: Handler<AnyEvent<Events>>): Off { return own(this.all, handler); }

  /** Calls `handler` when history was lost. Events that follow wait until what it returns has settled. */
  onGap(handler: Handler<Gap>): Off { return own(this.gaps, handler); }

  /** Calls `handler` now and whenever the connection's state changes. */
  onState(handler: Handler<State>): Off {
    handler(this.current);
    return own(this.states, handler);
  }

  /** Calls `handler` with what the hub refused and what else went wrong without ending the connection. */
  onProblem(handler: Handler<Problem>): Off { return own(this.problems, handler); }

  /** Asks for the events of a topic, as long as at least one who asked has not taken it back. */
  subscribe(topic: string): Off {
    const wanted = this.topics.get(topic) ?? 0;
    this.topics.set(topic, wanted + 1);
    if (!wanted) this.source.subscribe(topic);
    let once = true;
    return () => {
      if (!once) return;
      once = false;
      const left = this.topics.get(topic)! - 1;
      if (left) return void this.topics.set(topic, left);
      this.topics.delete(topic);
      this.source.unsubscribe(topic);
    };
  }

  /** Events as they come, of one type or of all, until `close()`. What is not taken yet waits in memory. */
  events<Type extends TypeOf<Events>>(type: Type): AsyncIterableIterator<EventOf<Events, Type>>;
  events(): AsyncIterableIterator<AnyEvent<Events>>;
  events(type?: string): AsyncIterableIterator<any> {
    const queue: unknown[] = [];
    const takers: ((result: IteratorResult<unknown>) => void)[] = [];
    let done = false;
    const take = (value: unknown) => {
      const taker = takers.shift();
      if (taker) taker({ value, done: false });
      else queue.push(value);
    };
    const off = type === undefined ? this.onAny(take) : this.on(type, take);
    const end = () => {
      done = true;
      off();
      this.ends.delete(end);
      for (const taker of takers.splice(0)) taker({ value: undefined, done: true });
    };
    this.ends.add(end);
    return {
      next: () => queue.length
        ? Promise.resolve({ value: queue.shift(), done: false })
        : done ? Promise.resolve({ value: undefined, done: true }) : new Promise((taker) => takers.push(taker)),
      return: () => {
        end();
        queue.length = 0;
        return Promise.resolve({ value: undefined, done: true });
      },
      [Symbol.asyncIterator]() { return this; },
    };
  }

  [Symbol.asyncIterator](): AsyncIterableIterator<AnyEvent<Events>> { return this.events(); }

  private receive(frame: Frame): void {
    if (frame.type === "error") {
      const { error, details } = frame as { error?: string; details?: { message?: string } };
      return void this.tell(this.problems, { error: error ?? "error", message: details?.message ?? "" });
    }
    // What the hub tells of itself ($sys) has no place in the log.
    if (frame.type !== "gap" && frame.event_id && !this.isNew(frame.event_id)) return;
    this.waiting.push(frame);
    this.deliver();
  }

  private isNew(id: string): boolean {
    if (this.known.has(id)) return false;
    this.known.add(id);
    // A set remembers the order: its first is the oldest.
    if (this.known.size > KNOWN) this.known.delete(this.known.values().next().value!);
    return true;
  }

  /** Hands out what waits, up to the next gap whose mending takes time. */
  private deliver(): void {
    while (!this.mending && this.waiting.length) {
      const frame = this.waiting.shift()!;
      if (frame.type === "gap") {
        const mended = this.tell(this.gaps, frame as unknown as Gap).filter((result) => typeof (result as PromiseLike<unknown> | undefined)?.then === "function");
        if (!mended.length) continue;
        this.mending = true;
        void Promise.allSettled(mended).then((results) => {
          for (const result of results) if (result.status === "rejected") this.report("onGap", result.reason);
          this.mending = false;
          this.deliver();
        });
      } else {
        this.tell(this.types.get(frame.type), frame);
        this.tell(this.all, frame as unknown as AnyEvent<Events>);
      }
    }
  }

  /** Calls each handler; one that throws keeps nothing from the others. */
  private tell<T>(handlers: Set<Handler<T>> | undefined, value: T): unknown[] {
    return [...handlers ?? []].map((handler) => {
      try {
        return handler(value);
      } catch (cause) {
        return this.report("a handler", cause);
      }
    });
  }

  private report(who: string, cause: unknown): void {
    if (this.problems.size) this.tell(this.problems, { error: "handler", message: `${who} failed: ${cause}`, cause });
    else queueMicrotask(() => { throw cause; });
  }
}

/** Connects to a hub. */
export function connect<Events extends object = EventMap>(options: Options): Client<Events> {
  return new Client<Events>(options).open();
}
