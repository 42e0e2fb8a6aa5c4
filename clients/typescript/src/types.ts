// The types of the API, and of the interface between the client and its sources.

/** An event as it was published, with its position in the log. Times are ISO 8601. */
export interface FanfareEvent<Type extends string = string, Data = Record<string, unknown>> {
  type: Type;
  /** Identifies the event. It is the same in every delivery of this event. */
  event_id: string;
  timestamp: string;
  data: Data;
  /** The position of the event in the hub's log, which the client stores as its cursor. */
  log_position?: string;
  /** Further fields that the publisher sent. */
  [field: string]: unknown;
}

/** The status of a task. */
export interface TaskStatusUpdate {
  task_id: string;
  status?: "pending" | "queued" | "running" | "in_progress" | "paused" | "completed" | "failed" | "cancelled";
  /** Percent, from 0 to 100. */
  progress?: number;
  [field: string]: unknown;
}

/** The activity of an agent. */
export interface AgentActivityUpdate {
  agent_id?: string;
  action?: string;
  status?: string;
  [field: string]: unknown;
}

/** A new entry in a calendar. */
export interface CalendarEventCreated {
  event_id?: string;
  title?: string;
  start_time?: string;
  [field: string]: unknown;
}

/**
 * The `data` of each type of event. Add your own, either here by declaration merging or as the type argument of
 * {@link connect}: `connect<EventMap & { note: { text: string } }>(...)`.
 */
export interface EventMap {
  task_status_update: TaskStatusUpdate;
  agent_activity_update: AgentActivityUpdate;
  calendar_event_created: CalendarEventCreated;
}

/** The event types of an event map. */
export type TypeOf<Events extends object> = keyof Events & string;

/** An event of one type. */
export type EventOf<Events extends object, Type extends TypeOf<Events>> = FanfareEvent<Type, Events[Type]>;

/**
 * An event of any type of the map, discriminated by `type`.
 * Events of types that are not in the map arrive as well, so a `switch` over `type` needs a `default`.
 */
export type AnyEvent<Events extends object> = { [Type in TypeOf<Events>]: EventOf<Events, Type> }[TypeOf<Events>];

/** Events between the client's cursor and the next event are no longer available: reload your data. */
export interface Gap {
  type: "gap";
  event_id: string;
  timestamp: string;
  /** `expired`: the events were evicted from the hub's window. `reset`: the log lost events, or no longer exists. */
  reason: "expired" | "reset" | (string & {});
  /** The number of events of the log that were skipped, regardless of their audience. Absent if it is not known. */
  missed?: number;
  /**
   * Aborted after `gapTimeout`, when events are delivered again.
   * Pass it to `fetch`, so that a late response does not overwrite newer events.
   */
  signal: AbortSignal;
}

/** An error that does not end the connection: the hub rejected a message, such as a topic, or the client failed. */
export interface Problem {
  /**
   * A code. Codes of the protocol are `forbidden`, `invalid_topic`, `too_many_topics` and others.
   * Codes of the client are `token`, `handler`, `gap_timeout`, `malformed` and `share`.
   */
  error: string;
  /** What is wrong, and what to do about it. */
  message: string;
  /** The rejected topic, if the problem concerns a topic. */
  topic?: string;
  /** The value that was thrown, if any. */
  cause?: unknown;
}

/** The state of the connection, for display. */
export interface State {
  /**
   * - `connecting`: connecting for the first time.
   * - `live`: events arrive as they are published.
   * - `resuming`: the connection was lost, and the client reconnects with its cursor.
   * - `offline`: the device has no network.
   * - `refused`: the client does not reconnect, because another attempt would fail in the same way. `retry()` tries
   *   again.
   * - `closed`: not opened yet, or closed by the application.
   */
  name: "connecting" | "live" | "resuming" | "offline" | "refused" | "closed";
  /** The cause of the state, as a text for people. Empty if there is none. */
  reason: string;
  /** The WebSocket close code that caused the state, if any (1006: the connection was lost). */
  code?: number;
  /** The time of the next attempt, in milliseconds since the epoch, if one is scheduled. */
  retryAt?: number;
  /** In `live`: no event was missed since the last connection. */
  resumed?: boolean;
}

