// Formats a thrown value. JavaScript can throw any value, including objects that cannot be converted to a string.

export function text(cause: unknown): string {
  try {
    return String(cause);
  } catch {
    return "an object without a string form";
  }
}
