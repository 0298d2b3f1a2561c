// The server, as the page calls it: a key where one is needed, errors as values with a message for people.
// Addresses are relative to the page, so it also works behind a proxy that adds a path.

import { events } from "./events.js";

const KEY = "puna.key"; // in sessionStorage only where its owner wants that; gone with the tab

/** What the server, or the way to it, refused. `status` is 0 when there was no answer. */
export class ApiError extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export class Api {
  #key = sessionStorage.getItem(KEY) ?? "";

  get hasKey() {
    return this.#key !== "";
  }

  /** Takes a key for this page, or until the tab closes where `keep` is true. Empty forgets it. */
  setKey(key, keep) {
    this.#key = key.trim();
    if (keep && this.#key) sessionStorage.setItem(KEY, this.#key);
    else sessionStorage.removeItem(KEY);
  }

  /** Returns a JSON document. */
  async get(path, signal) {
    return (await this.#ask(path, { signal })).json();
  }

  /** Yields the documents of an event stream; with `body`, of an answer to it. Raises what an event reports. */
  async *stream(path, { body, signal }) {
    const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    const response = await this.#ask(path, { signal, ...(body === undefined ? {} : post) });
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const document = JSON.parse(data);
      if (document.error) throw new ApiError(document.error.message, 0, document.error.code ?? null);
      yield document;
    }
  }

  async #ask(path, { headers = {}, ...rest }) {
    const sent = this.#key ? { ...headers, Authorization: `Bearer ${this.#key}` } : headers;
    let response;
    try {
      response = await fetch(new URL(path, document.baseURI), { headers: sent, credentials: "omit", ...rest });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The server does not answer. Is it still running?");
    }
    if (response.ok) return response;
    throw await refusal(response);
  }
}

async function refusal(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // not ours: a proxy's page, perhaps
  }
  const message = error.message ?? `The server answered with status ${response.status}.`;
  return new ApiError(message, response.status, error.code ?? null);
}
