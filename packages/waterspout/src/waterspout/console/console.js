// The console page: wires link, messages, plot and forms together. The subscribed channels live in the URL.

import { ActiveChannels } from "./active.js";
import { Card, formatRate } from "./cards.js";
import { byId, setText } from "./dom.js";
import { Link } from "./link.js";
import { MessageList, gapText } from "./messages.js";
import { Counter, Plot, SPAN, now } from "./plot.js";
import { PublishForm } from "./publish.js";

const COLORS = 8; // as many as console.css has
const MAX_CHANNEL_BYTES = 255;
const READINGS_PERIOD = 500; // ms
const CALM = matchMedia("(prefers-reduced-motion: reduce)").matches;
const FRAME_PERIOD = CALM ? 500 : 66; // at this rate the plot moves by about half a pixel a time
const FIRST_CHANNEL = "news";
const OPEN_TIMEOUT = 3_000; // ms

const whole = new Intl.NumberFormat("en");

const subscriptions = new Map(); // channel -> {counter, card, color}
const colors = new Map(); // channel -> number; kept, so a channel that comes back looks the same
const totals = { messages: 0, lost: 0, lostUnknown: false };
let lastMessageAt = now();
let status = "idle";
let chosen = false; // whether somebody has said, here or in the URL, which channels to show

// --- subscribing -------------------------------------------------------------------------------------------------

/** What is wrong with the name of a channel, by the server's own rule; "" if nothing is. */
function channelError(name) {
  if (/[\p{C}\p{Z}]/u.test(name)) return `“${name}” holds white space or a control character.`;
  const size = new TextEncoder().encode(name).length;
  return size > MAX_CHANNEL_BYTES ? `A channel's name has at most ${MAX_CHANNEL_BYTES} bytes, this one has ${size}.` : "";
}

function colorOf(channel) {
  if (!colors.has(channel)) {
    const used = [...subscriptions.values()].map(({ color }) => color);
    const free = [...Array(COLORS).keys()].find((color) => !used.includes(color));
    colors.set(channel, free ?? colors.size % COLORS);
  }
  return colors.get(channel);
}

const colorClass = (channel) => `c${colorOf(channel)}`;

function subscribe(channel) {
  if (subscriptions.has(channel)) return;
  const color = colorOf(channel);
  const card = new Card(channel, colorClass(channel), () => {
    // Focus goes on to the neighbour, and not to a field: on a phone that would bring up the keyboard.
    const neighbour = card.element.nextElementSibling ?? card.element.previousElementSibling;
    toggle(channel);
    (neighbour?.querySelector("button") ?? byId("channels-title")).focus();
  });
  subscriptions.set(channel, { counter: new Counter(), card, color });
  byId("channels").append(card.element);
  link.subscribe(channel);
  subscriptionsChanged();
}

function unsubscribe(channel) {
  subscriptions.get(channel).card.element.remove();
  subscriptions.delete(channel);
  link.unsubscribe(channel);
  subscriptionsChanged();
}

function toggle(channel) {
  chosen = true;
  if (subscriptions.has(channel)) unsubscribe(channel);
  else subscribe(channel);
}

function subscriptionsChanged() {
  const url = new URL(location.href);
  url.search = new URLSearchParams([...subscriptions.keys()].map((channel) => ["channel", channel]));
  history.replaceState(null, "", url);
  active.show();
  showStatus();
  showEmpty();
}

/** Whether all of `names` are good; those that are, are subscribed to. */
function subscribeAll(names) {
  const errors = names.map(channelError);
  names.filter((_, index) => !errors[index]).forEach(subscribe);
  setText(byId("subscribe-error"), errors.filter(Boolean).join(" "));
  byId("subscribe-input").setAttribute("aria-invalid", String(errors.some(Boolean)));
  return !errors.some(Boolean);
}

/** Resolves when the server has confirmed `channel`, or has taken too long. */
async function opened(channel) {
  const deadline = performance.now() + OPEN_TIMEOUT;
  while (link.channel(channel)?.state !== "open" && performance.now() < deadline) {
    await new Promise(requestAnimationFrame);
  }
}

// --- messages ----------------------------------------------------------------------------------------------------

function receive(message) {
  const { channel } = message;
  if (message.event === "gap") {
    const { missed } = message.data;
    totals.lost += missed ?? 0;
    totals.lostUnknown ||= missed === null;
    messages.addNote(gapText(message.data), { channel, alarm: true });
  } else {
    const { counter, card } = subscriptions.get(channel);
    totals.messages++;
    lastMessageAt = now();
    counter.add();
    card.add(message.data);
    messages.addMessage(message);
  }
  scheduleFrame();
}

function showEmpty() {
  const empty = messages.kept === 0;
  const [first = FIRST_CHANNEL] = subscriptions.keys();
  byId("empty").hidden = !empty;
  byId("messages").hidden = empty;
  byId("no-match").hidden = empty || messages.shown > 0 || messages.paused;
  if (!empty) return;
  setText(byId("empty-title"), subscriptions.size ? "Waiting for messages." : "No channel is subscribed yet.");
  byId("empty-subscribe-step").hidden = subscriptions.size > 0;
  setText(byId("empty-subscribe"), `subscribe to ${first}`);
  const url = new URL(`channels/${encodeURIComponent(first)}`, document.baseURI);
  setText(byId("curl"), `curl -d 'Hello' '${url.href.replaceAll("'", "%27")}'`);
}

function showPause() {
  const button = byId("pause");
  const waiting = messages.waiting ? ` · ${whole.format(messages.waiting)} new` : "";
  setText(button, messages.paused ? `Resume${waiting}` : "Pause");
  button.ariaPressed = String(messages.paused);
}

