export { Client, connect, type Off } from "./client.js";
export { verdict, type Verdict } from "./closes.js";
export { userOf } from "./token.js";
export type {
  AgentActivityUpdate, AnyEvent, CalendarEventCreated, Cursor, EventMap, EventOf, FanfareEvent, Gap, Options, Problem,
  SocketLike, State, SubscribeError, Subscribed, Subscription, TaskStatusUpdate, TokenReason, TypeOf,
} from "./types.js";
