// Messages per second over the last two minutes: counted by channel, and drawn as stacked areas.

export const SPAN = 120; // seconds that the plot shows
const SIZE = 128; // seconds that are kept
const RATE_SPAN = 5; // seconds that a rate is averaged over
const FONT = "11px system-ui, sans-serif";
const TOP = 10;
const BOTTOM = 20; // px for the labels of the time

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

/** Seconds since the page was opened. Not the clock of the day, which may be set back. */
export const now = () => performance.now() / 1000;

/** How many messages came in each of the last seconds. */
export class Counter {
  #counts = new Uint32Array(SIZE);
  #second = Math.floor(now());
  #since = this.#second;

  add() {
    this.#advance();
    this.#counts[this.#second % SIZE]++;
  }

  /** Messages in a second that is past; 0 for those not kept, and before there was a counter. */
  at(second) {
    this.#advance();
    return second >= this.#since && second > this.#second - SIZE ? this.#counts[second % SIZE] : 0;
  }

  /** Messages per second of late. */
  get rate() {
    this.#advance();
    const seconds = Math.min(RATE_SPAN, this.#second - this.#since);
    let sum = 0;
    for (let back = 1; back <= seconds; back++) sum += this.at(this.#second - back);
    return seconds ? sum / seconds : 0;
  }

  #advance() {
    const second = Math.floor(now());
    for (let passed = Math.max(this.#second + 1, second - SIZE + 1); passed <= second; passed++) {
      this.#counts[passed % SIZE] = 0;
    }
    this.#second = second;
  }
}

/** The smallest of 1, 2, 5, 10, 20, 50 … that is not below `value`: what a scale may end with. */
const ceiling = (value) => {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
};

export class Plot {
  #scale = 1;
  #drawnAt = 0;

  /** `series()` gives what to stack, from the bottom up, as `{counter, color}` with the name of a CSS variable. */
  constructor(canvas, series) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.series = series;
    this.peak = 0;
    new ResizeObserver(() => this.#resize()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  draw() {
    const { context, width, height } = this;
    if (!width) return;
    const style = getComputedStyle(this.canvas);
    const series = this.series();
    const time = now();
    const stacks = this.#stack(series, Math.floor(time));
    this.peak = Math.max(0, ...(stacks.at(-1) ?? []));
    this.#ease(ceiling(this.peak), time);

    context.clearRect(0, 0, width, height);
    this.#grid(style);
    // The newest whole second slides in from the right, so nothing on the plot ever jumps.
    const step = width / SPAN;
    const right = width + step * (1 - (time % 1));
    // From the top down: where a channel adds nothing, the line of the one below it is seen.
    for (let index = stacks.length - 1; index >= 0 && stacks[0].length > 1; index--) {
      const below = stacks[index - 1] ?? stacks[0].map(() => 0);
      this.#area(stacks[index], below, right, step, style.getPropertyValue(series[index].color));
    }
    this.#labels(style);
  }

  /** Sums from the bottom up for each second that has passed, the newest first. */
  #stack(series, second) {
    let below = new Array(Math.min(SPAN + 3, second)).fill(0); // nothing is known of the time before the page
    return series.map(({ counter }) => (below = below.map((sum, back) => sum + counter.at(second - 1 - back))));
  }

  #ease(scale, time) {
    const part = matchMedia("(prefers-reduced-motion: reduce)").matches ? 1 : 1 - Math.exp((this.#drawnAt - time) * 6);
    this.#drawnAt = time;
    this.#scale += (scale - this.#scale) * part;
    if (Math.abs(scale - this.#scale) < scale / 500) this.#scale = scale;
  }

  #y(value) {
    return this.height - BOTTOM - (value / this.#scale) * (this.height - BOTTOM - TOP);
  }

  #area(upper, lower, right, step, color) {
    const { context } = this;
    const edge = (stack, from, to, direction) => {
      for (let back = from; back !== to; back += direction) {
        const x = right - back * step;
        const middle = x + (direction * step) / 2; // level at both ends: no overshoot, so nothing is shown that was not
        context.bezierCurveTo(middle, this.#y(stack[back - direction]), middle, this.#y(stack[back]), x, this.#y(stack[back]));
      }
    };
    const last = upper.length - 1;
    context.beginPath();
    context.moveTo(right, this.#y(upper[0]));
    edge(upper, 1, last + 1, 1);
    context.strokeStyle = context.fillStyle = color;
    context.lineWidth = 1.5;
    context.stroke();
    context.lineTo(right - last * step, this.#y(lower[last]));
    edge(lower, last - 1, -1, -1);
    context.globalAlpha = 0.22;
    context.fill();
    context.globalAlpha = 1;
  }

  #grid(style) {
    const { context, width, height } = this;
    context.strokeStyle = style.getPropertyValue("--line");
    context.lineWidth = 1;
    context.beginPath();
    for (const part of [0, 0.5, 1]) {
      const y = Math.round(this.#y(this.#scale * part)) + 0.5;
      context.moveTo(0, y);
      context.lineTo(width, y);
    }
    for (let back = 30; back < SPAN; back += 30) {
      const x = Math.round(width * (1 - back / SPAN)) + 0.5;
      context.moveTo(x, height - BOTTOM);
      context.lineTo(x, height - BOTTOM + 4);
    }
    context.stroke();
  }

  #labels(style) {
    const { context, width, height } = this;
    context.font = FONT;
    context.fillStyle = style.getPropertyValue("--quiet");
    context.strokeStyle = style.getPropertyValue("--panel");
    context.lineWidth = 3;
    const write = (text, x, y, align) => {
      context.textAlign = align;
      context.strokeText(text, x, y); // a rim, so the text is readable on top of any colour
      context.fillText(text, x, y);
    };
    const scale = Math.round(this.#scale * 10) / 10;
    write(number.format(scale), 2, this.#y(scale) + 12, "left");
    write(number.format(scale / 2), 2, this.#y(scale / 2) + 12, "left");
    write("2 min ago", 2, height - 5, "left");
    for (const back of [90, 60, 30]) write(`${back} s`, width * (1 - back / SPAN), height - 5, "center");
    write("now", width - 2, height - 5, "right");
  }

  #resize() {
    const ratio = devicePixelRatio || 1;
    this.width = this.canvas.clientWidth;
    this.height = this.canvas.clientHeight;
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.draw();
  }
}
