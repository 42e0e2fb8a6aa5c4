// A source that is loaded on demand. Calls made while it loads are queued, and made in order once it is loaded.

import type { Cursor, Source } from "./types.js";

export class Later implements Source {
  private source: Source | undefined;
  private readonly calls: ((source: Source) => void)[] = [];

  constructor(loading: Promise<Source>, private readonly first: Cursor = {}) {
    void loading.then((source) => {
      this.source = source;
      for (const call of this.calls.splice(0)) call(source);
    });
  }

  get cursor(): Cursor { return this.source?.cursor ?? this.first; }
  open(): void { this.call((source) => source.open()); }
  close(): void { this.call((source) => source.close()); }
  subscribe(topic: string): void { this.call((source) => source.subscribe(topic)); }
  unsubscribe(topic: string): void { this.call((source) => source.unsubscribe(topic)); }
  retry(token?: string): void { this.call((source) => source.retry(token)); }

  private call(call: (source: Source) => void): void {
    if (this.source) call(this.source);
    else this.calls.push(call);
  }
}
