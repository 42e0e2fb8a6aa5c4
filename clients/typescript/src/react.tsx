"use client";
// React hooks for one client.
// They are safe in strict mode, which runs effects twice, and on the server, which runs no effects.

import {
  createContext, useCallback, useContext, useEffect, useMemo, useRef, useSyncExternalStore, type ReactNode,
} from "react";
import {
  Client, userOf, type AnyEvent, type EventMap, type EventOf, type Gap, type Options, type State, type TypeOf,
} from "fanfare-client";

const Context = createContext<Client<any> | null>(null);

/**
 * Provides a client to its children: the one in `client`, or its own, which is connected while the provider is mounted.
 * A `token` of another user, another `user`, `url` or `share` creates a new client.
 * A newer `token` of the same user and other `topics` keep the connection.
 */
export function FanfareProvider(
  { children, client, topics, ...options }: { children?: ReactNode; client?: Client<any> } & Partial<Options>,
) {
  const latest = useRef(options);
  latest.current = options;
  const { url = "/ws", share, token } = options;
  const user = options.user ?? userOf(token);
  const hasGetToken = Boolean(options.getToken);
  const own = useMemo(() => client ?? new Client({
    ...latest.current,
    url,
    // The client stays the same when the prop changes, so it must call the newest function.
    ...(hasGetToken && { getToken: (reason, signal) => latest.current.getToken!(reason, signal) }),
  }), [client, url, share, user, hasGetToken]);
  useTopics(own, topics);
  const previous = useRef<{ client: Client<any>; token: string | undefined }>(undefined);
  useEffect(() => {
    if (token && previous.current?.client === own && previous.current.token !== token) own.retry(token);
    previous.current = { client: own, token };
  }, [own, token]);
  useEffect(() => {
    // A client that is passed in is opened and closed by its owner.
    if (client) return;
    own.open();
    return () => own.close();
  }, [client, own]);
  return <Context.Provider value={own}>{children}</Context.Provider>;
}

/** Subscribes to topics. New topics are subscribed before old ones are unsubscribed, so that common ones are kept. */
function useTopics(client: Client<any>, topics: Iterable<string> = []): void {
  const subscriptions = useRef<(() => void)[]>([]);
  const names = [...topics].sort();
  useEffect(() => {
    const before = subscriptions.current;
    subscriptions.current = names.map((topic) => client.subscribe(topic));
    before.forEach((off) => off());
  }, [client, JSON.stringify(names)]);
  useEffect(() => () => subscriptions.current.splice(0).forEach((off) => off()), []);
}

/** Returns the client of the nearest provider. */
export function useFanfare<Events extends object = EventMap>(): Client<Events> {
  const client = useContext(Context);
  if (!client) throw new Error("no client: render this component inside a <FanfareProvider>");
  return client;
}

function useLatest<T>(value: T) {
  const latest = useRef(value);
  useEffect(() => { latest.current = value; });
  return latest;
}

/** Calls `handler` with each event of a type, or of every type with `"*"`. */
export function useEvent<Type extends TypeOf<EventMap>>(
  type: Type, handler: (event: EventOf<EventMap, Type>) => void,
): void;
export function useEvent<Events extends object = EventMap>(type: "*", handler: (event: AnyEvent<Events>) => void): void;
export function useEvent(type: string, handler: (event: any) => void): void {
  const client = useFanfare<any>();
  const latest = useLatest(handler);
  useEffect(() => {
    const call = (event: any) => latest.current(event);
    return type === "*" ? client.onAny(call) : client.on(type, call);
  }, [client, type, latest]);
}

/**
 * Returns hooks for your own event map: `const { useEvent } = createHooks<Own>()`.
 * Call it once, outside of components.
 */
export function createHooks<Events extends object>() {
  return { useFanfare: useFanfare as () => Client<Events>, useEvent: useEvent as UseEvent<Events> };
}

interface UseEvent<Events extends object> {
  <Type extends TypeOf<Events>>(type: Type, handler: (event: EventOf<Events, Type>) => void): void;
  (type: "*", handler: (event: AnyEvent<Events>) => void): void;
}

/** Calls `handler` when events are no longer available. Later events wait for the promise that it returns. */
export function useGap(handler: (gap: Gap) => unknown): void {
  const client = useFanfare<any>();
  const latest = useLatest(handler);
  useEffect(() => client.onGap((gap) => latest.current(gap)), [client, latest]);
}

/** Subscribes to a topic while the component is mounted. `null` subscribes to none. */
export function useTopic(topic: string | null | undefined): void {
  const client = useFanfare<any>();
  useEffect(() => topic ? client.subscribe(topic) : undefined, [client, topic]);
}

const SERVER_STATE: State = { name: "connecting", reason: "" };

/** Returns the state of the connection, and a function that connects immediately. */
export function useConnection(): State & { retry: (token?: string) => void } {
  const client = useFanfare<any>();
  const state = useSyncExternalStore((changed) => client.onState(changed), () => client.state, () => SERVER_STATE);
  return { ...state, retry: useCallback((token?: string) => client.retry(token), [client]) };
}
