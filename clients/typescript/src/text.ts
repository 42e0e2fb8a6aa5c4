// What was thrown, as text. JavaScript throws anything, also what has no text.

export function text(cause: unknown): string {
  try {
    return String(cause);
  } catch {
    return "an object without a text";
  }
}
