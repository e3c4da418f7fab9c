// The link to the server: one WebSocket for all channels, that comes back by itself and goes on behind what it has seen.

const FIRST_DELAY = 500; // ms; doubled by each failure in a row
const LONGEST_DELAY = 30_000;
const RESTART_DELAY = 3_000; // at the longest, if the server has said that it, or another one, will be back at once
const RESTART = 1012; // close code (IANA, WebSocket Close Code Number Registry)
const HANDSHAKE_TIMEOUT = 10_000;
const SETTLED = 5_000; // a socket that was open for this long has worked: back-off begins anew

export class Link {
  #channels = new Map(); // name -> {state, after, error}
  #socket = null;
  #timer = 0; // for the handshake, or for the next attempt
  #refusedTimer = 0;
  #failures = 0;
  #openedAt = 0;
  #lastId = null; // carries the positions in all channels that are open

  /**
   * `onMessage(message)` gets each message and gap in order, `onError(text)` what the server complains of besides;
   * `onState()` is called when any state has changed.
   */
  constructor({ onMessage, onError, onState }) {
    this.state = "idle"; // without channels, else "connecting" at first, "open", or "down": it will be tried again
    this.reason = ""; // why it is down, if the server has said so
    Object.assign(this, { onMessage, onError, onState });
  }

  /** "connecting", "open", "down", or "refused", and then with the server's word for it as `error`. */
  channel(name) {
    return this.#channels.get(name);
  }

  subscribe(name) {
    if (this.#channels.has(name)) return;
    this.#channels.set(name, { state: "connecting", after: null, error: "" });
    if (this.state === "open") this.#ask(name);
    else if (this.state === "idle") this.#connect();
  }

  unsubscribe(name) {
    if (!this.#channels.delete(name)) return;
    if (!this.#channels.size) this.#rest();
    else if (this.state === "open") this.#send({ unsubscribe: name });
  }

  /** Try again now, if the link waits for its next attempt: there is news that it may succeed. */
  retry() {
    if (this.state === "down" && !this.#socket) this.#connect();
  }

  /** The server does not answer although the socket looks open: take it for lost. */
  suspect() {
    if (this.state === "open") this.#lost();
  }

  #connect() {
    const url = new URL("ws", document.baseURI);
    url.protocol = url.protocol.replace("http", "ws");
    this.#drop();
    const socket = (this.#socket = new WebSocket(url));
    this.#timer = setTimeout(() => this.#lost(), HANDSHAKE_TIMEOUT);
    socket.onopen = () => this.#opened();
    socket.onmessage = (frame) => this.#received(JSON.parse(frame.data));
    socket.onclose = (end) => this.#lost(end);
    if (this.state === "idle") this.#become("connecting");
  }

  #opened() {
    clearTimeout(this.#timer);
    this.#openedAt = performance.now();
    this.#become("open");
    this.#channels.forEach((_, name) => this.#ask(name));
  }

  #ask(name) {
    const channel = this.#channels.get(name);
    const { after } = channel;
    channel.state = "connecting"; // and so it is not asked for twice
    this.#send({ subscribe: name, ref: name, ...(after && { last_event_id: after }) });
  }

  #send(request) {
    this.#socket.send(JSON.stringify(request));
  }

  #received(message) {
    this.#lastId = message.id ?? this.#lastId;
    if ("channel" in message) {
      // What is still under way of a channel that was given up concerns nobody.
      if (this.#channels.has(message.channel)) this.onMessage(message);
    } else if ("subscribed" in message) this.#settle(message.subscribed, "open");
    else if ("unsubscribed" in message) this.#askRefused(); // there may be room now
    else if ("error" in message) this.#complained(message);
  }

  #settle(name, state, error = "") {
    const channel = this.#channels.get(name);
    if (!channel) return;
    Object.assign(channel, { state, error });
    this.onState();
  }

  #complained({ ref, error }) {
    if (!this.#channels.has(ref)) return this.onError(error);
    this.#settle(ref, "refused", error);
    clearTimeout(this.#refusedTimer);
    // It may have been the broker's trouble: that can be over some time.
    this.#refusedTimer = setTimeout(() => this.#askRefused(), LONGEST_DELAY);
  }

  #askRefused() {
    if (this.state !== "open") return;
    for (const [name, { state }] of this.#channels) if (state === "refused") this.#ask(name);
  }

  #lost({ code = 0, reason = "" } = {}) {
    if (this.state === "open" && performance.now() - this.#openedAt > SETTLED) this.#failures = 0;
    this.#drop();
    for (const channel of this.#channels.values()) {
      // The last id says nothing of channels that this socket had not confirmed: they keep what they came with.
      if (channel.state === "open") channel.after = this.#lastId;
      Object.assign(channel, { state: "down", error: "" });
    }
    const back = Math.min(LONGEST_DELAY, FIRST_DELAY * 2 ** this.#failures++);
    // Jitter: the pages that lost the same server must not come back all at once.
    const delay = code === RESTART ? Math.max(back, RESTART_DELAY) * Math.random() : back * (0.5 + Math.random() / 2);
    this.#timer = setTimeout(() => this.#connect(), delay);
    this.reason = reason;
    this.#become("down");
  }

  /** Nothing to read any more: an idle page costs the server nothing. */
  #rest() {
    this.#drop();
    this.#lastId = null;
    this.#failures = 0;
    this.#become("idle");
  }

  #drop() {
    clearTimeout(this.#timer);
    if (!this.#socket) return;
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.close();
    this.#socket = null;
  }

  #become(state) {
    if (this.state === state) return;
    this.state = state;
    this.onState();
  }
}
