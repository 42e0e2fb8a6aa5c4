// Events that wait until an application takes them.

import type { Frame } from "./types.js";

/** A frame on its way to the application. */
export interface Entry {
  frame: Frame;
  /** The cursor before it. */
  before: string | undefined;
  /** Counts frames. */
  number: number;
}

/** What `events()` returns. */
export class Reader implements AsyncIterableIterator<any> {
  readonly queue: Entry[] = [];
  private readonly takers: ((result: IteratorResult<unknown>) => void)[] = [];
  private done = false;
  /** The application still works on what it took last. */
  private working = false;
  private whenIdle: (() => void) | undefined;

  constructor(private readonly off: () => void, private readonly left: (reader: Reader) => void) {}

  push(entry: Entry): void {
    const taker = this.takers.shift();
    if (!taker) return void this.queue.push(entry);
    this.working = true;
    taker({ value: entry.frame, done: false });
  }

  next(): Promise<IteratorResult<any>> {
    this.working = false;
    const entry = this.queue.shift();
    if (entry) {
      this.working = true;
      return Promise.resolve({ value: entry.frame, done: false });
    }
    this.whenIdle?.();
    if (this.done) return Promise.resolve({ value: undefined, done: true });
    return new Promise((taker) => this.takers.push(taker));
  }

  return(): Promise<IteratorResult<any>> {
    this.end();
    this.left(this);
    this.discard();
    return Promise.resolve({ value: undefined, done: true });
  }

  /** Nothing more comes. What waits can still be taken. */
  end(): void {
    this.done = true;
    this.off();
    for (const taker of this.takers.splice(0)) taker({ value: undefined, done: true });
  }

  /** Drops what waits, and returns how much that was. */
  discard(): number {
    this.working = false;
    this.whenIdle?.();
    return this.queue.splice(0).length;
  }

  get idle(): boolean { return !this.queue.length && !this.working; }

  /** Resolves when everything that came so far has been dealt with: the application asks for more, or has left. */
  settled(): Promise<void> { return this.idle ? Promise.resolve() : new Promise((done) => { this.whenIdle = done; }); }

  [Symbol.asyncIterator](): this { return this; }
}
