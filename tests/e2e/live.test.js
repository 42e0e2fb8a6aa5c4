// The live page in a real browser: connecting, receiving events, reconnecting after failures.

import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { Hub, LivePage, ROOT, browser, until } from "./fanfare.js";

const SCREENSHOTS = join(ROOT, "target/screenshots");
let chromium;

before(async () => { chromium = await browser(); });
after(() => chromium?.close());

/** Runs a test with a hub and a live page. */
function live(name, settings, run) {
  test(name, async () => {
    const hub = await Hub.start(settings);
    try {
      const page = await LivePage.open(chromium, hub.pageUrl());
      await page.state("live");
      await run(hub, page);
      await page.close();
    } finally {
      await hub.end();
    }
  });
}

const numbered = (from, count) => Array.from({ length: count }, (_, i) => `n-${from + i}`);

describe("the first minute", () => {
  // No secret is configured, as on the first run.
  test("the printed address and the printed curl command work", () => firstMinute({ SECRET_KEY: null },
    (hub) => hub.lines("http").find((line) => line.includes("#token=")), (hub) => hub.lines("curl ")));

  test("with a configured secret, the printed commands create tokens for both", () => firstMinute({},
    (hub) => hub.paste(...hub.lines("TOKEN="), ...hub.lines("echo ")),
    (hub) => [...hub.lines("TOKEN="), ...hub.lines("curl ")]));

  async function firstMinute(settings, address, publishing) {
    const hub = await Hub.start(settings);
    try {
      const page = await LivePage.open(chromium, await address(hub));
      await page.state("live");
      await checkFirstMinute(hub, page, publishing(hub));
      await page.close();
    } finally {
      await hub.end();
    }
  }

  async function checkFirstMinute(hub, page, publishing) {
    assert.equal(page.page.url(), `${hub.origin}/`, "the token is gone from the address bar");
    assert.match(await page.text("connection-id"), /^[0-9a-f-]{36}$/);
    assert.match(await page.text("cursor"), /^pos-/);
    assert.equal(await page.text("heartbeat"), "every 30 s");

    const { event_id: id, position } = JSON.parse(await hub.paste(...publishing));
    await page.event(id);
    assert.equal(await page.text("cursor"), position, "the cursor is the position of the event, and not its ID");

    await page.page.reload();
    await page.state("live");
    assert.ok(page.sockets.every((url) => !url.includes("token")), "nor is it in the URL of the socket");
  }

  live("the status of the hub is displayed", {}, async (hub, page) => {
    await hub.publish({ type: "note" });
    await page.page.reload();
    await page.state("live");
    await until(async () => await page.text("health-window") === "1", "the number of retained events");
    await until(async () => /^\d+$/.test(await page.text("health-connections")), "the number of connections");
    assert.equal(await page.text("health-broker"), "memory");
    assert.match(await page.text("health-version"), /^\d+\.\d+\.\d+$/);
  });

  const heartbeat = { FANFARE_HEARTBEAT_INTERVAL: "1s", FANFARE_HEARTBEAT_TIMEOUT: "10s" };
  live("pings are answered", heartbeat, async (hub, page) => {
    const pongs = () => page.sent.filter(({ type }) => type === "pong");
    await until(() => pongs().length >= 12, "twelve pongs, which takes longer than the timeout");
    assert.match(pongs()[0].event_id, /^pos-/);
    assert.match(await page.state("live"), /^connected at/, "the page never reconnected");
    assert.equal(page.sockets.length, 1);
  });
});

