// Hooks around one client. Safe in strict mode, where effects run twice, and on the server, where they never do.

import { createContext, useCallback, useContext, useEffect, useMemo, useRef, useSyncExternalStore, type ReactNode } from "react";
import { Client, type AnyEvent, type EventMap, type EventOf, type Gap, type Options, type State, type TypeOf } from "fanfare-client";

const Context = createContext<Client<any> | null>(null);

/** Gives its children a client: the one in `client`, or one of its own that connects while it is mounted. */
export function FanfareProvider({ children, client, ...options }: { children?: ReactNode; client?: Client<any> } & Partial<Options>) {
  const latest = useRef(options);
  latest.current = options;
  const { url = "/ws", share } = options;
  const own = useMemo(() => client ?? new Client({
    ...latest.current,
    url,
    // The newest one is asked, though the client stays the same.
    ...(latest.current.getToken && { getToken: (reason) => latest.current.getToken!(reason) }),
  }), [client, url, share]);
  useEffect(() => {
    // Whoever made a client opens and closes it.
    if (client) return;
    own.open();
    return () => own.close();
  }, [client, own]);
  return <Context.Provider value={own}>{children}</Context.Provider>;
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
export function useEvent<Events extends object = EventMap, Type extends TypeOf<Events> = TypeOf<Events>>(
  type: Type, handler: (event: EventOf<Events, Type>) => void): void;
export function useEvent<Events extends object = EventMap>(type: "*" | (string & {}), handler: (event: AnyEvent<Events>) => void): void;
export function useEvent(type: string, handler: (event: any) => void): void {
  const client = useFanfare<any>();
  const latest = useLatest(handler);
  useEffect(() => {
    const call = (event: any) => latest.current(event);
    return type === "*" ? client.onAny(call) : client.on(type, call);
  }, [client, type, latest]);
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
