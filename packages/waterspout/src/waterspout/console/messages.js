// The list of messages, newest first: bounded, and changed once per frame however many messages come.

import { element } from "./dom.js";

const MAX_ROWS = 200; // in the page
const MAX_KEPT = 2_000; // in memory, for the filter to look through
const MAX_KEPT_CHARS = 8_000_000;
const LONG = 160; // characters; what is longer is folded

const pad = (value, width = 2) => String(value).padStart(width, "0");

/** Payload as one line of text: a string is itself, all else is JSON. */
const textOf = (data) => (typeof data === "string" ? data : JSON.stringify(data));

/** What to say of a gap. */
export const gapText = ({ missed }) =>
  missed === null
    ? "Some messages may have been lost here"
    : `${missed} ${missed === 1 ? "message was" : "messages were"} lost here`;

export class MessageList {
  #kept = []; // oldest first
  #chars = 0;
  #fresh = []; // those of them not yet shown
  #rows = []; // entries that have a row, oldest first
  #needle = "";
  #paused = false;

  /** `colorOf(channel)` names the colour's class; `onChange()` is called when the counts below may have changed. */
  constructor(list, colorOf, onChange) {
    this.list = list;
    this.colorOf = colorOf;
    this.onChange = onChange;
  }

  get paused() {
    return this.#paused;
  }

  get waiting() {
    return this.#fresh.length;
  }

  get kept() {
    return this.#kept.length;
  }

  get shown() {
    return this.#rows.length;
  }

  addMessage({ channel, event = "", data, id = "" }) {
    const text = textOf(data);
    this.#add({ channel, event, data, id, text, at: new Date() });
  }

  /** A line that is no message: what happened to the link, or what was lost. */
  addNote(text, { channel = "", alarm = false } = {}) {
    this.#add({ note: true, alarm, channel, event: "", text, at: new Date() });
  }

  pause(paused) {
    this.#paused = paused;
    this.onChange();
  }

  filter(needle) {
    this.#needle = needle.trim().toLowerCase();
    this.#rebuild();
  }

  clear() {
    this.#kept = [];
    this.#chars = 0;
    this.#rebuild();
  }

  /** Show what has come since the last frame. */
  flush() {
    if (this.#paused || !this.#fresh.length) return;
    const entries = this.#fresh.filter((entry) => this.#matches(entry)).slice(-MAX_ROWS);
    this.#fresh = [];
    this.#rows.push(...entries);
    this.list.prepend(...entries.map((entry) => this.#row(entry)).reverse());
    // What is kept no more is shown no more, so nothing large lives on in a row.
    const oldest = this.#kept[0];
    let surplus = Math.max(0, this.#rows.length - MAX_ROWS);
    while (surplus < this.#rows.length && this.#rows[surplus].at < oldest.at) surplus++;
    this.#rows.splice(0, surplus);
    while (this.list.childElementCount > this.#rows.length) this.list.lastElementChild.remove();
    this.onChange();
  }

  #add(entry) {
    this.#kept.push(entry);
    this.#fresh.push(entry);
    this.#chars += entry.text.length;
    while (this.#kept.length > MAX_KEPT || (this.#chars > MAX_KEPT_CHARS && this.#kept.length > 1)) {
      const dropped = this.#kept.shift();
      this.#chars -= dropped.text.length;
      if (this.#fresh[0] === dropped) this.#fresh.shift();
    }
  }

  #matches({ channel, event, text }) {
    const has = (part) => part.toLowerCase().includes(this.#needle);
    return !this.#needle || has(channel) || has(event) || has(text);
  }

  #rebuild() {
    const waiting = this.#paused ? new Set(this.#fresh) : null;
    const entries = this.#kept.filter((entry) => !waiting?.has(entry) && this.#matches(entry)).slice(-MAX_ROWS);
    if (!this.#kept.length || !waiting) this.#fresh = [];
    this.#rows = entries;
    this.list.replaceChildren(...entries.map((entry) => this.#row(entry)).reverse());
    this.onChange();
  }

  #row(entry) {
    const { at } = entry;
    const clock = `${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}`;
    const time = element("time", "", clock, element("span", "ms", `.${pad(at.getMilliseconds(), 3)}`));
    time.dateTime = at.toISOString();
    const row = element("li", "", time);
    if (entry.channel) {
      const channel = element("span", `channel ${this.colorOf(entry.channel)}`, entry.channel);
      channel.title = entry.channel;
      row.dataset.channel = entry.channel;
      row.append(channel);
    }
    if (entry.note) {
      row.className = entry.alarm ? "note alarm" : "note";
      row.append(element("span", "data", entry.text));
      return row;
    }
    row.className = "message";
    row.dataset.id = entry.id;
    const content = element("span", "content");
    if (entry.event) content.append(element("span", "event", entry.event));
    content.append(entry.text.length > LONG || entry.text.includes("\n") ? folded(entry) : inline(entry));
    row.append(content);
    return row;
  }
}

const inline = (entry) =>
  typeof entry.data === "string" ? element("span", "data text", entry.text) : element("span", "data json", ...tokens(entry.text));

const folded = (entry) => {
  const details = element("details", "data", element("summary", "", `${entry.text.slice(0, LONG)} …`));
  const whole = element("pre");
  details.append(whole);
  // The whole of it costs nothing until somebody wants to see it.
  details.addEventListener("toggle", () => {
    whole.textContent ||= typeof entry.data === "string" ? entry.text : JSON.stringify(entry.data, null, 2);
  });
  return details;
};

/** JSON text with its keys marked. A line may end behind a comma, so that none has to within a number. */
function* tokens(json) {
  for (const [token, colon] of json.matchAll(/"(?:[^"\\]|\\.)*"(:?)|,|[^",]+/g)) {
    if (token === ",") yield* [element("span", "comma", token), element("wbr")];
    else yield colon ? element("span", "key", token) : token;
  }
}