describe("reconnecting", () => {
  live("after a crash of the hub the page receives a gap, and every new event once", {}, async (hub, page) => {
    await hub.publish({ type: "note", event_id: "before" });
    await page.event("before");
    const name = await page.text("connection-id");

    await hub.kill();
    await page.state("resuming");
    await page.reason(/reconnecting in \d/);
    await hub.restart();
    for (const id of numbered(0, 20)) await hub.publish({ type: "note", event_id: id });

    await page.state("live");
    for (const id of numbered(20, 20)) await hub.publish({ type: "note", event_id: id });
    await page.event("n-39");
    assert.deepEqual(await page.ids(), ["before", ...numbered(0, 40)]);
    const gaps = (await page.rows()).filter(({ kind }) => kind === "gap");
    assert.deepEqual(gaps.map(({ reason }) => reason), ["reset"]);
    assert.equal((await page.rows())[1].kind, "gap", "the gap is at its place in the list");
    assert.equal(await page.text("connection-id"), name, "with the same secret the connection_id stays");
  });

  live("a page that reconnects while events are published receives each event once", {}, async (hub, page) => {
    const name = await page.text("connection-id");
    let count = 0;
    let stop = false;
    const publisher = (async () => {
      while (!stop) await hub.publish({ type: "note", event_id: `n-${count++}` });
    })();
    try {
      await until(() => count > 20, "the first events");
      await page.cut();
      const then = count;
      assert.match(await page.state("live"), /^resumed, [1-9]\d* replayed$/);
      await until(() => count > then + 20, "events after it");
    } finally {
      stop = true;
      await publisher;
    }
    await page.event(`n-${count - 1}`);
    assert.equal(await page.text("count"), `${count.toLocaleString("en")} received`, "each event was received once");
    assert.deepEqual(await page.ids(), numbered(Math.max(0, count - 500), Math.min(count, 500)), "in order");
    assert.equal(await page.text("connection-id"), name);
    assert.match(page.sockets[1], new RegExp(`connection_id=${name}&last_event_id=`));
  });

  live("a page that resumes behind the window receives a gap", { FANFARE_WINDOW_EVENTS: "10" }, async (hub, page) => {
    await hub.publish({ type: "note", event_id: "before" });
    await page.event("before");
    await page.cut();
    await hub.publishAll(numbered(0, 30).map((id) => ({ type: "note", event_id: id })));
    await page.event("n-29");
    const rows = await page.rows();
    const gap = rows.findIndex(({ kind }) => kind === "gap");
    assert.equal(gap, 1);
    assert.equal(rows[gap].reason, "expired");
    assert.match(rows[gap].text, /after your cursor were evicted/);
    const ids = await page.ids();
    assert.deepEqual(ids.slice(1), numbered(31 - ids.length, ids.length - 1), "all events after the gap arrived");
  });

  test("a page does not reconnect with a rejected token", async () => {
    const hub = await Hub.start();
    try {
      const forged = hub.token.replace(/[^.]+$/, (signature) => signature.split("").reverse().join(""));
      const expired = hub.sign({ sub: "me", exp: Math.floor(Date.now() / 1000) - 3600 });
      for (const [token, reason] of [[forged, /^token_invalid/], [expired, /^token_expired/]]) {
        const before = (page) => page.clock.install();
        const page = await LivePage.open(chromium, `${hub.origin}/#token=${token}`, { before });
        assert.match(await page.state("refused"), reason);
        await page.page.clock.runFor(120_000);
        assert.equal(page.sockets.length, 1, "no other attempt in two minutes of the page's clock");

        await page.page.getByLabel("Token", { exact: true }).fill(hub.token);
        await page.page.getByRole("button", { name: "Connect", exact: true }).click();
        await page.state("live");
        await page.close();
      }
    } finally {
      await hub.end();
    }
  });

  test("a duplicate event is listed once, and a page reconnects after repeated closes", async () => {
    const hub = await Hub.start();
    try {
      const timestamp = "2026-01-01T00:00:00Z";
      const frame = (type, id, more) => JSON.stringify({ type, event_id: id, timestamp, ...more });
      let connects = 0;
      const before = (page) => page.routeWebSocket(/\/ws\?|\/ws$/, (socket) => {
        const ack = { ack_event_id: "initial_connect", connection_id: "c", replayed: 0, heartbeat: 30 };
        socket.send(frame("ack", "pos-1-0", { ...ack, resumed: connects > 0 }));
        for (const id of ["a", "b", "a"]) socket.send(frame("note", id, { data: {} }));
        if (++connects < 3) socket.close({ code: 1013, reason: "max_connections: the hub is full" });
      });
      const page = await LivePage.open(chromium, hub.pageUrl(), { before });
      await page.state("resuming");
      await page.reason(/^max_connections: the hub is full/);
      await until(() => connects === 3, "the page to reconnect twice");
      await page.state("live");
      assert.deepEqual(await page.ids(), ["a", "b"]);
      assert.equal(await page.text("count"), "2 received");
      await page.close();
    } finally {
      await hub.end();
    }
  });

  test("without a token the page asks for one", async () => {
    const hub = await Hub.start();
    try {
      const page = await LivePage.open(chromium, `${hub.origin}/`);
      await page.state("refused");
      assert.equal(page.sockets.length, 0);
      assert.ok(await page.page.locator("#token-notice").isVisible());
      await page.close();
    } finally {
      await hub.end();
    }
  });
});

