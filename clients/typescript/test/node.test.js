// The client on this runtime's own network: with the package "ws", and with the runtime's WebSocket where it has one.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:net";
import { afterEach, describe, test } from "node:test";
import { connect } from "fanfare-client";
import Package, { WebSocketServer } from "ws";

const TOKEN = "a.test.token";
/** Generous: the time limit of the client's own, after which it gives an attempt up, must not be what ends it. */
const NEVER = 600_000;

let client;
let server;
afterEach(async () => {
  client?.close();
  if (!server) return;
  server.close();
  for (const socket of server.clients ?? []) socket.terminate();
  server = undefined;
});

/** Resolves with the first state that `wanted` accepts. */
function state(wanted) {
  return new Promise((done) => {
    const off = client.onState((state) => { if (wanted(state)) { done(state); queueMicrotask(() => off()); } });
  });
}

async function listen(one) {
  server = one;
  await once(server, "listening");
  return server.address().port;
}

/** A port on which nothing listens. */
async function closedPort() {
  const port = await listen(createServer().listen(0, "127.0.0.1"));
  server.close();
  await once(server, "close");
  server = undefined;
  return port;
}

const broken = ({ retryAt, code }) => retryAt !== undefined && code === 1006;
const kinds = [["the package ws", Package], ["the runtime's own WebSocket", globalThis.WebSocket]].filter(([, kind]) => kind);

for (const [name, WebSocket] of kinds) {
  describe(name, () => {
    const open = (port) => { client = connect({ url: `ws://127.0.0.1:${port}/ws`, token: TOKEN, WebSocket, connectTimeout: NEVER }); };

    test("a refused connect is an attempt that failed", async () => {
      open(await closedPort());
      assert.equal((await state(broken)).name, "connecting");
    });

    test("an answer that is no upgrade is an attempt that failed", async () => {
      const http = (await import("node:http")).createServer((_, response) => { response.statusCode = 503; response.end("no"); });
      open(await listen(http.listen(0, "127.0.0.1")));
      assert.equal((await state(broken)).name, "connecting");
    });

    test("a client that is closed while it connects leaves nothing that fails", async () => {
      const silent = createServer((socket) => socket.on("error", () => {}));
      open(await listen(silent.listen(0, "127.0.0.1")));
      await once(silent, "connection");
      client.close();
      assert.equal(client.state.name, "closed");
    });

    test("what the hub sends arrives, a close has its code, and a broken socket comes back", async () => {
      const connects = [];
      const hub = new WebSocketServer({ host: "127.0.0.1", port: 0, handleProtocols: () => "fanfare" });
      hub.on("connection", (socket) => {
        connects.push(socket);
        socket.send(JSON.stringify({ type: "ack", event_id: "pos-1-0", timestamp: "t", connection_id: "c1", heartbeat: 30 }));
        socket.send(JSON.stringify({ type: "note", event_id: `e${connects.length}`, timestamp: "t", data: {} }));
      });
      open(await listen(hub));
      const events = client.events();
      assert.equal((await events.next()).value.event_id, "e1");
      connects[0].terminate();
      assert.equal((await state(broken)).name, "resuming");
      assert.equal((await events.next()).value.event_id, "e2");
      connects[1].close(4003, "");
      assert.equal((await state(({ name }) => name === "refused")).code, 4003);
    });
  });
}

test("after close() nothing keeps the process: no goaway, no onGap that never settles, no getToken", { timeout: 120_000 }, async () => {
  const hub = new WebSocketServer({ host: "127.0.0.1", port: 0, handleProtocols: () => "fanfare" });
  hub.on("connection", (socket) => {
    const frames = [{ type: "ack", connection_id: "c1", heartbeat: 30 }, { type: "gap", reason: "expired" }, { type: "goaway", reconnect_after_ms: NEVER }];
    frames.forEach((frame, n) => socket.send(JSON.stringify({ event_id: `pos-1-${n}`, timestamp: "t", ...frame })));
  });
  const url = `ws://127.0.0.1:${await listen(hub)}/ws`;
  const script = `
    import { connect } from "fanfare-client";
    import WebSocket from "ws";
    const never = () => new Promise(() => {});
    const asking = connect({ url: ${JSON.stringify(url)}, getToken: never, tokenTimeout: ${NEVER}, WebSocket });
    const client = connect({ url: ${JSON.stringify(url)}, token: "${TOKEN}", gapTimeout: ${NEVER}, WebSocket });
    client.onGap(() => { setTimeout(() => { asking.close(); client.close(); }, 50); return never(); });
  `;
  const child = spawn(process.execPath, ["--input-type=module", "--eval", script], { cwd: new URL(".", import.meta.url) });
  try {
    assert.deepEqual(await once(child, "exit"), [0, null]);
  } finally {
    child.kill();
  }
});
