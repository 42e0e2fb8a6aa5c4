// The client against fake sockets and a mocked clock.

import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, mock, test } from "node:test";
import { connect, userOf, verdict } from "fanfare-client";
import { Hub, jwt, settled, vectors } from "./fake.js";

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

/** Advances the clock, and runs the callbacks that are due. */
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
      const tokens = ["a.first.token", "a.newer.token"];
      const client = await live({ token: undefined, getToken: () => tokens.shift() });
      const gaps = [];
      client.onGap((gap) => { gaps.push(gap); });
      hub.send(text);
      await settled();
      assert.equal(client.cursor.lastEventId, JSON.parse(text).event_id);
      // The client sends only JWTs.
      const sends = expected.sends?.token ? { ...expected.sends, token: "a.newer.token" } : expected.sends;
      assert.deepEqual(hub.socket.sent, sends ? [sends] : []);
      const { topic } = JSON.parse(text);
      assert.deepEqual(hub.problems, expected.problem ? [{ ...expected.problem, ...(topic && { topic }) }] : []);
      const received = gaps.map(({ reason, missed }) => ({ reason, ...(missed && { missed }) }));
      assert.deepEqual(received, expected.gap ? [expected.gap] : []);
      if (expected.returns_after_ms) {
        hub.close(1012);
        assert.ok(state().retryAt - Date.now() >= expected.returns_after_ms);
      }
      client.close();
    });
  }

  test("cursors", async () => {
    const client = await live();
    const got = [];
    client.onAny((event) => { got.push(event); });
    const cases = vectors("cursors");
    assert.ok(cases.length > 5);
    for (const { frame, cursor } of cases) {
      hub.send(frame);
      await settled();
      assert.equal(client.cursor.lastEventId, cursor);
    }
    const events = cases.map(({ frame }) => JSON.parse(frame)).filter(({ type }) => type === "note");
    assert.deepEqual(got, events);
    client.close();
  });

  test("messages", async () => {
    for (const { text, by } of vectors("messages").filter(({ by }) => by)) {
      const client = await live();
      const off = client.subscribe("project:7");
      if (by === "unsubscribe") off();
      // The client gives each `subscribe` an `event_id`, which the answer names.
      const { event_id, ...sent } = hub.socket.sent.at(-1);
      assert.deepEqual(sent, JSON.parse(text));
      client.close();
    }
  });

  test("events", async () => {
    const client = await live();
    const got = [];
    client.onAny((event) => { got.push(event); });
    const delivered = vectors("events").filter(({ delivered }) => delivered).map(({ delivered }) => delivered);
    delivered.forEach((text) => hub.send(text));
    assert.deepEqual(got, delivered.map((text) => JSON.parse(text)));
  });
});

test("the token is sent in a subprotocol, or in the URL with tokenInUrl", async () => {
  await live();
  assert.deepEqual([hub.socket.url.href, hub.socket.protocols], ["ws://hub/ws", ["fanfare", "bearer.a.test.token"]]);
  await live({ tokenInUrl: true, url: "https://hub/ws" });
  assert.deepEqual([hub.socket.url.href, hub.socket.protocols], ["wss://hub/ws?token=a.test.token", []]);
});