describe("actions", () => {
  test("an event reaches exactly its audience", async () => {
    const hub = await Hub.start();
    try {
      const open = async (user) => {
        const token = await hub.mint("--sub", user, "--publish", "--topics", "project:*");
        return LivePage.open(chromium, `${hub.origin}/#token=${token}`);
      };
      const [alice, again, bob] = await Promise.all(["alice", "alice", "bob"].map(open));
      await Promise.all([alice, again, bob].map((page) => page.state("live")));
      for (const page of [alice, bob]) {
        await page.page.getByLabel("Topic", { exact: true }).fill("project:7");
        await page.click("subscribe");
        await page.page.locator("#topics [data-topic='project:7']").waitFor();
      }
      const all = [alice, again, bob];
      const audiences = { everyone: all, user: [alice, again], connection: [alice], topic: [alice, bob] };
      for (const [audience, reached] of Object.entries(audiences)) {
        const type = `to-${audience}`;
        await alice.page.getByLabel("Type", { exact: true }).fill(type);
        await alice.click(`publish-${audience}`);
        await Promise.all(reached.map((page) => page.page.locator(`li[data-type=${type}]`).waitFor()));
      }
      // An event to everyone comes last: a page that has received it has received all earlier events.
      await hub.publish({ type: "end", event_id: "end" });
      const types = async (page) => { await page.event("end"); return (await page.rows()).map(({ type }) => type); };
      assert.deepEqual(await types(alice), ["to-everyone", "to-user", "to-connection", "to-topic", "end"]);
      assert.deepEqual(await types(again), ["to-everyone", "to-user", "end"]);
      assert.deepEqual(await types(bob), ["to-everyone", "to-topic", "end"]);

      await bob.page.locator("#topics [data-topic='project:7']").click();
      await bob.page.locator("#topics [data-topic='project:7']").waitFor({ state: "detached" });
      await hub.publish({ type: "note", event_id: "left", audience: { topic: "project:7" } });
      await hub.publish({ type: "note", event_id: "last" });
      await Promise.all([alice, bob].map((page) => page.event("last")));
      assert.ok((await alice.ids()).includes("left") && !(await bob.ids()).includes("left"));

      await alice.page.getByLabel("Topic", { exact: true }).fill("secret");
      await alice.click("subscribe");
      await alice.page.locator("li[data-error=forbidden]").waitFor();
      await alice.state("live");
      for (const page of all) await page.close();
    } finally {
      await hub.end();
    }
  });

  live("a ping is answered, and a slow page receives all events", {}, async (hub, page) => {
    await page.click("ping");
    await until(async () => /^\d+\.\d ms$/.test(await page.text("round-trip")), "the round trip");
    await page.click("slow");
    for (const id of numbered(0, 20)) await hub.publish({ type: "note", event_id: id });
    await page.event("n-19");
    assert.deepEqual(await page.ids(), numbered(0, 20));
  });

  test("a page that is logged in renews its token by itself", async () => {
    const hub = await Hub.start({ ACCESS_TOKEN_EXPIRE_MINUTES: "1", FANFARE_TOKEN_WARNING: "59s" });
    try {
      await hub.addUser("ann@example.org", "a long password");
      const page = await LivePage.open(chromium, `${hub.origin}/`);
      await page.state("refused");
      const logIn = async (password) => {
        await page.page.getByLabel("E-mail address").fill("ann@example.org");
        await page.page.getByLabel("Password").fill(password);
        await page.page.getByRole("button", { name: "Log in" }).click();
      };
      await logIn("a wrong password");
      await until(async () => await page.text("login-said") !== "", "the reason");
      assert.equal(page.sockets.length, 0);
      await logIn("a long password");
      await page.state("live");
      assert.equal(await page.text("user"), "ann@example.org");
      const renewed = () => page.sent.some(({ type }) => type === "auth");
      await until(renewed, "a newer token to be sent, after half of its minute", 120_000);
      await hub.publish({ type: "note", event_id: "e1" });
      await page.event("e1");
      assert.equal(page.sockets.length, 1);
      await page.close();
    } finally {
      await hub.end();
    }
  });

  live("a subscription is kept across a reconnect", {}, async (hub, page) => {
    const token = await hub.mint("--sub", "alice", "--topics", "project:*");
    await page.page.goto(`${hub.origin}/#token=${token}`);
    await page.state("live");
    await page.page.locator("#user", { hasText: "alice" }).waitFor();
    assert.ok(await page.page.locator("#publish-everyone").isDisabled(), "this token does not allow publishing");
    await page.page.getByLabel("Topic", { exact: true }).fill("project:7");
    await page.page.keyboard.press("Enter");
    await page.page.locator("#topics [data-topic='project:7']").waitFor();
    await page.cut();
    await hub.publish({ type: "note", event_id: "missed", audience: { topic: "project:7" } });
    await page.event("missed");
  });

  live("events can be filtered, paused, opened by keyboard and cleared", {}, async (hub, page) => {
    await hub.publish({ type: "task.done", event_id: "a", data: { big: 1 } });
    await hub.publish({ type: "note", event_id: "b" });
    // A number that a double cannot represent.
    const data = '{"n":12345678901234567890,"e":[],"s":"a\\"{b"}';
    const body = `{"type":"note","event_id":"c","audience":"everyone","data":${data}}`;
    const headers = { Authorization: `Bearer ${hub.token}`, "Content-Type": "application/json" };
    await fetch(`${hub.origin}/events`, { method: "POST", body, headers });
    const row = await page.event("c");

    await row.locator("summary").focus();
    await page.page.keyboard.press("Enter");
    const json = await row.locator("pre").textContent();
    assert.ok(json.includes('\n    "n": 12345678901234567890,\n    "e": [],\n    "s": "a\\"{b"\n  }'), json);

    await page.page.getByLabel("Filter by type").fill("TASK");
    const visible = async () => (await page.page.locator("#events > li:visible").all()).length;
    await until(async () => await visible() === 1, "one row");
    await page.page.getByLabel("Filter by type").fill("nothing");
    await page.page.getByText("No event of this type").waitFor();
    await page.page.getByLabel("Filter by type").fill("");

    await page.click("pause");
    await hub.publish({ type: "note", event_id: "d" });
    await page.page.getByRole("button", { name: "Resume (1)" }).waitFor();
    assert.ok(!(await page.ids()).includes("d"));
    await page.click("pause");
    await page.event("d");
    await page.click("clear");
    assert.deepEqual(await page.ids(), []);
    assert.equal(await page.text("count"), "4 received");
  });

  live("after a burst the newest five hundred events are listed", {}, async (hub, page) => {
    const batch = { events: numbered(0, 1000).map((id) => ({ type: "note", event_id: id, audience: "everyone" })) };
    const response = await fetch(`${hub.origin}/events/batch`, {
      method: "POST", body: JSON.stringify(batch),
      headers: { Authorization: `Bearer ${hub.token}`, "Content-Type": "application/json" },
    });
    assert.equal(response.status, 200);
    await page.event("n-999");
    assert.equal(await page.text("count"), "1,000 received");
    assert.deepEqual(await page.ids(), numbered(500, 500));
  });
});

