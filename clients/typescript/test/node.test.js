// The client over real sockets: with the package "ws", and with the WebSocket of the runtime if there is one.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:net";
import { afterEach, describe, test } from "node:test";
import { connect } from "fanfare-client";
import Package, { WebSocketServer } from "ws";

const TOKEN = "a.test.token";
/** A time limit that is never reached: the failures under test must end an attempt, and not the client's timeout. */
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
const kinds = [["the package ws", Package], ["the runtime's own WebSocket", globalThis.WebSocket]]
  .filter(([, kind]) => kind);

for (const [name, WebSocket] of kinds) {
  describe(name, () => {
    const open = (port) => {
      client = connect({ url: `ws://127.0.0.1:${port}/ws`, token: TOKEN, WebSocket, connectTimeout: NEVER });
    };

    test("a refused connect is a failed attempt", async () => {
      open(await closedPort());
      assert.equal((await state(broken)).name, "connecting");
    });

    test("a response that is not an upgrade is a failed attempt", async () => {
      const respond = (_, response) => { response.statusCode = 503; response.end("no"); };
      const http = (await import("node:http")).createServer(respond);
      open(await listen(http.listen(0, "127.0.0.1")));
      assert.equal((await state(broken)).name, "connecting");
    });

    test("a client can be closed while it connects", async () => {
      const silent = createServer((socket) => socket.on("error", () => {}));
      open(await listen(silent.listen(0, "127.0.0.1")));
      await once(silent, "connection");
      client.close();
      assert.equal(client.state.name, "closed");
    });

    test("messages arrive, a close has its code, and a lost connection is resumed", async () => {
      const connects = [];
      const hub = new WebSocketServer({ host: "127.0.0.1", port: 0, handleProtocols: () => "fanfare" });
      hub.on("connection", (socket) => {
        connects.push(socket);
        const ack = { type: "ack", event_id: "pos-1-0", timestamp: "t", connection_id: "c1", heartbeat: 30 };
        socket.send(JSON.stringify(ack));
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

test("after close() no goaway, onGap or getToken keeps the process alive", { timeout: 120_000 }, async () => {
  const hub = new WebSocketServer({ host: "127.0.0.1", port: 0, handleProtocols: () => "fanfare" });
  hub.on("connection", (socket) => {
    const frames = [
      { type: "ack", connection_id: "c1", heartbeat: 30 },
      { type: "gap", reason: "expired" },
      { type: "goaway", reconnect_after_ms: NEVER },
    ];
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
  const cwd = new URL(".", import.meta.url);
  const child = spawn(process.execPath, ["--input-type=module", "--eval", script], { cwd });
  try {
    assert.deepEqual(await once(child, "exit"), [0, null]);
  } finally {
    child.kill();
  }
});
