// The client against sockets of nothing, under a clock that the tests move.

import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, mock, test } from "node:test";
import { verdict } from "fanfare-client";
import { Hub, settled, vectors } from "./fake.js";

let hub;
beforeEach(() => {
  hub = new Hub();
  mock.timers.enable({ apis: ["setTimeout", "Date"], now: 1_000_000 });
  mock.method(Math, "random", () => 0.5);
});
afterEach(() => {
  mock.timers.reset();
  mock.restoreAll();
});

async function live(options) {
  const client = hub.connect(options);
  await hub.accept();
  return client;
}

/** Moves the clock, and lets what then is due happen. */
async function after(ms) {
  mock.timers.tick(ms);
  await settled();
}

const state = () => hub.states.at(-1);

describe("wire vectors", () => {
  for (const { code, reason, then } of vectors("closes")) {
    test(`close ${code} ${reason}`, () => assert.equal(verdict(code, reason), then));
  }

  for (const { text, client: expected } of vectors("frames")) {
    test(`frame ${text}`, async () => {
      const tokens = ["t", "a newer token"];
      const client = await live({ token: undefined, getToken: () => tokens.shift() });
      const gaps = [];
      client.onGap((gap) => { gaps.push(gap); });
      hub.say(text);
      await settled();
      assert.equal(client.cursor.lastEventId, "pos-ab-5");
      assert.deepEqual(hub.socket.sent, expected.sends ? [expected.sends] : []);
      assert.deepEqual(hub.problems, expected.problem ? [expected.problem] : []);
      assert.deepEqual(gaps.map(({ reason, missed }) => ({ reason, ...(missed && { missed }) })), expected.gap ? [expected.gap] : []);
      if (expected.returns_after_ms) {
        hub.close(1012);
        assert.ok(state().retryAt - Date.now() >= expected.returns_after_ms);
      }
      client.close();
    });
  }

  test("messages", async () => {
    for (const { text, by } of vectors("messages").filter(({ by }) => by)) {
      const client = await live({ topics: by === "unsubscribe" ? ["project:7"] : [] });
      const off = client.subscribe("project:7");
      if (by === "unsubscribe") off();
      assert.deepEqual(hub.socket.sent, by === "subscribe" ? [JSON.parse(text)] : []);
      client.close();
    }
  });

  test("events", async () => {
    const client = await live();
    const got = [];
    client.onAny((event) => { got.push(event); });
    const delivered = vectors("events").filter(({ delivered }) => delivered).map(({ delivered }) => delivered);
    delivered.forEach((text) => hub.say(text));
    assert.deepEqual(got, delivered.map((text) => JSON.parse(text)));
  });
});

test("the token stands in a subprotocol and not in the URL, unless that is asked for", async () => {
  await live();
  assert.deepEqual([hub.socket.url.href, hub.socket.protocols], ["ws://hub/ws", ["fanfare", "bearer.t"]]);
  await live({ tokenInUrl: true, url: "https://hub/ws" });
  assert.deepEqual([hub.socket.url.href, hub.socket.protocols], ["wss://hub/ws?token=t", []]);
});

test("events reach those who asked for their type and those who asked for all, in order and once", async () => {
  const client = await live();
  const got = [];
  const off = client.on("note", ({ event_id }) => { got.push(`note ${event_id}`); });
  client.onAny(({ event_id, type }) => { got.push(`${type} ${event_id}`); });
  hub.event("e1");
  hub.event("e2", "other");
  hub.event("e1");
  off();
  hub.event("e3");
  assert.deepEqual(got, ["note e1", "note e1", "other e2", "note e3"]);
});

test("it comes back with its name, its place and its topics, and drops what it saw", async () => {
  const client = await live({ topics: ["a"] });
  const got = [];
  client.onAny(({ event_id }) => { got.push(event_id); });
  client.subscribe("b");
  hub.event("e1");
  hub.say({ type: "ping", event_id: "pos-1-9" });
  hub.close(1006);
  assert.equal(state().name, "resuming");
  assert.equal(state().retryAt, Date.now() + 500, "half of the first second, as the die fell");
  await after(500);
  assert.deepEqual(Object.fromEntries(hub.socket.url.searchParams), { connection_id: "c1", last_event_id: "pos-1-9", topics: "a,b" });
  await hub.accept({ resumed: true });
  assert.deepEqual([state().name, state().resumed], ["live", true]);
  hub.event("e1");
  hub.event("e2");
  assert.deepEqual(got, ["e1", "e2"]);
});

