// The built TypeScript client in a real browser, against the hub.

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
const SHARE = readFileSync(join(PACKAGE, "dist/share.js"));
let chromium;

before(async () => { chromium = await browser(); });
after(() => chromium?.close());

/** A tab of the hub's site that loads only the client. */
class Tab {
  static async open(context, hub, script = CLIENT) {
    const tab = new Tab();
    tab.page = await context.newPage();
    Object.assign(tab, { sockets: [], sent: [], received: [], errors: [] });
    tab.page.on("pageerror", (error) => tab.errors.push(error));
    tab.page.on("websocket", (socket) => {
      tab.sockets.push(new URL(socket.url()));
      socket.on("framesent", ({ payload }) => tab.sent.push(JSON.parse(payload)));
      socket.on("framereceived", ({ payload }) => tab.received.push(JSON.parse(payload)));
    });
    await tab.page.route("**/client.mjs", (route) => route.fulfill({ contentType: "text/javascript", body: script }));
    await tab.page.route("**/share.js", (route) => route.fulfill({ contentType: "text/javascript", body: SHARE }));
    // A page of the hub's own site, because Chromium blocks connections of other pages to the local machine.
    await tab.page.goto(`${hub.origin}/health/live`);
    return tab;
  }

  /** Connects, and collects the output of the client in `got`, `gaps`, `states` and `problems`. */
  async connect(options, tokens = async () => options.token) {
    await this.page.exposeFunction("nextToken", tokens);
    await this.page.evaluate(async (options) => {
      const { Client } = await import("/client.mjs");
      const { token, ...rest } = options;
      const client = new Client({ url: "/ws", getToken: (reason) => nextToken(reason), ...rest });
      Object.assign(window, { client, got: [], gaps: [], states: [], problems: [], settle: undefined });
      client.onProblem(({ cause, ...problem }) => { problems.push(problem); });
      client.onAny(({ event_id }) => { got.push(event_id); });
      client.onGap(({ reason }) => { gaps.push(reason); return new Promise((done) => { window.settle = done; }); });
      client.onState(({ name }) => { if (states.at(-1) !== name) states.push(name); });
      client.open();
    }, options);
  }

