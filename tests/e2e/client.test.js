// The TypeScript client, as built, in a real browser against the real program.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { DEADLINE, Hub, ROOT, browser, until } from "./fanfare.js";

const PACKAGE = join(ROOT, "clients/typescript");
const CLIENT = readFileSync(join(PACKAGE, "dist/index.js"));
let chromium;

before(async () => { chromium = await browser(); });
after(() => chromium?.close());

/** A tab of the hub's site that has the client and nothing else. */
class Tab {
  static async open(context, hub, script = CLIENT) {
    const tab = new Tab();
    tab.page = await context.newPage();
    Object.assign(tab, { sockets: [], sent: [], errors: [] });
    tab.page.on("pageerror", (error) => tab.errors.push(error));
    tab.page.on("websocket", (socket) => {
      tab.sockets.push(new URL(socket.url()));
      socket.on("framesent", ({ payload }) => tab.sent.push(JSON.parse(payload)));
    });
    await tab.page.route("**/client.mjs", (route) => route.fulfill({ contentType: "text/javascript", body: script }));
    // Something small that really comes from the hub: a page that came from nowhere may not connect to this machine.
    await tab.page.goto(`${hub.origin}/health/live`);
    return tab;
  }

  /** Connects, and keeps all that comes in `got`, `gaps` and `states`. `setup` runs before it opens. */
  async connect(options, tokens = async () => options.token) {
    await this.page.exposeFunction("nextToken", tokens);
    await this.page.evaluate(async (options) => {
      const { Client } = await import("/client.mjs");
      const { token, ...rest } = options;
      const client = new Client({ url: "/ws", getToken: (reason) => nextToken(reason), ...rest });
      Object.assign(window, { client, got: [], gaps: [], states: [], mend: undefined });
      client.onAny(({ event_id }) => { got.push(event_id); });
      client.onGap(({ reason }) => { gaps.push(reason); return new Promise((done) => { window.mend = done; }); });
      client.onState(({ name }) => { if (states.at(-1) !== name) states.push(name); });
      client.open();
    }, options);
  }

  get(name) { return this.page.evaluate((name) => window[name], name); }
  state() { return this.page.evaluate(() => client.state); }
  isState(name) { return until(async () => (await this.state()).name === name, async () => `${name}, but it is ${JSON.stringify(await this.state())}`); }
  has(id) { return until(async () => (await this.get("got")).includes(id), `the event ${id}`); }
}

/** Runs a test with a hub and a tab of it. */
function tab(name, settings, run) {
  test(name, async () => {
    const hub = await Hub.start(settings);
    const context = await chromium.newContext();
    try {
      const tab = await Tab.open(context, hub);
      await run(hub, tab, context);
      assert.deepEqual(tab.errors, [], "the page threw nothing");
    } finally {
      await context.close();
      await hub.end();
    }
  });
}

const note = (hub, id, more) => hub.publish({ type: "note", event_id: id, ...more });

tab("the first event", {}, async (hub, tab) => {
  await tab.connect({ token: hub.token, topics: ["a"] });
  await tab.isState("live");
  await note(hub, "e1");
  await note(hub, "e2", { audience: { topic: "a" } });
  await tab.has("e2");
  assert.deepEqual(await tab.get("got"), ["e1", "e2"]);
  assert.deepEqual(await tab.get("states"), ["closed", "connecting", "live"]);
  assert.ok(!tab.sockets[0].href.includes("token"), "the token is not in the URL");
});

tab("the server is killed and starts again: the gap is mended before what follows is handed out", {}, async (hub, tab) => {
  await tab.connect({ token: hub.token });
  await tab.isState("live");
  await note(hub, "before");
  await tab.has("before");
  await hub.kill();
  await tab.isState("resuming");
  await hub.restart();
  await note(hub, "after");
  await tab.isState("live");
  await until(async () => (await tab.get("gaps")).length === 1, "the gap");
  await note(hub, "last");
  await until(() => tab.page.evaluate(() => client.cursor.lastEventId === "last"), "the last to have come");
  assert.deepEqual([await tab.get("gaps"), await tab.get("got")], [["reset"], ["before"]], "held back");
  await tab.page.evaluate(() => mend());
  await tab.has("last");
  assert.deepEqual(await tab.get("got"), ["before", "after", "last"]);
});