describe("layout", () => {
  const devices = { phone: { width: 390, height: 844 }, desktop: { width: 1280, height: 800 } };
  for (const [device, viewport] of Object.entries(devices)) {
    for (const colorScheme of ["light", "dark"]) {
      test(`${device}, ${colorScheme}`, async () => {
        const hub = await Hub.start({ FANFARE_WINDOW_EVENTS: "10" });
        try {
          mkdirSync(SCREENSHOTS, { recursive: true });
          const token = await hub.mint("--sub", "alice", "--publish", "--topics", "project:*");
          const context = { viewport, colorScheme };
          const page = await LivePage.open(chromium, `${hub.origin}/#token=${token}`, { context });
          const path = (name) => join(SCREENSHOTS, `${device}-${colorScheme}-${name}.png`);
          const picture = (name) => page.page.screenshot({ path: path(name) });
          const fits = () => page.page.evaluate(() => document.documentElement.scrollWidth <= innerWidth);
          await page.state("live");
          await picture("empty");
          const task = { task_id: "import-7", status: "running", progress: 40 };
          await hub.publish({ type: "task_status_update", event_id: "first", data: task });
          await page.event("first");
          await page.cut();
          await picture("offline");
          for (let step = 0; step < 12; step++) {
            const data = { agent_id: `agent-${step % 3}`, action: "searching", step };
            await hub.publish({ type: "agent_activity_update", data });
          }
          await page.state("live");
          const entry = { event_id: "c-9", title: "Review of the quarter", start_time: "2026-12-01T10:00:00Z" };
          await hub.publish({ type: "calendar_event_created", data: entry });
          await page.page.evaluate(() => {
            document.getElementById("topic").value = "project:7";
            document.getElementById("subscribe-form").requestSubmit();
          });
          await page.page.locator("#topics [data-topic='project:7']").waitFor({ state: "attached" });
          const text = "A longer text, which does not fit on one line of the list and so is truncated in it";
          await hub.publish({ type: "note", event_id: "last", data: { text } });
          const row = await page.event("last");
          await row.locator("summary").click();
          await row.locator("pre").waitFor();
          await picture("events");
          assert.ok(await fits(), "nothing is wider than the screen");
          await page.page.locator("#panel").evaluate((panel) => { panel.open = true; });
          await picture("panel");
          assert.ok(await fits(), "nothing is wider than the screen");
          await page.close();
        } finally {
          await hub.end();
        }
      });
    }
  }
});
