// Starts the real program on a free port, and what a test needs to talk to it and to watch its page.

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
/** It bounds failures alone: a busy machine may need most of it. */
export const DEADLINE = 90_000;
const PROGRAM = resolve(process.env.FANFARE_BIN ?? join(ROOT, "target/debug/fanfare"));
const SECRET = "a secret that only the tests of the live page use";

/** What the program may inherit: nothing of the developer's own settings. */
const bare = { PATH: process.env.PATH, HOME: process.env.HOME, LANG: "C.UTF-8" };

/** One running hub. */
export class Hub {
  static async start(settings = {}, listen = "127.0.0.1:0") {
    const hub = new Hub();
    hub.settings = { SECRET_KEY: SECRET, ...settings };
    // Its own empty directory: a `.env` or fanfare.toml lying about must not count.
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
      assert.ok(this.child.exitCode === null || taken(), `the program ended:\n${this.output}`);
      return taken() || this.lines("curl ").length > 0;
    }, () => `what to do next on the program's output:\n${this.output}`);
    // After a restart, somebody's outgoing connection may have the port for a moment.
    if (taken()) return this.run(listen);
    this.origin = this.output.match(/https?:\/\/[\w.:-]+:\d+/)[0];
    // A secret that was made for this run signs only the tokens that were printed.
    const printed = this.output.match(/#token=([\w.-]+)/)?.[1];
    this.token = printed ?? this.token ?? await this.mint("--sub", "demo", "--publish", "--topics", "*");
  }

  /** The lines that the program printed to be pasted into a shell or a browser, by how they begin. */
  lines(beginning) {
    return this.output.split("\n").slice(0, -1).map((line) => line.trim()).filter((line) => line.startsWith(beginning));
  }

  pageUrl(token = this.token) { return `${this.origin}/#token=${token}`; }

  /** kill -9: no goodbye to anybody. */
  async kill() {
    this.child.kill("SIGKILL");
    await this.exited;
  }

  async restart() { await this.run(new URL(this.origin).host); }

  async end() {
    if (this.child.exitCode === null && this.child.signalCode === null) await this.kill();
    rmSync(this.directory, { recursive: true, force: true });
  }

  /** A token as the program's own command makes it. */
  async mint(...options) {
    const { stdout } = await promisify(execFile)(PROGRAM, ["token", ...options], {
      cwd: this.directory, env: { ...bare, ...this.settings },
    });
    return stdout.trim();
  }

  /** Adds an account that may publish, as its operator does. */
  async addUser(email, password) {
    const child = spawn(PROGRAM, ["user", "add", email, "--role", "publisher", "--password-stdin"], {
      cwd: this.directory, env: { ...bare, ...this.settings },
    });
    child.stdin.end(`${password}\n`);
    const [code] = await once(child, "exit");
    assert.equal(code, 0);
  }

  /** What a person gets who pastes lines into a shell where the program is at hand. */
  async paste(...lines) {
    const env = { ...bare, ...this.settings, PATH: `${dirname(PROGRAM)}:${bare.PATH}` };
    for (const [name, value] of Object.entries(env)) if (value === null) delete env[name];
    const { stdout } = await promisify(execFile)("sh", ["-e", "-c", lines.join("\n")], { cwd: this.directory, env });
    return stdout.trim();
  }

  /** A token with any claims, signed with the hub's secret (RFC 7515 with HS256). */
  sign(claims) {
    const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
    const signed = `${part({ alg: "HS256", typ: "JWT" })}.${part(claims)}`;
    return `${signed}.${createHmac("sha256", SECRET).update(signed).digest("base64url")}`;
  }

  /** Publishes an event; to everyone, unless it names an audience. */
  publish(event) { return this.post("/events", { audience: "everyone", ...event }); }

  /** In one request, so that nothing happens in between. */
  publishAll(events) { return this.post("/events/batch", { events: events.map((event) => ({ audience: "everyone", ...event })) }); }

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

/** Waits for a condition, looking again every few milliseconds; `what` says what never came. */
export async function until(condition, what, deadline = DEADLINE) {
  for (const end = Date.now() + deadline; Date.now() < end; await new Promise((done) => setTimeout(done, 10))) {
    const value = await condition();
    if (value) return value;
  }
  assert.fail(`waited ${deadline / 1000} s in vain for ${typeof what === "function" ? await what() : what}`);
}

/** The live page in a tab of its own, with what it sent and received on its sockets. */
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

  /** Waits until the page gives a reason of this form, which may be another one a moment later. */
  async reason(form) {
    await until(async () => form.test(await this.text("reason")), async () => `a reason like ${form}, but it is ${await this.text("reason")}`);
  }

  /** Waits until the page says that it is in a state, and returns its reason. */
  async state(name) {
    await this.page.locator(`body[data-state=${name}]`).waitFor({ state: "attached" });
    return this.text("reason");
  }

  /** Cuts the connection, which the page takes up again two seconds later: sooner than a busy machine may look. */
  async cut() {
    const state = await this.page.evaluate(() => {
      document.getElementById("cut").click();
      return document.body.dataset.state;
    });
    assert.equal(state, "offline");
  }

  text(id) { return this.page.locator(`#${id}`).textContent(); }
  click(id) { return this.page.locator(`#${id}`).click(); }

  /** Every row of the list, oldest first. */
  rows() {
    return this.page.$$eval("#events > li", (rows) => rows.reverse().map((row) => ({ ...row.dataset, text: row.textContent })));
  }

  /** The ids of the events in the list, oldest first. */
  async ids() { return (await this.rows()).filter(({ kind }) => kind === "event").map(({ eventId }) => eventId); }

  /** Waits until the list has an event, and returns its row. */
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