  get(name) { return this.page.evaluate((name) => window[name], name); }
  state() { return this.page.evaluate(() => client.state); }
  isState(name) {
    const matches = async () => (await this.state()).name === name;
    return until(matches, async () => `the state ${name}, not ${JSON.stringify(await this.state())}`);
  }
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

tab("after a crash of the hub, events after the gap wait until onGap has settled", {}, async (hub, tab) => {
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
  await until(() => tab.received.some(({ event_id }) => event_id === "last"), "the last event to arrive");
  assert.deepEqual([await tab.get("gaps"), await tab.get("got")], [["reset"], ["before"]], "events after the gap wait");
  await tab.page.evaluate(() => settle());
  await tab.has("last");
  assert.deepEqual(await tab.get("got"), ["before", "after", "last"]);
});

tab("a client is offline without a network, and resumes when the network returns", {}, async (hub, tab, context) => {
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

tab("an expiring token is renewed on the same socket", { FANFARE_TOKEN_WARNING: "7s" }, async (hub, tab) => {
  const now = () => Math.floor(Date.now() / 1000);
  const sign = (secs) => hub.sign({ sub: "ann", iat: now(), exp: now() + secs });
  const asked = [];
  await tab.connect({}, async (reason) => { asked.push(reason); return sign(asked.length === 1 ? 8 : 600); });
  await tab.isState("live");
  await until(() => asked.length === 2, "getToken to be called again");
  await until(() => tab.sent.some(({ type }) => type === "auth"), "the newer token to be sent");
  const ended = Date.now() + 9_000;
  await until(() => Date.now() > ended, "the first token to expire");
  await note(hub, "e1");
  await tab.has("e1");
  assert.deepEqual([[...asked], tab.sockets.length], [["connect", "expiring"], 1]);
});

tab("a client that an operator disconnects does not reconnect by itself", {}, async (hub, tab) => {
  await tab.connect({ token: hub.token });
  await tab.isState("live");
  const { connectionId } = await tab.page.evaluate(() => client.cursor);
  const admin = await hub.mint("--sub", "root", "--admin");
  const headers = { Authorization: `Bearer ${admin}` };
  const response = await fetch(`${hub.origin}/connections/${connectionId}`, { method: "DELETE", headers });
  assert.ok(response.ok, String(response.status));
  await tab.isState("refused");
  assert.equal((await tab.state()).code, 4003);
  await tab.page.evaluate(() => client.retry());
  await tab.isState("live");
  assert.equal(tab.sockets.length, 2, "only retry() opened another socket");
});

test("two tabs share a socket, and when the leader is closed the other tab resumes", async () => {
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
    await until(() => first.sent.some(({ topic }) => topic === "b"), "the leader to subscribe for the other tab");
    await note(hub, "e1", { audience: { topic: "b" } });
    for (const tab of tabs) await tab.has("e1");

    let count = 0;
    let stop = false;
    const publishing = (async () => { while (!stop) await note(hub, `n-${count++}`); })();
    await second.has("n-20");
    await first.page.close();
    await until(() => second.sockets.length === 1, "a socket of the other tab");
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

/** Runs a test with tabs of one browser that share a socket by user. */
function sharing(name, users, run, settings = {}) {
  test(name, async () => {
    const hub = await Hub.start(settings);
    const context = await chromium.newContext();
    try {
      const tabs = [];
      for (const sub of users) {
        const tab = await Tab.open(context, hub);
        tabs.push(tab);
        await tab.connect({ share: true }, async () => hub.mint("--sub", sub, "--topics", "*"));
        await tab.isState("live");
      }
      await run(hub, tabs, context);
      for (const tab of tabs) assert.deepEqual(tab.errors, [], "the page threw nothing");
    } finally {
      await context.close();
      await hub.end();
    }
  });
}

const USERS = ["alice", "bob", "alice"];
// attack: a tab of another user in the same browser joins the shared socket => each user has a socket of their own
sharing("tabs of two users in one browser receive only the events of their own user", USERS, async (hub, tabs) => {
  assert.deepEqual(tabs.map(({ sockets }) => sockets.length), [1, 1, 0]);
  for (const user of ["alice", "bob"]) await note(hub, `to-${user}`, { audience: { user } });
  await note(hub, "end");
  for (const tab of tabs) await tab.has("end");
  const received = await Promise.all(tabs.map((tab) => tab.get("got")));
  assert.deepEqual(received, [["to-alice", "end"], ["to-bob", "end"], ["to-alice", "end"]]);
  const names = await tabs[0].page.evaluate(async () => (await navigator.locks.query()).held.map(({ name }) => name));
  // A hash of the user and the hub, and the random name of a tab.
  const isHash = (name) => /^fanfare:[0-9a-f]{64}(:[0-9a-z]+)?$/.test(name);
  assert.ok(names.length >= 5 && names.every(isHash), `no user is in ${names}`);
});

const TWO_TABS = ["alice", "alice"];
// attack: the token of the leading tab is renewed for another user => it leaves the group, and another tab leads
sharing("a tab whose token is renewed for another user leaves the group", TWO_TABS, async (hub, [first, second]) => {
  const bob = await hub.mint("--sub", "bob");
  await first.page.evaluate((token) => { client.retry(token); }, bob);
  await until(() => first.sockets.length === 2 && second.sockets.length === 1, "a socket for each tab");
  for (const tab of [first, second]) await tab.isState("live");
  for (const user of ["alice", "bob"]) await note(hub, `to-${user}`, { audience: { user } });
  await note(hub, "end");
  for (const tab of [first, second]) await tab.has("end");
  assert.deepEqual([await first.get("got"), await second.get("got")], [["to-bob", "end"], ["to-alice", "end"]]);
});

tab("a page without permission to use locks has its own socket", {}, async (hub, tab) => {
  // As in a sandboxed frame, or if the browser stores no data for the site.
  await tab.page.evaluate(() => {
    LockManager.prototype.request = async () => { throw new DOMException("denied", "SecurityError"); };
  });
  await tab.connect({ token: hub.token, share: true, topics: ["a"] });
  await tab.isState("live");
  await note(hub, "e1", { audience: { topic: "a" } });
  await tab.has("e1");
  assert.deepEqual((await tab.get("problems")).map(({ error }) => error), ["share"]);
});

const UNCLONEABLE = "a leader recovers after getToken has thrown a value that cannot be cloned";
sharing(UNCLONEABLE, TWO_TABS, async (hub, [first, second]) => {
  await first.page.evaluate(() => {
    const again = window.nextToken;
    let calls = 0;
    window.nextToken = async (reason) => {
      if (!calls++) throw new Response("no session", { status: 401 });
      return again(reason);
    };
  });
  // With another secret the hub rejects the earlier token.
  await hub.kill();
  Object.assign(hub, { settings: { SECRET_KEY: "another secret that only the tests use" }, token: undefined });
  await hub.restart();
  for (const tab of [first, second]) {
    const reported = async () => (await tab.get("problems")).some(({ error }) => error === "token");
    await until(reported, "each tab to receive the problem");
    await tab.isState("live");
  }
  await note(hub, "e1");
  for (const tab of [first, second]) {
    await tab.page.evaluate(() => window.settle?.());
    await tab.has("e1");
  }
});

sharing("a client that is closed and opened again resumes", ["alice"], async (hub, [tab]) => {
  await note(hub, "e1");
  await tab.has("e1");
  await tab.page.evaluate(() => client.close());
  await note(hub, "e2");
  await tab.page.evaluate(() => { client.open(); });
  await tab.has("e2");
  assert.deepEqual([await tab.get("got"), await tab.get("gaps")], [["e1", "e2"], []]);
});

const THREE_TABS = ["alice", "alice", "alice"];
sharing("a blocked leader is replaced, and then follows", THREE_TABS, async (hub, [first, second, third]) => {
  let unblock;
  const blocked = new Promise((done) => { unblock = done; });
  await first.page.route("**/block", async (route) => { await blocked; await route.fulfill({ body: "" }); });
  await note(hub, "e1");
  for (const tab of [first, second, third]) await tab.has("e1");
  // A synchronous request blocks the tab until it is answered.
  const blocking = first.page.evaluate(() => {
    const request = new XMLHttpRequest();
    request.open("GET", "/block", false);
    request.send();
  });
  await until(async () => second.sockets.length + third.sockets.length > 0, "another tab to take over");
  await note(hub, "e2");
  for (const tab of [second, third]) await tab.has("e2");
  unblock();
  await blocking;
  // The tab received no events while it was blocked, so it receives either the event or a gap.
  const caughtUp = async () => (await first.get("gaps")).length || (await first.get("got")).includes("e2");
  await until(caughtUp, "the missed event or a gap");
  await first.page.evaluate(() => window.settle?.());
  await first.isState("live");
  await note(hub, "e3");
  for (const tab of [first, second, third]) await tab.has("e3");
  assert.equal(new Set(await second.get("got")).size, 3);
  assert.deepEqual([await second.get("got"), await third.get("got")], [["e1", "e2", "e3"], ["e1", "e2", "e3"]]);
  assert.ok(!(await first.get("states")).includes("refused"), String(await first.get("states")));
});

const SMALL_WINDOW = { FANFARE_WINDOW_EVENTS: "10" };
tab("a cursor that is saved while a gap is handled leads to the same gap", SMALL_WINDOW, async (hub, tab, context) => {
  await tab.connect({ token: hub.token });
  await tab.isState("live");
  await note(hub, "before");
  await tab.has("before");
  await context.setOffline(true);
  await tab.isState("offline");
  for (let n = 0; n < 30; n++) await note(hub, `n-${n}`);
  await context.setOffline(false);
  await until(async () => (await tab.get("gaps")).length === 1, "the gap");
  const cursor = await tab.page.evaluate(() => client.cursor);
  assert.deepEqual(await tab.get("got"), ["before"]);
  const again = await Tab.open(context, hub);
  await again.connect({ token: hub.token, cursor });
  await until(async () => (await again.get("gaps")).length === 1, "the gap in the page that resumes from the cursor");
  await again.page.evaluate(() => settle());
  await again.has("n-29");
});

tab("a topic that the token does not allow is reported, in the URL and later", {}, async (hub, tab) => {
  const token = await hub.mint("--sub", "ann", "--topics", "project:*");
  await tab.connect({ token, topics: ["project:7", "secret", "project:7,secret"] });
  await tab.isState("live");
  await until(async () => (await tab.get("problems")).length === 2, "both to be rejected");
  const errors = async () => (await tab.get("problems")).map(({ error, topic }) => [error, topic]);
  assert.deepEqual((await errors()).sort(), [["forbidden", "secret"], ["invalid_topic", "project:7,secret"]]);
  const subscribe = (topic) => client.subscribe(topic).then(({ topic }) => topic, ({ error }) => error);
  const outcomes = [];
  for (const topic of ["project:7", "project:8", "other"]) outcomes.push(await tab.page.evaluate(subscribe, topic));
  assert.deepEqual(outcomes, ["project:7", "project:8", "forbidden"]);
  await note(hub, "e1", { audience: { topic: "secret" } });
  await note(hub, "e2", { audience: { topic: "project:8" } });
  await tab.has("e2");
  assert.deepEqual(await tab.get("got"), ["e2"]);
});

test("while workers are replaced under load, a page receives every event once", async () => {
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
        // A worker that exits may leave a request unanswered. A retry with the same ID publishes the event once.
        await note(hub, `n-${count}`).then(() => count++, () => {});
      }
    })();
    await tab.has("n-50");
    hub.child.kill("SIGHUP");
    await until(() => tab.sockets.length > 1, "the page to reconnect to another worker", 2 * DEADLINE);
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
  /** An application that lists events, in strict mode. */
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

  /** The same application, with a token and topics that change. */
  const SWITCHING = APPLICATION.slice(0, APPLICATION.indexOf("export function run")) + `
    let root;
    export function render(token, topics) {
      root ??= createRoot(document.body.appendChild(document.createElement("div")));
      const provider = <FanfareProvider url="/ws" token={token} topics={topics}><List /></FanfareProvider>;
      root.render(<StrictMode>{provider}</StrictMode>);
    }`;

  test("in strict mode hooks receive each event once, and unmounting closes the connection", async () => {
    const { build } = createRequire(join(PACKAGE, "package.json"))("esbuild");
    const { outputFiles: [bundle] } = await build({
      stdin: { contents: APPLICATION, resolveDir: PACKAGE, loader: "jsx" }, bundle: true, write: false,
      format: "esm", jsx: "automatic",
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

  // attack: a page continues with the next user after a logout => the provider drops the client of the previous user
  test("a token of another user creates a new client, and another topic does not", async () => {
    const { build } = createRequire(join(PACKAGE, "package.json"))("esbuild");
    const { outputFiles: [bundle] } = await build({
      stdin: { contents: SWITCHING, resolveDir: PACKAGE, loader: "jsx" }, bundle: true, write: false,
      format: "esm", jsx: "automatic",
      define: { "process.env.NODE_ENV": '"development"' },
    });
    const hub = await Hub.start();
    const context = await chromium.newContext();
    try {
      const tab = await Tab.open(context, hub, bundle.text);
      const now = Math.floor(Date.now() / 1000);
      const sign = (sub, seconds) => hub.sign({ sub, topics: ["*"], iat: now, exp: now + seconds });
      const [ann, newer, bob] = [sign("ann", 600), sign("ann", 900), sign("bob", 600)];
      const render = ([token, topics]) => { window.render(token, topics); };
      const show = (token, topics) => tab.page.evaluate(render, [token, topics]);
      const received = async (ids) => {
        await tab.page.locator("#ids", { hasText: ids }).waitFor();
        assert.equal(await tab.page.locator("#ids").textContent(), ids);
      };
      await tab.page.evaluate(async () => { window.render = (await import("/client.mjs")).render; });
      await show(ann, ["a"]);
      await tab.page.locator("#state", { hasText: "live" }).waitFor();
      await note(hub, "ann-1", { audience: { user: "ann" } });
      await show(newer, ["a", "b"]);
      const subscribed = ({ type, topic }) => type === "subscribe" && topic === "b";
      await until(() => tab.sent.some(subscribed), "the subscription to topic b");
      const authenticated = ({ type, token }) => type === "auth" && token === newer;
      await until(() => tab.sent.some(authenticated), "the newer token to be sent");
      assert.ok(!tab.sent.some(({ type }) => type === "unsubscribe"), "topic a stays subscribed");
      await note(hub, "b-1", { audience: { topic: "b" } });
      await received("ann-1,b-1");
      const sockets = tab.sockets.length;
      await show(bob, ["a"]);
      await until(() => tab.sockets.length === sockets + 1, "bob's socket");
      await tab.page.locator("#state", { hasText: "live" }).waitFor();
      await note(hub, "ann-2", { audience: { user: "ann" } });
      await note(hub, "bob-1", { audience: { user: "bob" } });
      await received("ann-1,b-1,bob-1");
      assert.deepEqual(tab.errors, []);
    } finally {
      await context.close();
      await hub.end();
    }
  });

  test("the server renders without a socket", async () => {
    const require = createRequire(join(PACKAGE, "package.json"));
    const { createElement } = require("react");
    const { renderToString } = require("react-dom/server");
    const { FanfareProvider, useConnection } = require("./dist/react.cjs");
    const State = () => createElement("b", null, useConnection().name);
    const page = createElement(FanfareProvider, { url: "/ws", token: "t" }, createElement(State));
    assert.equal(renderToString(page), "<b>connecting</b>");
  });
});

/** A Redis server for one test. */
class Redis {
  static async start() {
    const redis = new Redis();
    // Below the range of ports for outgoing connections.
    const port = 29_600 + Math.floor(Math.random() * 2_400);
    redis.url = `redis://127.0.0.1:${port}`;
    redis.directory = mkdtempSync(join(tmpdir(), "fanfare-redis-"));
    const options = ["--port", String(port), "--bind", "127.0.0.1", "--save", ""];
    redis.child = spawn("redis-server", options, { cwd: redis.directory });
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
