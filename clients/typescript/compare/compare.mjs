// Prints the size of each client, bundled for a browser, and the time from connect() until it is live.
// All clients and servers run in one process, except the hub.
//
//   cd clients/typescript && npm ci && npm run build && cd compare && npm ci && npm start
//
// Needs a release build of the hub (cargo build --release). For clients whose servers are not on npm, only the size is
// printed.

import { execFileSync, spawn } from "node:child_process";
import { createServer } from "node:http";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import ReconnectingWebSocket from "reconnecting-websocket";
import { Server } from "socket.io";
import { io } from "socket.io-client";
import WebSocket, { WebSocketServer } from "ws";
import { connect } from "../dist/index.js";

const ROUNDS = 300;
const here = fileURLToPath(new URL(".", import.meta.url));
const program = resolve(process.env.FANFARE_BIN ?? join(here, "../../../target/release/fanfare"));

async function size(entry) {
  const { outputFiles: [file] } = await build({
    stdin: { contents: entry, resolveDir: here }, bundle: true, minify: true, write: false,
    format: "esm", platform: "browser", logLevel: "error",
    // Loaded only for the option `share`.
    external: ["../dist/share.js", "./share.js"],
  });
  return gzipSync(file.contents, { level: 9 }).length;
}

/** Returns the milliseconds until `open` resolves, for one connection after another, sorted. */
async function times(open) {
  const all = [];
  for (let round = 0; round < ROUNDS + 20; round++) {
    const began = performance.now();
    const close = await open();
    if (round >= 20) all.push(performance.now() - began);
    await close();
  }
  return all.sort((a, b) => a - b);
}

const listening = (server) => new Promise((done) => server.listen(0, "127.0.0.1", () => done(server.address().port)));

async function fanfare() {
  const directory = mkdtempSync(join(tmpdir(), "fanfare-compare-"));
  const env = {
    PATH: process.env.PATH, SECRET_KEY: "a secret for comparisons, 32 bytes",
    FANFARE_CONNECTS_PER_SECOND_PER_ADDRESS: "0", FANFARE_CONNECTS_PER_SECOND_PER_USER: "0",
  };
  const serve = ["serve", "--listen", "127.0.0.1:0"];
  const hub = spawn(program, serve, { cwd: directory, env, stdio: ["ignore", "ignore", "pipe"] });
  const address = await new Promise((found) => {
    let output = "";
    hub.stderr.on("data", (data) => {
      output += data;
      const match = output.match(/http:\/\/([\d.]+:\d+)/);
      if (match) found(match[1]);
    });
  });
  try {
    const token = execFileSync(program, ["token", "--sub", "ann"], { cwd: directory, env }).toString().trim();
    return await times(() => new Promise((live) => {
      const client = connect({ url: `ws://${address}/ws`, token, WebSocket });
      const off = client.onState(({ name }) => { if (name === "live") { off?.(); live(() => client.close()); } });
    }));
  } finally {
    hub.kill("SIGKILL");
    rmSync(directory, { recursive: true, force: true });
  }
}

async function socketIo() {
  const server = createServer();
  const hub = new Server(server);
  const port = await listening(server);
  const all = await times(() => new Promise((live) => {
    const socket = io(`http://127.0.0.1:${port}`, { transports: ["websocket"], forceNew: true });
    socket.on("connect", () => live(() => socket.disconnect()));
  }));
  await hub.close();
  return all;
}

async function reconnecting() {
  const server = createServer();
  const hub = new WebSocketServer({ server });
  const port = await listening(server);
  const all = await times(() => new Promise((live) => {
    const socket = new ReconnectingWebSocket(`ws://127.0.0.1:${port}`, [], { WebSocket });
    socket.addEventListener("open", () => live(() => socket.close()));
  }));
  hub.close();
  server.close();
  return all;
}

const rows = [
  ["fanfare-client", 'export * from "../dist/index.js"', fanfare, "authenticated and resumable, until its `ack`"],
  ["socket.io-client", 'export * from "socket.io-client"', socketIo,
    "its own server, WebSocket only, no authentication"],
  ["centrifuge", 'export * from "centrifuge"', null, "its server is not on npm"],
  ["pusher-js", 'export { default } from "pusher-js"', null, "its server is not on npm"],
  ["reconnecting-websocket", 'export { default } from "reconnecting-websocket"', reconnecting,
    "the package ws, a plain socket"],
];
console.log("| client | size, gzipped | connect() to live, p50 | p99 | against |\n|---|---:|---:|---:|---|");
for (const [name, entry, run, against] of rows) {
  const bytes = await size(entry);
  const all = run && await run();
  const at = (share) => all ? `${all[Math.floor(all.length * share)].toFixed(2)} ms` : "";
  console.log(`| ${name} | ${(bytes / 1024).toFixed(1)} KiB | ${at(0.5)} | ${at(0.99)} | ${against} |`);
}
process.exit(0);