tab("without a network it is offline, and with one it is back at once", {}, async (hub, tab, context) => {
  await tab.connect({ token: hub.token });
  await tab.isState("live");
  await note(hub, "e1");
  await tab.has("e1");
  await context.setOffline(true);
  await tab.isState("offline");
  await note(hub, "e2");
  await context.setOffline(false);
  await tab.has("e2");
  await tab.isState("live");
  assert.deepEqual(await tab.get("got"), ["e1", "e2"]);
  assert.equal((await tab.state()).resumed, true);
});

tab("a token that ends is renewed without a new socket", { FANFARE_TOKEN_WARNING: "7s" }, async (hub, tab) => {
  const sign = (secs) => hub.sign({ sub: "ann", iat: Math.floor(Date.now() / 1000), exp: Math.floor(Date.now() / 1000) + secs });
  const asked = [];
  await tab.connect({}, async (reason) => { asked.push(reason); return sign(asked.length === 1 ? 8 : 600); });
  await tab.isState("live");
  await until(() => asked.length === 2, "a newer token to be asked for");
  await until(() => tab.sent.some(({ type }) => type === "auth"), "it to be shown");
  const ended = Date.now() + 9_000;
  await until(() => Date.now() > ended, "the first token to have ended");
  await note(hub, "e1");
  await tab.has("e1");
  assert.deepEqual([asked, tab.sockets.length], [["connect", "expiring"], 1]);
});

tab("what an operator ended stays ended", {}, async (hub, tab) => {
  await tab.connect({ token: hub.token });
  await tab.isState("live");
  const { connectionId } = await tab.page.evaluate(() => client.cursor);
  const admin = await hub.mint("--sub", "root", "--admin");
  const answer = await fetch(`${hub.origin}/connections/${connectionId}`, { method: "DELETE", headers: { Authorization: `Bearer ${admin}` } });
  assert.ok(answer.ok, String(answer.status));
  await tab.isState("refused");
  assert.equal((await tab.state()).code, 4003);
  await tab.page.evaluate(() => client.retry());
  await tab.isState("live");
  assert.equal(tab.sockets.length, 2, "and not sooner");
});

test("two tabs share a socket, and when the one that has it is closed the other goes on where it was", async () => {
  const hub = await Hub.start();
  const context = await chromium.newContext();
  try {
    const tabs = [await Tab.open(context, hub), await Tab.open(context, hub)];
    for (const tab of tabs) {
      await tab.connect({ token: hub.token, share: true });
      await tab.isState("live");
    }
    const [first, second] = tabs;
    assert.deepEqual([first.sockets.length, second.sockets.length], [1, 0]);
    await second.page.evaluate(() => { client.subscribe("b"); });
    await until(() => first.sent.some(({ topic }) => topic === "b"), "the other's topic to be asked for");
    await note(hub, "e1", { audience: { topic: "b" } });
    for (const tab of tabs) await tab.has("e1");

    let count = 0;
    let stop = false;
    const publishing = (async () => { while (!stop) await note(hub, `n-${count++}`); })();
    await second.has("n-20");
    await first.page.close();
    await until(() => second.sockets.length === 1, "the other's own socket");
    const then = count;
    await until(() => count > then + 20, "events after it");
    stop = true;
    await publishing;
    await note(hub, "e2", { audience: { topic: "b" } });
    await second.has("e2");
    assert.deepEqual(await second.get("got"), ["e1", ...Array.from({ length: count }, (_, n) => `n-${n}`), "e2"]);
    assert.deepEqual(second.errors, []);
  } finally {
    await context.close();
    await hub.end();
  }
});

test("workers are replaced under load: a page that counts loses nothing and sees nothing twice", async () => {
  const redis = await Redis.start();
  const hub = await Hub.start({ REDIS_URL: redis.url, FANFARE_WORKERS: "2", FANFARE_DRAIN_TIMEOUT: "10s" });
  const context = await chromium.newContext();
  try {
    const tab = await Tab.open(context, hub);
    await tab.connect({ token: hub.token });
    await tab.isState("live");
    let count = 0;
    let stop = false;
    const publishing = (async () => {
      while (!stop) {
        // A worker that ends may leave a request without an answer: the same event again is the same event.
        await note(hub, `n-${count}`).then(() => count++, () => {});
      }
    })();
    await tab.has("n-50");
    hub.child.kill("SIGHUP");
    await until(() => tab.sockets.length > 1, "the page to be sent elsewhere", 2 * DEADLINE);
    const then = count;
    await until(() => count > then + 200, "events after it");
    stop = true;
    await publishing;
    await tab.has(`n-${count - 1}`);
    assert.deepEqual(await tab.get("got"), Array.from({ length: count }, (_, n) => `n-${n}`));
    assert.deepEqual(await tab.get("gaps"), []);
  } finally {
    await context.close();
    await hub.end();
    await redis.end();
  }
});

