// Starts the hub on a free port, with helpers to use its API and its pages.

import assert from "node:assert/strict";
import { spawn, execFile } from "node:child_process";
import { createHmac } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { chromium } from "playwright-core";

export const ROOT = resolve(fileURLToPath(import.meta.url), "../../..");
/** The time limit of a failing test, in milliseconds. It is long, because a busy machine may need most of it. */
export const DEADLINE = 90_000;
const PROGRAM = resolve(process.env.FANFARE_BIN ?? join(ROOT, "target/debug/fanfare"));
const SECRET = "a secret that only the tests of the live page use";

/** The environment of the hub, without the developer's own settings. */
const bare = { PATH: process.env.PATH, HOME: process.env.HOME, LANG: "C.UTF-8" };

/** One running hub. */
export class Hub {
  static async start(settings = {}, listen = "127.0.0.1:0") {
    const hub = new Hub();
    hub.settings = { SECRET_KEY: SECRET, ...settings };
    // An empty directory, so that no `.env` or fanfare.toml is read.
    hub.directory = mkdtempSync(join(tmpdir(), "fanfare-e2e-"));
    await hub.run(listen);
    return hub;
  }

  async run(listen) {
    this.output = "";
    const environment = Object.fromEntries(Object.entries({ ...bare, ...this.settings }).filter(([, v]) => v !== null));
    this.child = spawn(PROGRAM, ["serve", "--listen", listen], { cwd: this.directory, env: environment });
    this.exited = once(this.child, "exit");
    this.child.stdout.on("data", (data) => { this.output += data; });
    this.child.stderr.on("data", (data) => { this.output += data; });
    const taken = () => this.child.exitCode !== null && this.output.includes("in use");
    await until(() => {
      assert.ok(this.child.exitCode === null || taken(), `the program exited:\n${this.output}`);
      return taken() || this.lines("curl ").length > 0;
    }, () => `the startup message in the output:\n${this.output}`);
    // After a restart an outgoing connection of another process may use the port for a moment.
    if (taken()) return this.run(listen);
    this.origin = this.output.match(/https?:\/\/[\w.:-]+:\d+/)[0];
    // If the hub generated its secret, only the printed token is valid.
    const printed = this.output.match(/#token=([\w.-]+)/)?.[1];
    this.token = printed ?? this.token ?? await this.mint("--sub", "demo", "--publish", "--topics", "*");
  }

  /** Returns the printed lines with a prefix, such as commands and addresses to paste. */
  lines(beginning) {
    return this.output.split("\n").slice(0, -1).map((line) => line.trim()).filter((line) => line.startsWith(beginning));
  }

  pageUrl(token = this.token) { return `${this.origin}/#token=${token}`; }

  /** Kills the hub (SIGKILL), without a graceful shutdown. */
  async kill() {
    this.child.kill("SIGKILL");
    await this.exited;
  }

  async restart() { await this.run(new URL(this.origin).host); }

  async end() {
    if (this.child.exitCode === null && this.child.signalCode === null) await this.kill();
    rmSync(this.directory, { recursive: true, force: true });
  }

  /** Returns a token, created with `fanfare token`. */
  async mint(...options) {
    const { stdout } = await promisify(execFile)(PROGRAM, ["token", ...options], {
      cwd: this.directory, env: { ...bare, ...this.settings },
    });
    return stdout.trim();
  }

  /** Adds an account that may publish, with `fanfare user`. */
  async addUser(email, password) {
    const child = spawn(PROGRAM, ["user", "add", email, "--role", "publisher", "--password-stdin"], {
      cwd: this.directory, env: { ...bare, ...this.settings },
    });
    child.stdin.end(`${password}\n`);
    const [code] = await once(child, "exit");
    assert.equal(code, 0);
  }

  /** Runs lines in a shell that has the program on its PATH, and returns their output. */
  async paste(...lines) {
    const env = { ...bare, ...this.settings, PATH: `${dirname(PROGRAM)}:${bare.PATH}` };
    for (const [name, value] of Object.entries(env)) if (value === null) delete env[name];
    const { stdout } = await promisify(execFile)("sh", ["-e", "-c", lines.join("\n")], { cwd: this.directory, env });
    return stdout.trim();
  }

  /** Returns a token with any claims, signed with the hub's secret (RFC 7515 with HS256). */
  sign(claims) {
    const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
    const signed = `${part({ alg: "HS256", typ: "JWT" })}.${part(claims)}`;
    return `${signed}.${createHmac("sha256", SECRET).update(signed).digest("base64url")}`;
  }

  /** Publishes an event. The default audience is everyone. */
  publish(event) { return this.post("/events", { audience: "everyone", ...event }); }

  /** Publishes events in one request, so that no other event is between them. */
  publishAll(events) {
    return this.post("/events/batch", { events: events.map((event) => ({ audience: "everyone", ...event })) });
  }

  async post(path, body) {
    const response = await fetch(`${this.origin}${path}`, {
      method: "POST", body: JSON.stringify(body),
      headers: { Authorization: `Bearer ${this.token}`, "Content-Type": "application/json" },
    });
    assert.ok(response.ok, `${response.status} ${await response.clone().text()}`);
    return response.json();
  }
}

export function browser() {
  return chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
      "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  });
}

/** Waits for a condition, which is checked every 10 ms. `what` describes it in the failure message. */
export async function until(condition, what, deadline = DEADLINE) {
  for (const end = Date.now() + deadline; Date.now() < end; await new Promise((done) => setTimeout(done, 10))) {
    const value = await condition();
    if (value) return value;
  }
  assert.fail(`timed out after ${deadline / 1000} s: ${typeof what === "function" ? await what() : what}`);
}

/** The live page in its own tab, with its sockets and the messages that it sent. */
export class LivePage {
  static async open(browser, url, { context: options = {}, before = async () => {} } = {}) {
    const live = new LivePage();
    live.context = await browser.newContext(options);
    live.page = await live.context.newPage();
    Object.assign(live, { sockets: [], sent: [], errors: [] });
    live.page.on("websocket", (socket) => {
      live.sockets.push(socket.url());
      socket.on("framesent", ({ payload }) => live.sent.push(JSON.parse(payload)));
    });
    live.page.on("pageerror", (error) => live.errors.push(error));
    live.page.setDefaultTimeout(DEADLINE);
    await before(live.page);
    await live.page.goto(url);
    return live;
  }

