// One question at a time: sends the conversation, lets the answer grow, stops it. Tells what happens as events:
// begin, progress, end. Knows no elements.

import { newAnswer, take } from "./answer.js";

export class Talk extends EventTarget {
  #api;
  #conversation;
  #settings;
  #stopping = null;
  #growing = null;
  model = "";

  constructor(api, conversation, settings) {
    super();
    this.#api = api;
    this.#conversation = conversation;
    this.#settings = settings;
  }

  /** The message whose answer grows, if any does. */
  get growing() {
    return this.#growing;
  }

  get isBusy() {
    return this.#growing !== null;
  }

  /** Asks for an answer to all that was said, or for one more version of `message`, forgetting what followed it.
   *
   * Raises SettingError before anything changes.
   */
  async ask(message = null) {
    if (this.isBusy) return;
    const conversation = this.#conversation;
    const end = message === null ? conversation.messages.length : conversation.messages.indexOf(message);
    const body = this.#settings.request(this.model, conversation.toMessages(this.#settings.system, end));
    if (message !== null) conversation.cutAfter(message); // what followed answered another version
    const stopping = new AbortController();
    const answer = newAnswer(performance.now());
    const grown = conversation.addAnswer(answer, message);
    this.#stopping = stopping;
    this.#growing = grown;
    this.#tell("begin", grown, answer);
    try {
      for await (const chunk of this.#api.stream("v1/chat/completions", { body, signal: stopping.signal })) {
        take(answer, chunk, performance.now());
        this.#tell("progress", grown, answer);
      }
      if (answer.finish === null) throw new Error("The answer broke off.");
    } catch (error) {
      if (stopping.signal.aborted) answer.finish = "stopped";
      else Object.assign(answer, { error: { message: error.message, status: error.status ?? 0 }, finish: "error" });
    }
    this.#growing = null;
    this.#tell("end", grown, answer);
  }

  stop() {
    this.#stopping?.abort();
  }

  #tell(name, message, answer) {
    this.dispatchEvent(new CustomEvent(name, { detail: { message, answer } }));
  }
}
