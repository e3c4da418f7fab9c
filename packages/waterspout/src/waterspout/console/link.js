// The link to one channel: a WebSocket that comes back by itself and goes on behind the last message it has seen.

const FIRST_DELAY = 500; // ms; doubled by each failure in a row
const LONGEST_DELAY = 30_000;
const HANDSHAKE_TIMEOUT = 10_000;
const SETTLED = 5_000; // a socket that was open for this long has worked: back-off begins anew

export class Link {
  #socket = null;
  #timer = 0;
  #failures = 0;
  #openedAt = 0;
  #lastId = null;
  #wasOpen = false;

  /** `onMessage(message)` gets each message and gap in order; `onState(link)` is called when `state` has changed. */
  constructor(channel, { onMessage, onState }) {
    this.channel = channel;
    this.state = "connecting"; // "connecting" at first, "open", or "down": it will be tried again
    this.onMessage = onMessage;
    this.onState = onState;
    this.#connect();
  }

  close() {
    this.#drop();
    this.onState = this.onMessage = () => {};
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
    url.searchParams.set("channel", this.channel);
    if (this.#lastId) url.searchParams.set("last_event_id", this.#lastId);
    this.#drop();
    const socket = (this.#socket = new WebSocket(url));
    this.#timer = setTimeout(() => this.#lost(), HANDSHAKE_TIMEOUT);
    socket.onopen = () => this.#opened();
    socket.onmessage = (frame) => this.#received(JSON.parse(frame.data));
    socket.onclose = () => this.#lost();
  }

  #opened() {
    clearTimeout(this.#timer);
    this.#openedAt = performance.now();
    // Without an id the server cannot know what we have missed, so it is for us to say that we do not know either.
    if (this.#wasOpen && !this.#lastId) this.onMessage({ channel: this.channel, event: "gap", data: { missed: null } });
    this.#wasOpen = true;
    this.#become("open");
  }

  #received(message) {
    this.#lastId = message.id ?? this.#lastId;
    this.onMessage(message);
  }

  #lost() {
    if (this.state === "open" && performance.now() - this.#openedAt > SETTLED) this.#failures = 0;
    this.#drop();
    const delay = Math.min(LONGEST_DELAY, FIRST_DELAY * 2 ** this.#failures++);
    // Jitter: the pages that lost the same server must not come back all at once.
    this.#timer = setTimeout(() => this.#connect(), delay * (0.5 + Math.random() / 2));
    this.#become("down");
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
    this.onState(this);
  }
}
