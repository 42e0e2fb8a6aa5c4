// What the application and the client say to each other.

/** An event as it was published, with its place in the log. Times are ISO 8601. */
export interface FanfareEvent<Type extends string = string, Data = Record<string, unknown>> {
  type: Type;
  /** The same on every delivery of this event. */
  event_id: string;
  timestamp: string;
  data: Data;
  /** Where it stands in the hub's log: what the client keeps as its cursor. */
  log_position?: string;
  /** Whatever else the publisher sent. */
  [field: string]: unknown;
}

/** How a task stands. */
export interface TaskStatusUpdate {
  task_id: string;
  status?: "pending" | "queued" | "running" | "in_progress" | "paused" | "completed" | "failed" | "cancelled";
  /** In percent. */
  progress?: number;
  [field: string]: unknown;
}

/** What an agent does. */
export interface AgentActivityUpdate {
  agent_id?: string;
  action?: string;
  status?: string;
  [field: string]: unknown;
}

/** An entry of a calendar. */
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

/** The names of the types in an event map. */
export type TypeOf<Events extends object> = keyof Events & string;

/** The event of one type. */
export type EventOf<Events extends object, Type extends TypeOf<Events>> = FanfareEvent<Type, Events[Type]>;

/**
 * An event of any type of the map: `type` tells which. Events of types that the map does not name arrive as well,
 * so a `switch` over `type` needs a `default`.
 */
export type AnyEvent<Events extends object> = { [Type in TypeOf<Events>]: EventOf<Events, Type> }[TypeOf<Events>];

/** History was lost between what this client saw and what comes next: fetch the state anew. */
export interface Gap {
  type: "gap";
  event_id: string;
  timestamp: string;
  /** `expired`: away for longer than the hub remembers. `reset`: the hub's log was lost. */
  reason: "expired" | "reset" | (string & {});
  /** How many events of the log are missing, whoever they were for; not always known. */
  missed?: number;
  /** Aborted after `gapTimeout`, when events are delivered again: pass it to `fetch`, so that no late answer overwrites them. */
  signal: AbortSignal;
}

/** Something that the hub rejected, such as a topic; the connection stays. Or something of this client's own. */
export interface Problem {
  /** A word: `forbidden`, `invalid_topic`, `too_many_topics` and others of the protocol; `token`, `handler`, `gap_timeout`, `malformed`, `share` of the client's own. */
  error: string;
  /** A sentence with what to do. */
  message: string;
  /** The topic that was rejected, if it is about one. */
  topic?: string;
  /** What was thrown, if something was. */
  cause?: unknown;
}

/** How the connection stands, as an interface can show it. */
export interface State {
  /**
   * - `connecting`: for the first time.
   * - `live`: events arrive as they are published.
   * - `resuming`: it broke off, and goes on where it was.
   * - `offline`: this device has no network.
   * - `refused`: trying again would end the same way; `retry()` does so all the same.
   * - `closed`: not opened, or closed by this side.
   */
  name: "connecting" | "live" | "resuming" | "offline" | "refused" | "closed";
  /** Why, in words. Empty where there is nothing to say. */
  reason: string;
  /** The WebSocket close code that led here, if one did (1006: the connection broke off). */
  code?: number;
  /** When the next attempt begins, as `Date.now()` counts, if one waits. */
  retryAt?: number;
  /** In `live`: nothing was missed since the last time. */
  resumed?: boolean;
}

/** Where a client is: what it needs to go on from there, in another socket or another tab. */
export interface Cursor {
  connectionId?: string;
  lastEventId?: string;
}

/** A topic that the hub has confirmed. */
export interface Subscribed {
  topic: string;
  /** The place in the log from which the topic's events are delivered. */
  event_id: string;
}

/** Why a topic is not subscribed: the {@link Problem} as an error. */
export interface SubscribeError extends Error, Problem {}

/**
 * A subscription. Call it to give the topic up. Await it to know that the hub has confirmed the topic; it rejects with
 * a {@link SubscribeError} where the hub, or this client, has rejected it.
 */
export interface Subscription extends Pick<Promise<Subscribed>, "then" | "catch" | "finally"> {
  (): void;
}

/** Why a token is asked for: for the first connect, because one ends soon, or because the hub rejected the last one. */
export type TokenReason = "connect" | "expiring" | "refused";

export interface Options {
  /** Of the hub: `wss://hub.example.org/ws`. `https:` and a path such as `/ws` work too. */
  url: string;
  /** A token that never changes. */
  token?: string;
  /**
   * Gives a token: a JWT. With the reason `refused` it must be a new one: the last one was rejected, and a second rejection is final.
   * `signal` is aborted when the answer is no longer wanted.
   */
  getToken?: (reason: TokenReason, signal: AbortSignal) => string | Promise<string>;
  /** How long `getToken` may take, in milliseconds (30,000). Then it counts as failed, and is retried. */
  tokenTimeout?: number;
  /** How long the promise of an `onGap` handler holds events back, in milliseconds (30,000). */
  gapTimeout?: number;
  /** Topics from the start. */
  topics?: Iterable<string>;
  /** Go on from here. */
  cursor?: Cursor;
  /**
   * Tabs of this site that name the same, and whose user is the same, share one socket; `true` for one name for each URL.
   * Needs `navigator.locks`.
   */
  share?: boolean | string;
  /** Whose connection this is, for `share`. Unless given it is the token's `sub`. */
  user?: string;
  /** The token goes into the URL instead of a subprotocol, for hubs and proxies that know no other way. */
  tokenInUrl?: boolean;
  /** The longest pause between two attempts, in milliseconds (30,000). */
  maxPause?: number;
  /** How long a connect may take until the hub has answered, in milliseconds (10,000). */
  connectTimeout?: number;
  /** What makes sockets, where there is no global `WebSocket`: Node before 22, with that of the package `ws`. */
  WebSocket?: new (url: string, protocols: string[]) => SocketLike;
}

/** The part of the WebSocket interface that is used. */
export interface SocketLike {
  readyState: number;
  send(text: string): void;
  close(code?: number, reason?: string): void;
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
}

/** A message of the hub, as it came. */
export interface Frame {
  type: string;
  event_id: string;
  log_position?: string;
  timestamp: string;
  [field: string]: unknown;
}

/** What a source reports. */
export interface Sink {
  /** An event or a gap, and the cursor before it. */
  frame(frame: Frame, before: string | undefined): void;
  state(state: State): void;
  problem(problem: Problem): void;
  /** The hub has confirmed a topic. */
  subscribed(confirmed: Subscribed): void;
}

/** Where frames come from: a socket, or another tab's. */
export interface Source {
  /** The place of the last frame that was reported. */
  readonly cursor: Cursor;
  open(): void;
  /** Reports `subscribed`, or a problem with the topic, also if the topic is held already. */
  subscribe(topic: string): void;
  unsubscribe(topic: string): void;
  retry(token?: string): void;
  close(): void;
}
