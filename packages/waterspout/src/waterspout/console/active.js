// What is active on the server: asked every few seconds; a list of channels to click on, and a line on its connections.

import { byId, element, setText } from "./dom.js";

const PERIOD = 3_000; // ms
const TIMEOUT = 5_000;
const MANY = 1_000; // channels; beyond, the list is asked for less often
const MAX_SHOWN = 100;
const MISSES = 2; // answers in a row that must be missing until we say so

const whole = new Intl.NumberFormat("en");
const count = new Intl.NumberFormat("en", { notation: "compact" });

export class ActiveChannels {
  #known = []; // as the server lists them
  #rows = new Map(); // channel -> {row, button, figures}
  #missed = 0;
  #timer = 0;

  /** `onAnswer(names)` and `onSilence()` tell what became of each question; `toggle(channel)` of a click. */
  constructor({ isSubscribed, toggle, onAnswer, onSilence }) {
    Object.assign(this, { isSubscribed, toggle, onAnswer, onSilence });
    this.list = byId("active");
    this.note = byId("active-note");
    this.connections = byId("connections");
    this.needle = "";
  }

  get reachable() {
    return this.#missed < MISSES;
  }

  /** Ask now, and again from time to time. */
  async ask() {
    clearTimeout(this.#timer);
    if (!document.hidden) await this.#ask();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.ask(), PERIOD * (1 + Math.floor(this.#known.length / MANY)));
  }

  /** Show those that contain `needle`. */
  filter(needle) {
    this.needle = needle;
    this.show();
  }

  show() {
    const fitting = this.#known.filter(({ channel }) => channel.includes(this.needle));
    const shown = new Set(fitting.slice(0, MAX_SHOWN).map(({ channel }) => channel));
    for (const [channel, { row }] of this.#rows) {
      if (shown.has(channel)) continue;
      row.remove();
      this.#rows.delete(channel);
    }
    for (const [index, active] of fitting.slice(0, MAX_SHOWN).entries()) {
      const { row, button, figures } = this.#rows.get(active.channel) ?? this.#newRow(active.channel);
      button.ariaPressed = String(this.isSubscribed(active.channel));
      setText(figures, count.format(active.subscribers));
      figures.title = `subscribers; ${active.messages} messages so far`;
      // Moved only where it must be, so that focus stays.
      if (this.list.children[index] !== row) this.list.insertBefore(row, this.list.children[index] ?? null);
    }
    setText(this.note, this.#explain(fitting.length));
  }

  async #ask() {
    try {
      const [{ channels }, { connections }] = await Promise.all(["channels", "healthz"].map(fetchJSON));
      this.#known = channels;
      setText(this.connections, connections ? describe(connections) : "");
    } catch {
      this.#missed++;
      setText(this.connections, "");
      this.show();
      if (!this.reachable) this.onSilence();
      return;
    }
    const returned = this.#missed > 0;
    this.#missed = 0;
    this.show();
    this.onAnswer(this.#known.map(({ channel }) => channel), { returned });
  }

  #explain(fitting) {
    if (this.#missed) return "The server does not answer.";
    if (fitting > MAX_SHOWN) return `… and ${fitting - MAX_SHOWN} more: type a part of the name above.`;
    if (!this.#known.length) return "None yet.";
    return fitting ? "" : "None with this name.";
  }

  #newRow(channel) {
    const figures = element("span", "figures");
    const name = element("span", "name", channel);
    name.title = channel;
    const button = element("button", "", name, figures, element("span", "unseen", " subscribers"));
    button.type = "button";
    button.dataset.channel = channel;
    button.addEventListener("click", () => this.toggle(channel));
    const made = { row: element("li", "", button), button, figures };
    this.#rows.set(channel, made);
    return made;
  }
}

const fetchJSON = async (path) => {
  const response = await fetch(new URL(path, document.baseURI), { signal: AbortSignal.timeout(TIMEOUT) });
  return response.json();
};

/** The server's connections in words; what has not happened is not spoken of. */
const describe = ({ open, gaps, too_slow: tooSlow, silent, refused }) => {
  const happened = [[gaps, gaps === 1 ? "gap" : "gaps"], [tooSlow, "too slow"], [silent, "silent"], [refused, "refused"]];
  const told = happened.filter(([times]) => times).map(([times, what]) => `${whole.format(times)} ${what}`);
  return [`${whole.format(open)} ${open === 1 ? "connection" : "connections"}`, ...told].join(" · ");
};
