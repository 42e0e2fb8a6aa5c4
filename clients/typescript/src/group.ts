// The group of tabs that share a socket: elects the leading tab by locks, and replaces a leader that does not respond.
// It passes on messages between the tabs, and must not know their content.

/** How often a follower probes the leader, in milliseconds. */
const PROBE_INTERVAL = 2_000;
/** After this number of probes without an answer, another tab takes over the lead. */
const MAX_MISSED_PROBES = 3;

export interface Member {
  /** This tab is the leader now. */
  lead(): void;
  /** Another tab took over the lead. */
  deposed(): void;
  /** The browser denies locks to this page: the page has a null origin, or the browser stores no data for the site. */
  unavailable(cause: unknown): void;
  /** Sends a probe to the leader. */
  probe(): void;
  receive(message: any): void;
}

export class Group {
  readonly id = Math.random().toString(36).slice(2);
  leading = false;
  private readonly leaving = new AbortController();
  private readonly channel: BroadcastChannel;
  private waiting: AbortController | undefined;
  /** Releases the leader lock. */
  private release: (() => void) | undefined;
  private readonly watch: any;
  private missed = 0;
  private lastCheck = Date.now();

  constructor(private readonly name: string, private readonly member: Member, private readonly joined: () => void) {
    this.channel = new BroadcastChannel(name);
    this.channel.onmessage = ({ data }) => { if (!this.leaving.signal.aborted) this.member.receive(data); };
    // The browser releases this lock when the tab is closed, which notifies the other tabs (`whenGone`).
    // It must be held before the tab takes part in the election, so that a leader can watch every tab that greets it.
    this.hold(`${name}:${this.id}`, this.leaving.signal, () => {
      this.joined();
      this.requestLead();
    });
    this.watch = setInterval(() => this.checkLeader(), PROBE_INTERVAL + Math.random() * 500);
  }

  post(message: object): void { this.channel.postMessage(message); }

  /** Records a message of the leader. */
  leaderResponded(): void { this.missed = 0; }

  leave(): void {
    this.leading = false;
    clearInterval(this.watch);
    this.waiting?.abort();
    this.leaving.abort();
    this.channel.close();
  }

  /** Releases the lead, which another tab took over, and queues for the lead again. */
  yield(): void {
    if (!this.leading) return;
    this.leading = false;
    this.release?.();
    this.member.deposed();
    this.requestLead();
  }

  /** Calls `gone` when another tab is closed. */
  whenGone(tab: string, gone: () => void): void {
    navigator.locks.request(`${this.name}:${tab}`, { signal: this.leaving.signal }, gone).catch(() => {});
  }

  /** Becomes the leader when the lock is free, or with `steal` immediately. */
  private requestLead(steal = false): void {
    this.waiting?.abort();
    const waiting = this.waiting = new AbortController();
    const lead = () => {
      this.leading = true;
      this.missed = 0;
      this.member.lead();
    };
    this.hold(this.name, steal ? undefined : waiting.signal, lead, steal);
  }

  /** Holds a lock until this tab leaves the group or releases the lock. */
  private hold(name: string, signal: AbortSignal | undefined, held: () => void, steal = false): void {
    const { leaving } = this;
    const options = steal ? { steal } : signal ? { signal } : {};
    let mine: (() => void) | undefined;
    void navigator.locks.request(name, options, () => {
      if (leaving.signal.aborted) return;
      const until = new Promise<void>((done) => { mine = done; });
      leaving.signal.addEventListener("abort", mine!);
      if (name === this.name) this.release = mine;
      held();
      return until;
    }).catch((cause) => {
      if (leaving.signal.aborted) return;
      // The request of a lock that is held rejects only if another tab stole the lock.
      if (mine && mine === this.release) this.yield();
      else if (cause?.name === "SecurityError") this.member.unavailable(cause);
    });
  }

  /** Probes the leader, and takes over the lead from a leader that does not respond. */
  private checkLeader(): void {
    const late = Date.now() - this.lastCheck > 2 * PROBE_INTERVAL;
    this.lastCheck = Date.now();
    if (this.leading) return;
    // A tab that was suspended received no answers, so its missed probes say nothing about the leader.
    this.missed = late ? 0 : this.missed + 1;
    if (this.missed > MAX_MISSED_PROBES) this.requestLead(true);
    else this.member.probe();
  }
}
