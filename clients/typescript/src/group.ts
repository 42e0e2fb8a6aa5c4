// The tabs that share a socket: who leads them, and whether that one still answers. Knows nothing of what they say.

/** How often a follower looks whether it has heard of the leader, in milliseconds. */
const BEAT = 2_000;
/** After so many questions without an answer another one leads. */
const MISSES = 3;

export interface Member {
  /** This tab leads from now on. */
  lead(): void;
  /** Another tab has taken the lead. */
  deposed(): void;
  /** Locks are denied to this page: it has a null origin, or the browser keeps nothing for this site. */
  unavailable(cause: unknown): void;
  /** Asks the leader for a sign of life. */
  probe(): void;
  hear(word: any): void;
}

export class Group {
  readonly id = Math.random().toString(36).slice(2);
  leading = false;
  private readonly leaving = new AbortController();
  private readonly channel: BroadcastChannel;
  private waiting: AbortController | undefined;
  /** Lets go of the lead's lock. */
  private release: (() => void) | undefined;
  private readonly watch: any;
  private misses = 0;
  private looked = Date.now();

  constructor(private readonly name: string, private readonly member: Member, private readonly joined: () => void) {
    this.channel = new BroadcastChannel(name);
    this.channel.onmessage = ({ data }) => { if (!this.leaving.signal.aborted) this.member.hear(data); };
    // Others see by this lock when this tab is gone.
    this.hold(`${name}:${this.id}`, this.leaving.signal, () => {
      this.joined();
      this.stand();
    });
    this.watch = setInterval(() => this.look(), BEAT + Math.random() * 500);
  }

  post(word: object): void { this.channel.postMessage(word); }

  /** The leader was heard. */
  heard(): void { this.misses = 0; }

  leave(): void {
    this.leading = false;
    clearInterval(this.watch);
    this.waiting?.abort();
    this.leaving.abort();
    this.channel.close();
  }

  /** Gives the lead up to the one that took it, and waits to lead again. */
  yield(): void {
    if (!this.leading) return;
    this.leading = false;
    this.release?.();
    this.member.deposed();
    this.stand();
  }

  /** Calls `gone` when another tab is. */
  whenGone(tab: string, gone: () => void): void {
    navigator.locks.request(`${this.name}:${tab}`, { signal: this.leaving.signal }, gone).catch(() => {});
  }

  /** Leads when the lock is free, or at once by force. */
  private stand(steal = false): void {
    this.waiting?.abort();
    const waiting = this.waiting = new AbortController();
    const lead = () => {
      this.leading = true;
      this.misses = 0;
      this.member.lead();
    };
    this.hold(this.name, steal ? undefined : waiting.signal, lead, steal);
  }

  /** Holds a lock until this tab leaves, or yields. */
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
      // A lock that was held and is lost was stolen.
      if (mine && mine === this.release) this.yield();
      else if (cause?.name === "SecurityError") this.member.unavailable(cause);
    });
  }

  /** Takes the lead from one that no longer answers. */
  private look(): void {
    const late = Date.now() - this.looked > 2 * BEAT;
    this.looked = Date.now();
    if (this.leading) return;
    // A tab that was halted itself knows nothing of the leader.
    this.misses = late ? 0 : this.misses + 1;
    if (this.misses > MISSES) this.stand(true);
    else this.member.probe();
  }
}