describe("React", () => {
  /** An application that lists events, in strict mode, with its server's part. */
  const APPLICATION = `
    import { StrictMode, useState } from "react";
    import { createRoot } from "react-dom/client";
    import { FanfareProvider, useConnection, useEvent, useTopic } from "fanfare-client/react";
    function List() {
      const [ids, setIds] = useState([]);
      const { name } = useConnection();
      useTopic("a");
      useEvent("note", ({ event_id }) => setIds((ids) => [...ids, event_id]));
      return <><b id="state">{name}</b><i id="ids">{ids.join()}</i></>;
    }
    export function run(token) {
      const root = createRoot(document.body.appendChild(document.createElement("div")));
      root.render(<StrictMode><FanfareProvider url="/ws" token={token}><List /></FanfareProvider></StrictMode>);
      return root;
    }`;

  test("hooks in strict mode: each event once, and nothing left behind", async () => {
    const { build } = createRequire(join(PACKAGE, "package.json"))("esbuild");
    const { outputFiles: [bundle] } = await build({
      stdin: { contents: APPLICATION, resolveDir: PACKAGE, loader: "jsx" }, bundle: true, write: false, format: "esm", jsx: "automatic",
      define: { "process.env.NODE_ENV": '"development"' },
    });
    const hub = await Hub.start();
    const context = await chromium.newContext();
    try {
      const tab = await Tab.open(context, hub, bundle.text);
      await tab.page.evaluate(async (token) => { window.root = (await import("/client.mjs")).run(token); }, hub.token);
      await tab.page.locator("#state", { hasText: "live" }).waitFor();
      await note(hub, "e1");
      await note(hub, "e2", { audience: { topic: "a" } });
      await tab.page.locator("#ids", { hasText: "e1,e2" }).waitFor();
      assert.equal(await tab.page.locator("#ids").textContent(), "e1,e2");
      const connections = async () => (await (await fetch(`${hub.origin}/ws/health`)).json()).connections.total;
      await until(async () => await connections() === 1, "one connection");
      await tab.page.evaluate(() => root.unmount());
      await until(async () => await connections() === 0, "no connection");
      assert.deepEqual(tab.errors, []);
    } finally {
      await context.close();
      await hub.end();
    }
  });

  test("on the server it renders without a socket", async () => {
    const require = createRequire(join(PACKAGE, "package.json"));
    const { createElement } = require("react");
    const { renderToString } = require("react-dom/server");
    const { FanfareProvider, useConnection } = require("./dist/react.cjs");
    const State = () => createElement("b", null, useConnection().name);
    assert.equal(renderToString(createElement(FanfareProvider, { url: "/ws", token: "t" }, createElement(State))), "<b>connecting</b>");
  });
});

/** A Redis of a test's own. */
class Redis {
  static async start() {
    const redis = new Redis();
    // Below the ports that the system gives to outgoing connections.
    const port = 29_600 + Math.floor(Math.random() * 2_400);
    redis.url = `redis://127.0.0.1:${port}`;
    redis.directory = mkdtempSync(join(tmpdir(), "fanfare-redis-"));
    redis.child = spawn("redis-server", ["--port", String(port), "--bind", "127.0.0.1", "--save", ""], { cwd: redis.directory });
    let output = "";
    redis.child.stdout.on("data", (data) => { output += data; });
    const ended = () => redis.child.exitCode !== null;
    await until(() => ended() || output.includes("Ready to accept connections"), () => `Redis:\n${output}`);
    if (!ended()) return redis;
    assert.match(output, /in use/);
    rmSync(redis.directory, { recursive: true, force: true });
    return Redis.start();
  }

  async end() {
    this.child.kill("SIGKILL");
    await once(this.child, "exit");
    rmSync(this.directory, { recursive: true, force: true });
  }
}
