// The cards of the subscribed channels: their rate, how they stand, and their numbers as sparklines.

import { element, setText } from "./dom.js";

const MAX_NUMBERS = 4; // of a message, that get a sparkline
const POINTS = 60; // latest values in one
const [WIDTH, HEIGHT] = [100, 20];

const rateFormat = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const valueFormat = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
const scaledFormat = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const PREFIXES = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k", 1e3]]; // from, prefix, divisor if another

export const formatRate = (rate) => rateFormat.format(rate);

/** A number short enough for a card, with the prefixes of the SI. */
const formatValue = (value) => {
  const [from, prefix, divisor = from] = PREFIXES.find(([limit]) => Math.abs(value) >= limit) ?? [];
  return prefix ? `${scaledFormat.format(value / divisor)} ${prefix}` : valueFormat.format(value);
};

/** The numbers that a payload carries: itself, or the first members of an object. */
const numbersOf = (data) => {
  if (typeof data === "number") return [["", data]];
  if (data === null || typeof data !== "object" || Array.isArray(data)) return [];
  return Object.entries(data).filter(([, value]) => typeof value === "number").slice(0, MAX_NUMBERS);
};

export class Card {
  #numbers = new Map(); // name -> {values, line, output, row}
  #changed = false;

  constructor(channel, color, onRemove) {
    this.rate = element("span", "rate", "0/s");
    const remove = element("button", "remove", "×");
    remove.type = "button";
    remove.ariaLabel = remove.title = `Unsubscribe from ${channel}`;
    remove.addEventListener("click", onRemove);
    const name = element("span", `channel ${color}`, channel);
    name.title = channel;
    this.sparklines = element("div", `sparklines ${color}`);
    this.error = element("p", "error");
    this.element = element("li", "card", name, this.rate, remove, this.error, this.sparklines);
    this.element.dataset.channel = channel;
  }

  /** Take the numbers of a message; they are drawn by the next `show`. */
  add(data) {
    for (const [name, value] of numbersOf(data)) {
      const known = this.#numbers.get(name) ?? this.#newNumber(name);
      if (!known) continue;
      known.values.push(value);
      if (known.values.length > POINTS) known.values.shift();
      this.#changed = true;
    }
  }

  /** Show how the channel stands, as the link has it. */
  show({ state, error }, rate) {
    this.element.dataset.state = state;
    const texts = { connecting: "connecting …", open: `${formatRate(rate)}/s`, down: "link down", refused: "refused" };
    setText(this.rate, texts[state]);
    setText(this.error, error);
    if (!this.#changed) return;
    this.#changed = false;
    for (const { values, line, output } of this.#numbers.values()) {
      output.textContent = formatValue(values.at(-1));
      output.title = String(values.at(-1));
      line.setAttribute("points", points(values));
    }
  }

  #newNumber(name) {
    if (this.#numbers.size >= MAX_NUMBERS) return null;
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    const line = document.createElementNS(svg.namespaceURI, "polyline");
    svg.append(line);
    const label = element("span", "name", name.replaceAll("_", " "));
    label.title = name;
    const output = element("span", "value");
    this.sparklines.append(element("div", "sparkline", label, svg, output));
    const made = { values: [], line, output };
    this.#numbers.set(name, made);
    return made;
  }
}

/** A polyline through `values`, the latest at the right edge. */
const points = (values) => {
  const low = Math.min(...values);
  const range = Math.max(...values) - low;
  const y = (value) => (range ? HEIGHT - 2 - ((value - low) / range) * (HEIGHT - 4) : HEIGHT / 2);
  const x = (index) => WIDTH - ((values.length - 1 - index) * WIDTH) / (POINTS - 1);
  return values.map((value, index) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
};