test("events reach the handlers of their type and of all types, in order and once", async () => {
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

test("a client reconnects with its connection_id, its cursor and its topics, and drops duplicates", async () => {
  const client = await live({ topics: ["a"] });
  const got = [];
  client.onAny(({ event_id }) => { got.push(event_id); });
  client.subscribe("b");
  hub.event("e1");
  hub.send({ type: "ping", event_id: "pos-1-9" });
  hub.close(1006);
  assert.equal(state().name, "resuming");
  assert.equal(state().retryAt, Date.now() + 500, "half of the first second, by the mocked random number");
  await after(500);
  const query = Object.fromEntries(hub.socket.url.searchParams);
  assert.deepEqual(query, { connection_id: "c1", last_event_id: "pos-1-9", topics: "a,b" });
  await hub.accept({ resumed: true });
  assert.deepEqual([state().name, state().resumed], ["live", true]);
  hub.event("e1");
  hub.event("e2");
  assert.deepEqual(got, ["e1", "e2"]);
});

test("pauses grow up to maxPause, without a limit on attempts, and are reset by a steady connection", async () => {
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

test("a final close is not retried before retry() is called", async () => {
  for (const [code, reason] of [[4003, ""], [4001, ""], [1008, "forbidden: no"], [1009, ""]]) {
    const client = await live({ getToken: () => "a.test.token" });
    const sockets = hub.sockets.length;
    hub.close(code, reason);
    await after(600_000);
    assert.deepEqual([state().name, state().code, hub.sockets.length], ["refused", code, sockets]);
    assert.notEqual(state().reason, "");
    client.retry("an.other.token");
    await hub.accept();
    assert.deepEqual([state().name, hub.socket.protocols[1]], ["live", "bearer.an.other.token"]);
    client.close();
  }
});

describe("tokens", () => {
  test("after a rejection the client resumes with a new token", async () => {
    let count = 0;
    const reasons = [];
    await live({ token: undefined, getToken: async (reason) => { reasons.push(reason); return `a.b.${++count}`; } });
    hub.event("e1");
    hub.close(1008, "token_expired: get a new one");
    await after(250);
    await settled();
    assert.equal(hub.socket.protocols[1], "bearer.a.b.2");
    assert.equal(hub.socket.url.searchParams.get("last_event_id"), "e1");
    await hub.accept();
    hub.close(1006);
    await after(60_000);
    assert.equal(hub.socket.protocols[1], "bearer.a.b.2", "the token is still valid");
    assert.equal(count, 2);
  });

  test("a second rejection in a row is final", async () => {
    const asked = [];
    hub.connect({ token: undefined, getToken: (reason) => { asked.push(reason); return "a.bad.token"; } });
    await settled();
    hub.close(1008, "token_invalid: the signature is wrong");
    await after(250);
    hub.close(1008, "token_invalid: the signature is wrong");
    assert.deepEqual([state().name, state().code, asked], ["refused", 1008, ["connect", "refused"]]);
  });

  test("a getToken that caches its token can renew it after a rejection", async () => {
    let kept = "a.dead.token";
    const getToken = (reason) => { if (reason === "refused") kept = "a.new.token"; return kept; };
    await live({ token: undefined, getToken });
    hub.close(1008, "token_revoked: get a new one");
    await after(250);
    await hub.accept();
    assert.deepEqual([state().name, hub.socket.protocols[1]], ["live", "bearer.a.new.token"]);
  });

  test("a getToken that never settles is aborted after tokenTimeout, and called again", async () => {
    const signals = [];
    const getToken = (_, signal) => { signals.push(signal); return new Promise(() => {}); };
    hub.connect({ token: undefined, tokenTimeout: 5_000, getToken });
    await settled();
    await after(4_999);
    assert.equal(signals[0].aborted, false);
    await after(1);
    assert.ok(signals[0].aborted);
    assert.equal(hub.problems[0].message, "getToken failed: getToken has not settled after 5 s");
    assert.match(state().reason, /^no token: getToken has not settled/);
    await after(10_000);
    assert.equal(signals.length, 2, "getToken is called again");
  });

  test("a client that is closed aborts getToken and ignores its result", async () => {
    let resolve;
    let signal;
    const getToken = (_, given) => { signal = given; return new Promise((done) => { resolve = done; }); };
    const client = hub.connect({ token: undefined, getToken });
    await settled();
    client.close();
    assert.ok(signal.aborted);
    resolve("a.test.token");
    await settled();
    assert.deepEqual([hub.sockets.length, hub.problems], [0, []]);
  });

  // attack: getToken returns another secret than a token => the client names its type and never prints it
  test("the result of getToken is checked and never printed", async () => {
    for (const secret of ["<html>secret</html>", '"an.quoted.secret"', "", { token: "secret" }, null, undefined, 7]) {
      hub = new Hub();
      const client = hub.connect({ token: undefined, getToken: () => secret });
      await settled();
      assert.equal(hub.sockets.length, 0);
      assert.match(hub.problems[0].message, /^getToken failed: the result of getToken is not a JWT/);
      assert.doesNotMatch(JSON.stringify([hub.problems, hub.states]), /secret/);
      client.close();
    }
  });

  test("white space around a token is removed", async () => {
    await live({ token: undefined, getToken: () => "a.test.token\n" });
    assert.equal(hub.socket.protocols[1], "bearer.a.test.token");
  });

  test("a newer token is sent to the hub immediately", async () => {
    const client = await live();
    client.retry("a.newer.token");
    assert.deepEqual([hub.socket.sent, hub.sockets.length], [[{ type: "auth", token: "a.newer.token" }], 1]);
  });

  test("userOf reads the user of a token, or returns undefined", () => {
    const unicode = "Jürgen 火";
    const cases = [[jwt("ann"), "ann"], [jwt(unicode), unicode], [jwt(42), "42"], [jwt()], ["x"], [undefined]];
    for (const [token, user] of cases) {
      assert.equal(userOf(token), user);
    }
  });

  test("without getToken a rejected token is final", async () => {
    await live();
    hub.close(1008, "token_expired: get a new one");
    assert.equal(state().name, "refused");
  });

  test("a getToken that fails is called again later", async () => {
    let fails = true;
    const getToken = () => { if (fails) throw new Error("no session"); return "a.test.token"; };
    hub.connect({ token: undefined, getToken });
    await settled();
    assert.match(state().reason, /no session/);
    assert.equal(hub.problems[0].error, "token");
    fails = false;
    await after(10_000);
    await hub.accept();
    assert.equal(state().name, "live");
  });
});

describe("a dead connection", () => {
  test("is detected by the heartbeat interval in the first ack", async () => {
    hub.connect();
    await hub.accept({ heartbeat: 2 });
    const socket = hub.socket;
    await after(7_000);
    hub.send({ type: "ping", event_id: "pos-1-1" });
    await after(7_999);
    assert.equal(state().name, "live", "a ping arrived in the meantime");
    await after(1);
    assert.deepEqual([state().name, state().reason], ["resuming", "heartbeat timeout"]);
    assert.equal(socket.closedWith, 1000);
  });

  test("before the first message ends the attempt after connectTimeout", async () => {
    hub.connect({ connectTimeout: 3_000 });
    await settled();
    await after(3_000);
    assert.equal(state().reason, "the hub does not respond");
  });
});

describe("a failed connect", () => {
  test("that fires only error ends the attempt immediately", async () => {
    hub.connect();
    await settled();
    hub.fail();
    await after(1);
    assert.deepEqual([state().name, state().code, state().reason], ["connecting", 1006, "the connection was lost"]);
    await after(1_000);
    assert.equal(hub.sockets.length, 2);
  });

  test("that fires error and then close counts once, with the close code", async () => {
    await live();
    hub.fail();
    hub.close(1008, "token_revoked: get a new one");
    await after(1);
    assert.deepEqual([state().name, state().code], ["refused", 1008]);
  });

  test("with the code 0, as on Deno, is reported as 1006", async () => {
    hub.connect();
    await settled();
    hub.close(0);
    assert.equal(state().code, 1006);
  });

  test("of a socket that the client has dropped has no effect", async () => {
    const client = hub.connect();
    await settled();
    const { socket } = hub;
    client.close();
    assert.ok(socket.onerror, "without a listener the package ws ends the process");
    socket.onerror(new Event("error"));
    await after(60_000);
    assert.deepEqual([state().name, hub.sockets.length], ["closed", 1]);
  });
});

test("a client reconnects at the time that goaway names", async () => {
  await live();
  hub.send({ type: "goaway", event_id: "pos-1-1", reconnect_after_ms: 700, reason: "restart" });
  assert.equal(state().name, "live", "events that arrive until then are delivered");
  hub.event("e1");
  await after(700);
  assert.deepEqual([state().name, state().reason], ["resuming", "restart"]);
  await after(250);
  await hub.accept();
  assert.equal(hub.socket.url.searchParams.get("last_event_id"), "e1");
});

describe("gaps", () => {
  test("delay later events until onGap has settled", async () => {
    const client = await live();
    const got = [];
    let settle;
    client.onAny(({ event_id }) => { got.push(event_id); });
    client.onGap((gap) => { got.push(gap.reason); return new Promise((done) => { settle = done; }); });
    hub.event("e1");
    hub.send({ type: "gap", event_id: "pos-1-5", reason: "expired", missed: 3 });
    hub.event("e6");
    hub.send({ type: "gap", event_id: "pos-2-1", reason: "reset" });
    hub.event("e7");
    assert.deepEqual(got, ["e1", "expired"]);
    settle();
    await settled();
    assert.deepEqual(got, ["e1", "expired", "e6", "reset"]);
    settle();
    await settled();
    assert.deepEqual(got, ["e1", "expired", "e6", "reset", "e7"]);
  });

  test("whose handler fails are reported, and later events are delivered", async () => {
    const client = await live();
    const got = [];
    client.onAny(({ event_id }) => { got.push(event_id); });
    client.onGap(async () => { throw new Error("the backend is down"); });
    hub.send({ type: "gap", event_id: "pos-1-5", reason: "expired" });
    hub.event("e6");
    await settled();
    assert.deepEqual(got, ["e6"]);
    assert.match(hub.problems[0].message, /onGap failed: Error: the backend is down/);
  });
});

describe("the cursor", () => {
  test("is that of the last delivered event, also while a gap is handled", async () => {
    const client = await live();
    const seen = [];
    let settle;
    client.on("note", ({ event_id }) => { seen.push([event_id, client.cursor.lastEventId]); });
    client.onGap(() => {
      seen.push(["gap", client.cursor.lastEventId]);
      return new Promise((done) => { settle = done; });
    });
    hub.event("e1");
    hub.send({ type: "gap", event_id: "pos-1-5", reason: "expired" });
    hub.event("e6");
    assert.deepEqual(client.cursor, { connectionId: "c1", lastEventId: "e1" });
    settle();
    await settled();
    assert.equal(client.cursor.lastEventId, "e6");
    hub.send({ type: "ping", event_id: "pos-1-9" });
    assert.equal(client.cursor.lastEventId, "pos-1-9");
    assert.deepEqual(seen, [["e1", "e1"], ["gap", "e1"], ["e6", "e6"]]);
  });

  test("does not advance to an ack that a gap follows", async () => {
    const client = await live();
    hub.event("e1");
    hub.close(1006);
    await after(500);
    await hub.accept({ event_id: "pos-1-20", resumed: false });
    assert.equal(client.cursor.lastEventId, "e1");
    hub.close(1006);
    await after(1_000);
    assert.equal(hub.socket.url.searchParams.get("last_event_id"), "e1");
  });

  test("stays before unread events of events(), also of a loop that was left", async () => {
    const client = await live();
    const events = client.events();
    for (const id of ["e1", "e2", "e3"]) hub.event(id);
    assert.equal(client.cursor.lastEventId, "pos-1-0");
    await events.next();
    assert.equal(client.cursor.lastEventId, "e1");
    await events.return();
    hub.event("e4");
    assert.equal(client.cursor.lastEventId, "e1", "e2 was not delivered");
    client.onAny(() => {});
    hub.event("e5");
    assert.equal(client.cursor.lastEventId, "e5");
  });
});

describe("events() and a gap", () => {
  test("events before the gap are processed before onGap is called", async () => {
    const client = await live();
    const got = [];
    let applied;
    client.onGap(({ reason }) => { got.push(reason); });
    void (async () => {
      for await (const { event_id } of client.events()) {
        await new Promise((done) => { applied = done; });
        got.push(event_id);
      }
    })();
    hub.event("e1");
    hub.event("e2");
    hub.send({ type: "gap", event_id: "pos-1-5", reason: "expired" });
    hub.event("e6");
    for (let n = 0; n < 3; n++) {
      await settled();
      applied();
    }
    await settled();
    assert.deepEqual(got, ["e1", "e2", "expired", "e6"]);
  });

  test("a reader that does not read delays events up to gapTimeout, and loses the events before the gap", async () => {
    const client = await live({ gapTimeout: 5_000 });
    const got = [];
    const events = client.events();
    client.onGap(({ reason }) => { got.push(reason); });
    hub.event("e1");
    hub.send({ type: "gap", event_id: "pos-1-5", reason: "expired" });
    hub.event("e6");
    await after(4_999);
    assert.deepEqual(got, []);
    await after(1);
    assert.deepEqual([got, hub.problems.map(({ error }) => error)], [["expired"], ["gap_timeout"]]);
    assert.equal((await events.next()).value.event_id, "e6");
  });
});

test("an onGap that never settles is aborted after gapTimeout, and reported as a problem", async () => {
  const client = await live({ gapTimeout: 5_000 });
  const got = [];
  let signal;
  client.onAny(({ event_id }) => { got.push(event_id); });
  client.onGap((gap) => { signal = gap.signal; return new Promise(() => {}); });
  hub.send({ type: "gap", event_id: "pos-1-5", reason: "expired" });
  hub.event("e6");
  await after(4_999);
  assert.deepEqual([got, signal.aborted], [[], false]);
  await after(1);
  assert.deepEqual([got, signal.aborted], [["e6"], true]);
  assert.deepEqual(hub.problems.map(({ error, message }) => [error, message]),
    [["gap_timeout", "onGap has not settled after 5 s: events are delivered again"]]);
});

test("the other handlers are called after one has thrown", async () => {
  const client = await live();
  const got = [];
  client.on("note", () => { throw new Error("oops"); });
  client.onAny(({ event_id }) => { got.push(event_id); });
  hub.event("e1");
  hub.event("e2");
  assert.deepEqual(got, ["e1", "e2"]);
  assert.equal(hub.problems.length, 2);
});

test("subscriptions are counted, and those made while connecting are sent after the ack", async () => {
  const client = hub.connect({ topics: ["a"] });
  await settled();
  const offs = [client.subscribe("b"), client.subscribe("b")];
  await hub.accept();
  assert.deepEqual(hub.socket.sent, [{ type: "subscribe", topic: "b", event_id: "s1" }]);
  offs[0]();
  offs[0]();
  assert.equal(hub.socket.sent.length, 1, "the second subscription still exists");
  offs[1]();
  assert.deepEqual(hub.socket.sent.at(-1), { type: "unsubscribe", topic: "b" });
});

describe("topics", () => {
  /** Wraps a subscription, because `assert.rejects` would call it as a function. */
  const rejects = (subscription, error) => assert.rejects(Promise.resolve(subscription), error);
  const answer = (type, topic, more) => hub.send({ type, event_id: "pos-1-7", topic, ...more });

  test("can be awaited: an ack resolves, an error rejects and is a problem with the topic", async () => {
    const client = await live();
    const [good, bad] = [client.subscribe("a"), client.subscribe("b")];
    const [{ event_id: first }, { event_id: second }] = hub.socket.sent;
    answer("ack", "a", { ack_event_id: first });
    answer("error", "b", { ack_event_id: second, error: "forbidden", details: { message: "not b" } });
    assert.deepEqual(await good, { topic: "a", event_id: "pos-1-7" });
    await rejects(bad, { error: "forbidden", topic: "b", message: "not b" });
    assert.deepEqual(hub.problems, [{ error: "forbidden", message: "not b", topic: "b" }]);
    assert.deepEqual(await client.subscribe("a"), { topic: "a", event_id: "pos-1-7" }, "acknowledged already");
  });

  test("in the URL are acknowledged by the pong that follows, unless an error came before", async () => {
    const client = hub.connect({ topics: ["a", "b"] });
    const [good, bad] = [client.subscribe("a"), client.subscribe("b")];
    await hub.accept();
    answer("error", "b", { ack_event_id: "initial_connect", error: "forbidden", details: { message: "not b" } });
    assert.deepEqual(hub.socket.sent, [{ type: "ping" }]);
    hub.send({ type: "pong", event_id: "pos-1-0" });
    assert.deepEqual(await good, { topic: "a", event_id: "pos-1-0" });
    await rejects(bad, { error: "forbidden" });
    assert.equal(hub.problems[0].topic, "b");
  });

  test("that are unsubscribed before the answer, or whose client is closed, reject", async () => {
    const client = await live();
    const given = client.subscribe("a");
    given();
    await rejects(given, { error: "unsubscribed" });
    const waiting = client.subscribe("b");
    client.close();
    await rejects(waiting, { error: "closed" });
  });

  // attack: a topic name with a comma, to subscribe to a second topic => rejected before anything is sent
  test("with invalid names are not sent", async () => {
    const names = ["project:7,secret", "*", "a b", "a\tb", "", "\0", "\ud800", "é".repeat(65), 7];
    const client = hub.connect({ topics: [...names, "good"] });
    await hub.accept();
    assert.equal(hub.socket.url.searchParams.get("topics"), "good");
    const expected = names.map((name) => ["invalid_topic", String(name)]);
    assert.deepEqual(hub.problems.map(({ error, topic }) => [error, topic]), expected);
    for (const name of names) await rejects(client.subscribe(name), { error: "invalid_topic" });
    assert.deepEqual(hub.socket.sent, []);
    client.subscribe("é".repeat(64))();
    assert.equal(hub.socket.sent.length, 2);
  });

  test("with a problem print a warning if there is no onProblem handler", async () => {
    const warn = mock.method(console, "warn", () => {});
    const { connect } = await import("fanfare-client");
    const client = connect({ url: "ws://hub/ws", token: "a.b.c", topics: ["a,b"], WebSocket: hub.WebSocket });
    await settled();
    assert.match(warn.mock.calls[0].arguments[0], /^fanfare: invalid_topic: the topic "a,b" must not contain a comma/);
    client.close();
  });
});

test("events() yields events from its call until the client is closed", async () => {
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

test("close() stops all attempts, and open() resumes from the cursor", async () => {
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

test("the URL is built without the setters of URL, which React Native lacks", async () => {
  const [Real, cursor] = [globalThis.URL, { lastEventId: "e&1", connectionId: "c 1" }];
  for (const [url, expected] of [
    ["https://hub/ws", "wss://hub/ws?connection_id=c%201&last_event_id=e%261&topics=a%2Cb"],
    [
      "ws://hub:1/ws?x=1&topics=z&token=y#part",
      "ws://hub:1/ws?x=1&connection_id=c%201&last_event_id=e%261&topics=a%2Cb",
    ],
  ]) {
    const made = [];
    hub.WebSocket = class { constructor(url) { made.push(url); } close() {} };
    globalThis.URL = class { constructor() { throw new Error("not here"); } };
    const client = hub.connect({ url, cursor, topics: ["a", "b"] });
    await settled();
    client.close();
    globalThis.URL = Real;
    assert.deepEqual(made, [expected]);
  }
});

test("an invalid URL is refused with a reason", async () => {
  hub.connect({ url: "::" });
  await settled();
  assert.equal(state().name, "refused");
  assert.match(state().reason, /URL/i);
});

test("without a WebSocket the reason names the option to set", async () => {
  if (globalThis.WebSocket) return;
  hub.connect({ WebSocket: undefined });
  await settled();
  assert.match(state().reason, /package "ws"/);
});

test("a message that is not JSON is reported, and otherwise ignored", async () => {
  const client = await live();
  hub.send("{");
  assert.equal(hub.problems[0].error, "malformed");
  assert.equal(client.state.name, "live");
});

describe("a failing handler ends neither the process nor the client", () => {
  /** Connects without an onProblem handler, and returns the printed errors. */
  async function silent(t, setup) {
    const printed = t.mock.method(console, "error", () => {});
    const client = connect({ url: "ws://hub/ws", token: "a.test.token", WebSocket: hub.WebSocket });
    setup(client);
    await hub.accept();
    return { client, messages: () => printed.mock.calls.map(({ arguments: [what, cause] }) => [what, cause.message]) };
  }

  test("one that throws, or whose promise rejects, is printed if there is no onProblem handler", async (t) => {
    const { client, messages } = await silent(t, (client) => {
      client.on("note", () => { throw new Error("first"); });
      client.onAny(async () => { throw new Error("second"); });
      client.onState(async ({ name }) => { if (name === "live") throw new Error("third"); });
      client.onGap(async () => { throw new Error("fourth"); });
    });
    hub.event("e1");
    hub.send({ type: "gap", event_id: "pos-1-5", reason: "expired" });
    await settled();
    assert.deepEqual(messages().sort(), [
      ["fanfare: a handler failed:", "first"], ["fanfare: a handler failed:", "second"],
      ["fanfare: a handler failed:", "third"], ["fanfare: onGap failed:", "fourth"],
    ]);
    assert.equal(client.state.name, "live");
    client.close();
  });

  test("onProblem does not receive its own failures", async (t) => {
    let calls = 0;
    const fail = () => { calls++; throw new Error("oops"); };
    const { client, messages } = await silent(t, (client) => client.onProblem(fail));
    hub.send("{");
    await settled();
    assert.deepEqual([calls, messages()], [1, [["fanfare: a handler failed:", "oops"]]]);
    client.close();
  });

  test("a rejected promise is reported like an exception", async () => {
    const client = await live();
    client.on("note", async () => { throw new Error("oops"); });
    hub.event("e1");
    await settled();
    const problems = hub.problems.map(({ error, message }) => [error, message]);
    assert.deepEqual(problems, [["handler", "a handler failed: Error: oops"]]);
  });

  test("a thrown value may have no text", async () => {
    const client = hub.connect({ token: undefined, getToken: () => { throw Object.create(null); } });
    await settled();
    assert.match(hub.problems[0].message, /^getToken failed: an object without a string form/);
    assert.ok(client.state.retryAt, "and another attempt is scheduled");
    client.onState(() => { throw Object.create(null); });
    assert.equal(hub.problems.length, 2);
  });
});

describe("a client that is closed by one of its handlers stays closed", () => {
  test("by onProblem, when getToken has failed", async () => {
    let asked = 0;
    const client = hub.connect({ token: undefined, getToken: () => { asked++; throw new Error("no session"); } });
    client.onProblem(() => client.close());
    await settled();
    await after(600_000);
    assert.deepEqual([asked, client.state.name], [1, "closed"]);
  });

  test("by onState, before getToken is called", async () => {
    let asked = 0;
    const client = hub.connect({ token: undefined, getToken: () => { asked++; return "a.test.token"; } });
    await settled();
    client.close();
    client.onState(({ name }) => { if (name === "connecting") client.close(); });
    client.open();
    await settled();
    assert.deepEqual([asked, hub.sockets.length, client.state.name], [1, 1, "closed"]);
  });
});

test("a JSON value that is not a message is reported, and otherwise ignored", async () => {
  const client = await live();
  for (const text of ["null", "5", "[]", '"text"', "{}", '{"type":7}']) hub.send(text);
  assert.deepEqual(hub.problems.map(({ error }) => error), Array(6).fill("malformed"));
  assert.equal(client.state.name, "live");
});