/** The cursor of a client: the values with which another socket or another tab resumes. */
export interface Cursor {
  connectionId?: string;
  lastEventId?: string;
}

/** A subscription that the hub has acknowledged. */
export interface Subscribed {
  topic: string;
  /** The position in the log from which the topic's events are delivered. */
  event_id: string;
}

/** The error with which a {@link Subscription} rejects: a {@link Problem} as an `Error`. */
export interface SubscribeError extends Error, Problem {}

/**
 * A subscription. Call it to unsubscribe.
 * Await it to wait for the hub's answer: it resolves when the hub has acknowledged the topic, and rejects with a
 * {@link SubscribeError} if the hub or this client has rejected it.
 */
export interface Subscription extends Pick<Promise<Subscribed>, "then" | "catch" | "finally"> {
  (): void;
}

/**
 * Why `getToken` is called: `connect` for the first token, `expiring` before the current token expires, `refused` after
 * the hub has rejected the last one.
 */
export type TokenReason = "connect" | "expiring" | "refused";

export interface Options {
  /** The URL of the hub, such as `wss://hub.example.org/ws`. `https:` and a path such as `/ws` are accepted too. */
  url: string;
  /** A fixed token. Without `getToken`, a rejection of it is final. */
  token?: string;
  /**
   * Returns a token, which is a JWT.
   * With the reason `refused` it must return a new token, because a second rejection is final.
   * `signal` is aborted when the result is no longer needed.
   */
  getToken?: (reason: TokenReason, signal: AbortSignal) => string | Promise<string>;
  /** The time limit of `getToken`, in milliseconds (30,000). After it the call counts as failed, and is retried. */
  tokenTimeout?: number;
  /** The longest time for which the promise of an `onGap` handler delays events, in milliseconds (30,000). */
  gapTimeout?: number;
  /** Topics to subscribe to when connecting. */
  topics?: Iterable<string>;
  /** The cursor to resume from. */
  cursor?: Cursor;
  /**
   * Tabs of this site with the same name and the same user share one socket. `true` uses the URL as the name.
   * Without `navigator.locks` and `BroadcastChannel`, each tab has its own socket.
   */
  share?: boolean | string;
  /** The user, for `share`. The default is the token's `sub`. */
  user?: string;
  /** Send the token in the URL instead of a subprotocol, for hubs and proxies that do not support subprotocols. */
  tokenInUrl?: boolean;
  /** The longest pause between two attempts, in milliseconds (30,000). */
  maxPause?: number;
  /** The time limit of a connect, until the hub's first message, in milliseconds (10,000). */
  connectTimeout?: number;
  /** The WebSocket class, for runtimes without a global `WebSocket`: on Node before 22, that of the package `ws`. */
  WebSocket?: new (url: string, protocols: string[]) => SocketLike;
}

/** The part of the WebSocket interface that the client uses. */
export interface SocketLike {
  readyState: number;
  send(text: string): void;
  close(code?: number, reason?: string): void;
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
}

/** A message of the hub, as received. */
export interface Frame {
  type: string;
  event_id: string;
  log_position?: string;
  timestamp: string;
  [field: string]: unknown;
}

/** Receives the output of a {@link Source}. */
export interface Sink {
  /** An event or a gap was received. `before` is the cursor before it. */
  frame(frame: Frame, before: string | undefined): void;
  state(state: State): void;
  problem(problem: Problem): void;
  /** The hub has acknowledged a topic. */
  subscribed(confirmed: Subscribed): void;
}

/** A source of frames: this tab's socket, or the socket of another tab. */
export interface Source {
  /** The cursor after the last frame that was passed to the sink. */
  readonly cursor: Cursor;
  open(): void;
  /** Subscribes. Reports `subscribed` or a problem with the topic, also if the topic is subscribed already. */
  subscribe(topic: string): void;
  unsubscribe(topic: string): void;
  retry(token?: string): void;
  close(): void;
}