// --- state and figures -------------------------------------------------------------------------------------------

function showStatus() {
  const settled = [...subscriptions.keys()].every((name) => ["open", "refused"].includes(link.channel(name)?.state));
  let next = "live";
  if (link.state === "down" || (link.state === "idle" && !active.reachable)) next = "down";
  else if (link.state === "idle") next = "idle";
  else if (!settled) next = "connecting";
  const texts = { idle: "Ready", connecting: "Connecting …", live: "Live", down: "Link down, reconnecting …" };
  byId("status").dataset.state = next;
  setText(byId("status"), texts[next]);
  if (next === "down" && status !== "down") {
    tellOfLink(link.reason ? `The link is down: ${link.reason}` : "The link is down", { alarm: true });
  }
  if (status === "down" && (next === "live" || next === "idle")) tellOfLink("The link is back");
  // While the link is being tried again we are still down.
  if (!(status === "down" && next === "connecting")) status = next;
  showReadings();
}

function tellOfLink(text, options) {
  messages.addNote(text, options);
  setText(byId("announcement"), text);
  scheduleFrame();
}

function showReadings() {
  let rate = 0;
  for (const [name, { counter, card }] of subscriptions) {
    rate += counter.rate;
    card.show(link.channel(name), counter.rate);
  }
  setText(byId("rate"), formatRate(rate));
  setText(byId("total"), whole.format(totals.messages));
  byId("lost-figure").hidden = !totals.lost && !totals.lostUnknown;
  setText(byId("lost"), (totals.lost ? whole.format(totals.lost) : "") + (totals.lostUnknown ? "?" : ""));
  const peak = `highest ${whole.format(plot.peak)}`;
  setText(byId("plot-reading"), peak);
  plot.canvas.dataset.total = totals.messages;
  plot.canvas.ariaLabel = `Messages per second over the last two minutes: now ${formatRate(rate)}, ${peak}`;
  document.title = status === "down" ? "○ Waterspout" : `${formatRate(rate)}/s · Waterspout`;
  if (messages.paused) showPause();
}

// --- frames ------------------------------------------------------------------------------------------------------

let frameScheduled = false;
let frameAt = 0;

/** Draw what is new: at once if there was a pause, else no faster than an eye can follow. */
function scheduleFrame() {
  if (frameScheduled) return;
  frameScheduled = true;
  setTimeout(() => requestAnimationFrame(drawFrame), Math.max(0, frameAt + FRAME_PERIOD - performance.now()));
}

function drawFrame() {
  frameScheduled = false;
  frameAt = performance.now();
  messages.flush();
  // A plot that has run empty stands still, and costs nothing.
  if (now() - lastMessageAt < SPAN + 10) plot.draw();
}

// --- wiring ------------------------------------------------------------------------------------------------------

const link = new Link({
  onMessage: receive,
  onError: (text) => {
    messages.addNote(`The server says: ${text}`, { alarm: true });
    scheduleFrame();
  },
  onState: () => showStatus(),
});

const messages = new MessageList(byId("messages"), colorClass, () => {
  showEmpty();
  showPause();
});

const plot = new Plot(byId("plot"), () =>
  [...subscriptions.values()].map(({ counter, color }) => ({ counter, color: `--c${color}` })),
);

const active = new ActiveChannels({
  isSubscribed: (channel) => subscriptions.has(channel),
  toggle,
  onAnswer: (channels, { returned }) => {
    if (returned) link.retry();
    // Something real to see at once: the figures that `serve --demo` publishes.
    if (!chosen && !subscriptions.size) channels.filter((channel) => channel.startsWith("demo.")).forEach(subscribe);
    showStatus();
  },
  onSilence: () => {
    link.suspect();
    showStatus();
  },
});

new PublishForm({
  isSubscribed: (channel) => subscriptions.has(channel),
  subscribe: toggle,
  beforePublish: async (channel) => {
    // Whoever publishes a first message wants to see it arrive.
    if (subscriptions.size || !subscribeAll([channel])) return;
    chosen = true;
    await opened(channel);
  },
});

const lastWord = (text) => text.split(/[\s,]+/).at(-1);

byId("subscribe-input").addEventListener("input", (event) => active.filter(lastWord(event.target.value)));
byId("subscribe-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const input = byId("subscribe-input");
  const names = input.value.split(/[\s,]+/).filter(Boolean);
  chosen ||= names.length > 0;
  if (subscribeAll(names)) input.value = "";
  active.filter("");
});
byId("empty-subscribe").addEventListener("click", () => toggle(FIRST_CHANNEL));
byId("pause").addEventListener("click", () => {
  messages.pause(!messages.paused);
  scheduleFrame();
});
byId("clear").addEventListener("click", () => messages.clear());
byId("filter").addEventListener("input", (event) => messages.filter(event.target.value));
byId("copy").addEventListener("click", async (event) => {
  getSelection().selectAllChildren(byId("curl"));
  try {
    await navigator.clipboard.writeText(byId("curl").textContent);
    event.target.textContent = "Copied";
  } catch {
    event.target.textContent = "Selected"; // without TLS a browser lets no page write to the clipboard
  }
});

addEventListener("online", () => link.retry());
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  link.retry();
  active.ask();
});
setInterval(showReadings, READINGS_PERIOD);
setInterval(() => document.hidden || scheduleFrame(), FRAME_PERIOD);

const asked = new URLSearchParams(location.search).getAll("channel").filter(Boolean);
chosen = asked.length > 0;
subscribeAll(asked);
showStatus();
showEmpty();
active.ask();
