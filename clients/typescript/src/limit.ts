// Work with a time limit.

/**
 * Resolves with the result of `work`, or rejects when `abort` fires.
 * `abort` fires after `ms` milliseconds at the latest.
 * With `idle` the timer does not keep the process alive (Node, Bun).
 */
export async function within<T>(
  ms: number, name: string, abort: AbortController, work: (signal: AbortSignal) => T | PromiseLike<T>, idle = false,
): Promise<T> {
  const { signal } = abort;
  const aborted = new Promise<never>((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
  // `work` may fail before `aborted` has a handler.
  aborted.catch(() => {});
  const timer: any = setTimeout(() => abort.abort(new Error(`${name} has not settled after ${ms / 1_000} s`)), ms);
  if (idle) timer.unref?.();
  try {
    return await Promise.race([work(signal), aborted]);
  } finally {
    clearTimeout(timer);
  }
}
