// The form that publishes.

import { byId, element, setText } from "./dom.js";

const TIMEOUT = 15_000; // ms; the server gives up on its broker before that

export class PublishForm {
  /** `beforePublish(channel)` is awaited before a message goes out; `subscribe(channel)` is for whoever wants to see it. */
  constructor({ beforePublish, isSubscribed, subscribe }) {
    this.beforePublish = beforePublish;
    this.isSubscribed = isSubscribed;
    this.subscribe = subscribe;
    this.form = byId("publish-form");
    this.channel = byId("publish-channel");
    this.event = byId("publish-event");
    this.body = byId("publish-body");
    this.button = byId("publish-button");
    this.answer = byId("publish-answer");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#publish();
    });
    this.form.addEventListener("input", () => {
      this.#say(""); // what was said was about something else
      this.#check({ complain: false });
    });
    this.body.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.form.requestSubmit();
    });
  }

  get #isJSON() {
    return this.form.elements.kind.value === "json";
  }

  async #publish() {
    if (this.button.disabled) return;
    this.#say("");
    if (!this.#check({ complain: true })) return;
    const channel = this.channel.value.trim();
    this.button.disabled = true;
    try {
      await this.beforePublish(channel);
      const answer = await this.#post(channel);
      this.#say("good", `Published as ${answer.id}`);
      if (!this.isSubscribed(channel)) this.#offer(channel);
      this.body.select();
    } catch (error) {
      this.#say("bad", error.message);
    } finally {
      this.button.disabled = false;
    }
  }

  async #post(channel) {
    const url = new URL(`channels/${encodeURIComponent(channel)}`, document.baseURI);
    const event = this.event.value.trim();
    if (event) url.searchParams.set("event", event);
    const headers = { "Content-Type": this.#isJSON ? "application/json" : "text/plain; charset=utf-8" };
    let response;
    try {
      response = await fetch(url, { method: "POST", headers, body: this.body.value, signal: AbortSignal.timeout(TIMEOUT) });
    } catch (error) {
      const late = error.name === "TimeoutError";
      throw new Error(late ? "No answer in time: it may or may not be published." : "Not published: the server is away.");
    }
    const answer = await response.json().catch(() => ({}));
    if (!response.ok) throw new Error(`The server says: ${answer.error ?? response.statusText}`);
    return answer;
  }

  /** Whether the fields hold something to send. An empty one is told of only when somebody tried to. */
  #check({ complain }) {
    const channel = this.channel.value.trim();
    let channelError = "";
    if (!channel) channelError = complain ? "A message needs a channel." : "";
    else if (/\s/.test(channel)) channelError = "A channel's name has no spaces.";
    let bodyError = "";
    if (!this.body.value) bodyError = complain ? "The message is empty." : "";
    else if (this.#isJSON) bodyError = jsonError(this.body.value);
    mark(this.channel, channelError);
    mark(this.body, bodyError);
    if (complain && (channelError || bodyError)) (channelError ? this.channel : this.body).focus();
    return Boolean(channel && this.body.value && !channelError && !bodyError);
  }

  #say(kind, text = "") {
    this.answer.className = kind;
    this.answer.textContent = text;
  }

  #offer(channel) {
    const button = element("button", "link", `subscribe to ${channel} to see it`);
    button.type = "button";
    button.addEventListener("click", () => {
      this.subscribe(channel);
      button.remove();
    });
    this.answer.append(" · ", button);
  }
}

const mark = (field, error) => {
  field.setAttribute("aria-invalid", String(Boolean(error)));
  setText(byId(`${field.id}-error`), error);
};

const jsonError = (text) => {
  try {
    JSON.parse(text);
    return "";
  } catch (error) {
    return `Not JSON: ${error.message}`;
  }
};
