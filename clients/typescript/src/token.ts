// What the client knows of tokens: their form, and whose they are. It verifies nothing; the hub does.

/** The user that a token names (`sub`), if it can be read. */
export function userOf(token: string | undefined): string | undefined {
  try {
    const claims = atob(token!.split(".")[1]!.replace(/-/g, "+").replace(/_/g, "/"));
    const { sub } = JSON.parse(new TextDecoder().decode(Uint8Array.from(claims, (char) => char.charCodeAt(0))));
    return sub === undefined || sub === null ? undefined : String(sub);
  } catch {
    return undefined;
  }
}

/** A token in the form of a JWT. What it is instead is never printed: it may be a secret all the same. */
export function checked(token: unknown, source: string): string {
  const text = typeof token === "string" ? token.trim() : "";
  if (/^[\w-]+\.[\w-]+\.[\w-]+$/.test(text)) return text;
  const found = typeof token === "string" ? `${token.length} characters of another form` : token === null ? "null" : typeof token;
  throw new TypeError(`${source} no JWT (three parts joined by dots) but ${found}`);
}