test("pauses grow up to the longest, without an end, and begin anew after a steady connection", async () => {
  await live({ maxPause: 4_000 });
  const pauses = [];
  for (let attempt = 0; attempt < 40; attempt++) {
    hub.close(1006);
    pauses.push(state().retryAt - Date.now());
    await after(pauses.at(-1));
  }
  assert.equal(hub.sockets.length, 41);
  assert.deepEqual(pauses.slice(0, 5), [500, 1_000, 2_000, 2_000, 2_000]);
  await hub.accept();
  await after(10_000);
  hub.close(1006);
  assert.equal(state().retryAt - Date.now(), 500);
});

test("what is final is not tried again, until somebody says so", async () => {
  for (const [code, reason] of [[4003, ""], [4001, ""], [1008, "forbidden: no"], [1009, ""]]) {
    const client = await live({ getToken: () => "t" });
    const sockets = hub.sockets.length;
    hub.close(code, reason);
    await after(600_000);
    assert.deepEqual([state().name, state().code, hub.sockets.length], ["refused", code, sockets]);
    assert.notEqual(state().reason, "");
    client.retry("another");
    await hub.accept();
    assert.deepEqual([state().name, hub.socket.protocols[1]], ["live", "bearer.another"]);
    client.close();
  }
});

describe("tokens", () => {
  test("a new one is asked for when the hub says so, and with it the client goes on", async () => {
    let count = 0;
    const reasons = [];
    await live({ token: undefined, getToken: async (reason) => { reasons.push(reason); return `t${++count}`; } });
    hub.event("e1");
    hub.close(1008, "token_expired: get a new one");
    await after(250);
    await settled();
    assert.equal(hub.socket.protocols[1], "bearer.t2");
    assert.equal(hub.socket.url.searchParams.get("last_event_id"), "e1");
    await hub.accept();
    hub.close(1006);
    await after(60_000);
    assert.equal(hub.socket.protocols[1], "bearer.t2", "it is still good");
    assert.equal(count, 2);
  });

  test("one that was just given and is refused is final", async () => {
    hub.connect({ token: undefined, getToken: () => "bad" });
    await settled();
    hub.close(1008, "token_invalid: the signature is wrong");
    assert.deepEqual([state().name, state().code], ["refused", 1008]);
  });

  test("without getToken a refused token is final", async () => {
    await live();
    hub.close(1008, "token_expired: get a new one");
    assert.equal(state().name, "refused");
  });

  test("getToken may fail, and is asked again later", async () => {
    let fails = true;
    hub.connect({ token: undefined, getToken: () => { if (fails) throw new Error("no session"); return "t"; } });
    await settled();
    assert.match(state().reason, /no session/);
    assert.equal(hub.problems[0].error, "token");
    fails = false;
    await after(10_000);
    await hub.accept();
    assert.equal(state().name, "live");
  });
});

describe("a silent death", () => {
  test("is noticed by the heartbeat that the hub announced", async () => {
    hub.connect();
    await hub.accept({ heartbeat: 2 });
    const socket = hub.socket;
    await after(7_000);
    hub.say({ type: "ping", event_id: "pos-1-1" });
    await after(7_999);
    assert.equal(state().name, "live", "it was heard of since");
    await after(1);
    assert.deepEqual([state().name, state().reason], ["resuming", "the connection went silent"]);
    assert.equal(socket.closedWith, 1000);
  });

  test("before the first answer ends the attempt", async () => {
    hub.connect({ connectTimeout: 3_000 });
    await settled();
    await after(3_000);
    assert.equal(state().reason, "the hub does not answer");
  });
});

describe("a failed connect", () => {
  test("that only fires error ends the attempt at once", async () => {
    hub.connect();
    await settled();
    hub.fail();
    await after(1);
    assert.deepEqual([state().name, state().code, state().reason], ["connecting", 1006, "the connection broke off"]);
    await after(1_000);
    assert.equal(hub.sockets.length, 2);
  });

  test("that fires error and then close counts once, with the code of the close", async () => {
    await live();
    hub.fail();
    hub.close(1008, "token_revoked: get a new one");
    await after(1);
    assert.deepEqual([state().name, state().code], ["refused", 1008]);
  });

  test("of a socket that was given up changes nothing", async () => {
    const client = hub.connect();
    await settled();
    const { socket } = hub;
    client.close();
    assert.ok(socket.onerror, "the package ws ends the process where nobody listens");
    socket.onerror(new Event("error"));
    await after(60_000);
    assert.deepEqual([state().name, hub.sockets.length], ["closed", 1]);
  });
});