  /** Waits until the page displays a reason that matches `pattern`. */
  async reason(pattern) {
    const matches = async () => pattern.test(await this.text("reason"));
    await until(matches, async () => `a reason like ${pattern}, not ${await this.text("reason")}`);
  }

  /** Waits until the page is in a state, and returns its reason. */
  async state(name) {
    await this.page.locator(`body[data-state=${name}]`).waitFor({ state: "attached" });
    return this.text("reason");
  }

  /**
   * Disconnects the page, which reconnects after two seconds. The state is read in the same call, because a busy
   * machine may be slower than that.
   */
  async cut() {
    const state = await this.page.evaluate(() => {
      document.getElementById("cut").click();
      return document.body.dataset.state;
    });
    assert.equal(state, "offline");
  }

  text(id) { return this.page.locator(`#${id}`).textContent(); }
  click(id) { return this.page.locator(`#${id}`).click(); }

  /** Returns the rows of the list, oldest first. */
  rows() {
    const read = (rows) => rows.reverse().map((row) => ({ ...row.dataset, text: row.textContent }));
    return this.page.$$eval("#events > li", read);
  }

  /** Returns the IDs of the listed events, oldest first. */
  async ids() { return (await this.rows()).filter(({ kind }) => kind === "event").map(({ eventId }) => eventId); }

  /** Waits until an event is listed, and returns its row. */
  async event(id) {
    const row = this.page.locator(`li[data-event-id=${JSON.stringify(id)}]`);
    await row.waitFor({ state: "attached" });
    return row;
  }

  async close() {
    await this.context.close();
    assert.deepEqual(this.errors, [], "the page threw nothing");
  }
}
