// Events that are queued until the application reads them.

import type { Frame } from "./types.js";

/** A frame on its way to the application. */
export interface Entry {
  frame: Frame;
  /** The cursor before the frame. */
  before: string | undefined;
  /** Ascending number of the frame, for comparing the order of two entries. */
  number: number;
}

/** The iterator that `events()` returns. */
export class Reader implements AsyncIterableIterator<any> {
  readonly queue: Entry[] = [];
  private readonly pendingReads: ((result: IteratorResult<unknown>) => void)[] = [];
  private done = false;
  /** The application still processes the event that it read last. */
  private working = false;
  private whenIdle: (() => void) | undefined;

  constructor(private readonly off: () => void, private readonly left: (reader: Reader) => void) {}

  push(entry: Entry): void {
    const resolve = this.pendingReads.shift();
    if (!resolve) return void this.queue.push(entry);
    this.working = true;
    resolve({ value: entry.frame, done: false });
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
    return new Promise((resolve) => this.pendingReads.push(resolve));
  }

  return(): Promise<IteratorResult<any>> {
    this.end();
    this.left(this);
    this.discard();
    return Promise.resolve({ value: undefined, done: true });
  }

  /** Ends the iterator. Queued events can still be read. */
  end(): void {
    this.done = true;
    this.off();
    for (const resolve of this.pendingReads.splice(0)) resolve({ value: undefined, done: true });
  }

  /** Drops the queued events, and returns their number. */
  discard(): number {
    this.working = false;
    this.whenIdle?.();
    return this.queue.splice(0).length;
  }

  get idle(): boolean { return !this.queue.length && !this.working; }

  /** Resolves when all events so far have been processed: the application reads the next one, or has left the loop. */
  settled(): Promise<void> { return this.idle ? Promise.resolve() : new Promise((done) => { this.whenIdle = done; }); }

  [Symbol.asyncIterator](): this { return this; }
}
