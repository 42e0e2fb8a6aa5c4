"use client";
// Hooks around one client. Safe in strict mode, where effects run twice, and on the server, where they never do.

import { createContext, useCallback, useContext, useEffect, useMemo, useRef, useSyncExternalStore, type ReactNode } from "react";
import { Client, userOf, type AnyEvent, type EventMap, type EventOf, type Gap, type Options, type State, type TypeOf } from "fanfare-client";

const Context = createContext<Client<any> | null>(null);

/**
 * Gives its children a client: the one in `client`, or one of its own that connects while it is mounted.
 * A `token` of another user, another `user`, `url` or `share` makes a new client; a newer `token` of the same user and other
 * `topics` keep the connection.
 */
export function FanfareProvider({ children, client, topics, ...options }: { children?: ReactNode; client?: Client<any> } & Partial<Options>) {
  const latest = useRef(options);
  latest.current = options;
  const { url = "/ws", share, token } = options;
  const user = options.user ?? userOf(token);
  const asks = Boolean(options.getToken);
  const own = useMemo(() => client ?? new Client({
    ...latest.current,
    url,
    // The newest one is asked, though the client stays the same.
    ...(asks && { getToken: (reason, signal) => latest.current.getToken!(reason, signal) }),
  }), [client, url, share, user, asks]);
  useTopics(own, topics);
  const shown = useRef<{ client: Client<any>; token: string | undefined }>(undefined);
  useEffect(() => {
    if (token && shown.current?.client === own && shown.current.token !== token) own.retry(token);
    shown.current = { client: own, token };
  }, [own, token]);
  useEffect(() => {
    // Whoever made a client opens and closes it.
    if (client) return;
    own.open();
    return () => own.close();
  }, [client, own]);
  return <Context.Provider value={own}>{children}</Context.Provider>;
}

/** Holds topics, asking for new ones before it gives up old ones, so that those that stay are never given up. */
function useTopics(client: Client<any>, topics: Iterable<string> = []): void {
  const held = useRef<(() => void)[]>([]);
  const names = [...topics].sort();
  useEffect(() => {
    const before = held.current;
    held.current = names.map((topic) => client.subscribe(topic));
    before.forEach((off) => off());
  }, [client, JSON.stringify(names)]);
  useEffect(() => () => held.current.splice(0).forEach((off) => off()), []);
}

/** The client of the nearest provider. */
export function useFanfare<Events extends object = EventMap>(): Client<Events> {
  const client = useContext(Context);
  if (!client) throw new Error("this needs a <FanfareProvider> around it");
  return client;
}

function useLatest<T>(value: T) {
  const latest = useRef(value);
  useEffect(() => { latest.current = value; });
  return latest;
}

/** Calls `handler` with each event of a type, or with `"*"` with every one. */
export function useEvent<Type extends TypeOf<EventMap>>(type: Type, handler: (event: EventOf<EventMap, Type>) => void): void;
export function useEvent<Events extends object = EventMap>(type: "*", handler: (event: AnyEvent<Events>) => void): void;
export function useEvent(type: string, handler: (event: any) => void): void {
  const client = useFanfare<any>();
  const latest = useLatest(handler);
  useEffect(() => {
    const call = (event: any) => latest.current(event);
    return type === "*" ? client.onAny(call) : client.on(type, call);
  }, [client, type, latest]);
}

/** The hooks for an event map of your own: `const { useEvent } = createHooks<Own>()`, once, outside of components. */
export function createHooks<Events extends object>() {
  return { useFanfare: useFanfare as () => Client<Events>, useEvent: useEvent as UseEvent<Events> };
}

interface UseEvent<Events extends object> {
  <Type extends TypeOf<Events>>(type: Type, handler: (event: EventOf<Events, Type>) => void): void;
  (type: "*", handler: (event: AnyEvent<Events>) => void): void;
}

/** Calls `handler` when history was lost; later events wait for the promise it returns. */
export function useGap(handler: (gap: Gap) => unknown): void {
  const client = useFanfare<any>();
  const latest = useLatest(handler);
  useEffect(() => client.onGap((gap) => latest.current(gap)), [client, latest]);
}

/** Holds a topic while the component is mounted. None for `null`. */
export function useTopic(topic: string | null | undefined): void {
  const client = useFanfare<any>();
  useEffect(() => topic ? client.subscribe(topic) : undefined, [client, topic]);
}

const BEFORE: State = { name: "connecting", reason: "" };

/** How the connection stands, with what to do about it. */
export function useConnection(): State & { retry: (token?: string) => void } {
  const client = useFanfare<any>();
  const state = useSyncExternalStore((changed) => client.onState(changed), () => client.state, () => BEFORE);
  return { ...state, retry: useCallback((token?: string) => client.retry(token), [client]) };
}
