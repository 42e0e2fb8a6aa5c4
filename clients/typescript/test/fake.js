// A fake hub: sockets that send the messages of a test.

import { readFileSync } from "node:fs";
import { connect } from "fanfare-client";

/** Returns the cases of a file of wire vectors. */
export const vectors = (name) =>
  JSON.parse(readFileSync(new URL(`../../../tests/wire/${name}.json`, import.meta.url))).cases;

/** Returns a JWT of a user, with an invalid signature. */
export const jwt = (sub, more = {}) =>
  `e30.${Buffer.from(JSON.stringify({ sub, ...more })).toString("base64url")}.c2ln`;

export class Hub {
  sockets = [];
  states = [];
  problems = [];

  constructor() {
    const hub = this;
    this.WebSocket = class {
      readyState = 0;
      sent = [];
      constructor(url, protocols) {
        this.url = new URL(url);
        this.protocols = protocols;
        hub.sockets.push(this);
      }
      send(text) { this.sent.push(JSON.parse(text)); }
      close(code) { this.readyState = 3; this.closedWith = code; }
    };
  }

  /** The newest socket. */
  get socket() { return this.sockets.at(-1); }

  connect(options = {}) {
    const client = connect({ url: "ws://hub/ws", token: "a.test.token", WebSocket: this.WebSocket, ...options });
    client.onState((state) => this.states.push(state));
    client.onProblem((problem) => this.problems.push(problem));
    return client;
  }

  /** Accepts the newest socket. */
  async accept(more = {}) {
    await settled();
    this.socket.readyState = 1;
    const ack = { type: "ack", event_id: "pos-1-0", ack_event_id: "initial_connect", connection_id: "c1" };
    this.send({ ...ack, resumed: false, replayed: 0, heartbeat: 30, ...more });
  }

  send(frame) {
    const data = typeof frame === "string" ? frame : JSON.stringify({ timestamp: "t", ...frame });
    this.socket.onmessage?.({ data });
  }

  event(id, type = "note", data = {}) { this.send({ type, event_id: id, data }); }

  /** A failed connect, as Node 22's socket reports it: `error` and no `close`. */
  fail() {
    this.socket.readyState = 3;
    this.socket.onerror?.(new Event("error"));
  }

  close(code, reason = "") {
    this.socket.readyState = 3;
    this.socket.onclose?.({ code, reason });
  }
}

/** Runs the callbacks of settled promises. */
export const settled = () => new Promise((done) => setImmediate(done));
