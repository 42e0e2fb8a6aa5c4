// Reads the form and the user of a token. The client verifies no signature; the hub does.

/** Returns the user of a token (`sub`), or undefined if the token cannot be read or has none. */
export function userOf(token: string | undefined): string | undefined {
  try {
    const claims = atob(token!.split(".")[1]!.replace(/-/g, "+").replace(/_/g, "/"));
    const { sub } = JSON.parse(new TextDecoder().decode(Uint8Array.from(claims, (char) => char.charCodeAt(0))));
    return sub === undefined || sub === null ? undefined : String(sub);
  } catch {
    return undefined;
  }
}

/**
 * Returns `token` without white space around it.
 *
 * @throws {TypeError} If it is not a JWT. The message never contains the value, because it may be a secret.
 */
export function checked(token: unknown, source: string): string {
  const text = typeof token === "string" ? token.trim() : "";
  if (/^[\w-]+\.[\w-]+\.[\w-]+$/.test(text)) return text;
  const kind = token === null ? "null" : typeof token;
  const found = typeof token === "string" ? `a string of ${token.length} characters` : kind;
  throw new TypeError(`${source} is not a JWT (three parts separated by dots): ${found}`);
}