test("goaway is heeded: it leaves when it was told to, and comes back", async () => {
  await live();
  hub.say({ type: "goaway", event_id: "pos-1-1", reconnect_after_ms: 700, reason: "restart" });
  assert.equal(state().name, "live", "what comes until then is not lost");
  hub.event("e1");
  await after(700);
  assert.deepEqual([state().name, state().reason], ["resuming", "restart"]);
  await after(250);
  await hub.accept();
  assert.equal(hub.socket.url.searchParams.get("last_event_id"), "e1");
});

describe("gaps", () => {
  test("hold back what follows until they are mended", async () => {
    const client = await live();
    const got = [];
    let mend;
    client.onAny(({ event_id }) => { got.push(event_id); });
    client.onGap((gap) => { got.push(gap.reason); return new Promise((done) => { mend = done; }); });
    hub.event("e1");
    hub.say({ type: "gap", event_id: "pos-1-5", reason: "expired", missed: 3 });
    hub.event("e6");
    hub.say({ type: "gap", event_id: "pos-2-1", reason: "reset" });
    hub.event("e7");
    assert.deepEqual(got, ["e1", "expired"]);
    mend();
    await settled();
    assert.deepEqual(got, ["e1", "expired", "e6", "reset"]);
    mend();
    await settled();
    assert.deepEqual(got, ["e1", "expired", "e6", "reset", "e7"]);
  });

  test("whose mending fails are reported, and events go on", async () => {
    const client = await live();
    const got = [];
    client.onAny(({ event_id }) => { got.push(event_id); });
    client.onGap(async () => { throw new Error("the backend is down"); });
    hub.say({ type: "gap", event_id: "pos-1-5", reason: "expired" });
    hub.event("e6");
    await settled();
    assert.deepEqual(got, ["e6"]);
    assert.match(hub.problems[0].message, /onGap failed: Error: the backend is down/);
  });
});

test("a handler that throws keeps nothing from the others", async () => {
  const client = await live();
  const got = [];
  client.on("note", () => { throw new Error("oops"); });
  client.onAny(({ event_id }) => { got.push(event_id); });
  hub.event("e1");
  hub.event("e2");
  assert.deepEqual(got, ["e1", "e2"]);
  assert.equal(hub.problems.length, 2);
});

test("topics are counted, and those of while it connected are asked for", async () => {
  const client = hub.connect({ topics: ["a"] });
  await settled();
  const offs = [client.subscribe("b"), client.subscribe("b")];
  await hub.accept();
  assert.deepEqual(hub.socket.sent, [{ type: "subscribe", topic: "b" }]);
  offs[0]();
  offs[0]();
  assert.equal(hub.socket.sent.length, 1, "somebody still wants it");
  offs[1]();
  assert.deepEqual(hub.socket.sent.at(-1), { type: "unsubscribe", topic: "b" });
});

test("events can be iterated over, from before they are asked for, until the end", async () => {
  const client = await live();
  const got = [];
  const reading = (async () => { for await (const { event_id } of client.events("note")) got.push(event_id); })();
  hub.event("e1");
  hub.event("x", "other");
  hub.event("e2");
  await settled();
  client.close();
  await reading;
  assert.deepEqual(got, ["e1", "e2"]);
  assert.equal(state().name, "closed");
});

test("close ends everything, and open goes on from there", async () => {
  const client = await live();
  hub.event("e1");
  client.close();
  assert.equal(hub.socket.closedWith, 1000);
  await after(600_000);
  assert.equal(hub.sockets.length, 1);
  client.open();
  await settled();
  assert.equal(hub.socket.url.searchParams.get("last_event_id"), "e1");
});

test("an address that is none is refused with a sentence", async () => {
  hub.connect({ url: "::" });
  await settled();
  assert.equal(state().name, "refused");
  assert.match(state().reason, /URL/i);
});

test("without a WebSocket it says what to do", async () => {
  if (globalThis.WebSocket) return;
  hub.connect({ WebSocket: undefined });
  await settled();
  assert.match(state().reason, /package "ws"/);
});

test("what is not JSON is told, and changes nothing", async () => {
  const client = await live();
  hub.say("{");
  assert.equal(hub.problems[0].error, "malformed");
  assert.equal(client.state.name, "live");
});
