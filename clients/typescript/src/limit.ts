// Work with a time limit.

/**
 * The result of `work`, or a rejection once `abort` has fired: after `ms` milliseconds by itself. With `idle` the limit alone
 * does not keep a process alive (Node, Bun).
 */
export async function within<T>(
  ms: number, name: string, abort: AbortController, work: (signal: AbortSignal) => T | PromiseLike<T>, idle = false,
): Promise<T> {
  const { signal } = abort;
  const aborted = new Promise<never>((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
  // `work` may fail before anybody waits for this.
  aborted.catch(() => {});
  const timer: any = setTimeout(() => abort.abort(new Error(`${name} has not settled after ${ms / 1_000} s`)), ms);
  if (idle) timer.unref?.();
  try {
    return await Promise.race([work(signal), aborted]);
  } finally {
    clearTimeout(timer);
  }
}
