// The conversation: what was said, by whom, and every version of each answer. Knows neither elements nor the server.
//
// A message is { id, role, ... }: users' hold text and pictures, assistants' hold versions (see answer.js) of which one
// is shown, tools' hold callId, name and text.

import { newAnswer } from "./answer.js";

const EXPORTED = 1; // version of the exported document

export class Conversation extends EventTarget {
  messages = [];
  #nextId = 1;

  get isEmpty() {
    return this.messages.length === 0;
  }

  get last() {
    return this.messages.at(-1) ?? null;
  }

  find(id) {
    return this.messages.find((message) => message.id === id) ?? null;
  }

  addUser(text, pictures) {
    return this.#add({ role: "user", text, pictures });
  }

  addTool(callId, name, text) {
    return this.#add({ role: "tool", callId, name, text });
  }

  /** Adds an answer: as a message of its own, or as one more version of `message`. Returns the message. */
  addAnswer(answer, message = null) {
    if (message === null) return this.#add({ role: "assistant", versions: [answer], shown: 0 });
    message.versions = [...message.versions.filter(({ error }) => !error), answer]; // a failure is no version to keep
    message.shown = message.versions.length - 1;
    this.changed();
    return message;
  }

  /** Forgets all that came after `message`, and with `inclusive` the message too. */
  cutAfter(message, inclusive = false) {
    this.messages.length = this.messages.indexOf(message) + (inclusive ? 0 : 1);
    this.changed();
  }

  clear() {
    this.messages = [];
    this.changed();
  }

  /** Tells those who show the conversation that its list of messages, or which version is shown, has changed. */
  changed() {
    this.dispatchEvent(new Event("change"));
  }

  #add(message) {
    const added = { id: this.#nextId, ...message };
    this.#nextId += 1;
    this.messages.push(added);
    this.changed();
    return added;
  }

  /** Returns the conversation in OpenAI's shape, up to `end` messages, which is what the model reads. */
  toMessages(system, end = this.messages.length) {
    const said = this.messages.slice(0, end).map(toOpenAI).filter(Boolean);
    return system.trim() ? [{ role: "system", content: system }, ...said] : said;
  }

  /** Returns a document that `load` reads again; `settings` go along. */
  toDocument(settings, model) {
    return { puna: EXPORTED, model, settings, messages: this.messages };
  }

  /** Takes the messages of an exported document in place of its own. Raises when it is none. */
  load(document) {
    if (document?.puna !== EXPORTED || !Array.isArray(document.messages))
      throw new Error("This file was not exported here: choose one that was.");
    document.messages.forEach(check);
    this.messages = document.messages.map(whole);
    this.#nextId = 1 + Math.max(0, ...this.messages.map(({ id }) => id));
    this.changed();
  }
}

/** Returns the version of an assistant's message that is shown. */
export function shownAnswer(message) {
  return message.versions[message.shown];
}

/** Returns the calls of the last answer that have no result yet. */
export function openCalls(conversation) {
  const index = conversation.messages.findLastIndex(({ role }) => role === "assistant");
  if (index < 0) return [];
  const answered = conversation.messages.slice(index + 1).map(({ callId }) => callId);
  return shownAnswer(conversation.messages[index]).calls.filter(({ id }) => !answered.includes(id));
}

/** Returns the conversation as a Markdown text. Pictures are named, not contained. */
export function toMarkdown(conversation, model) {
  const parts = conversation.messages.map((message) => `## ${WHO[message.role]}\n\n${bodyOf(message)}`.trim());
  return [`# A conversation with ${model}`, ...parts].join("\n\n") + "\n";
}

const WHO = { user: "User", assistant: "Assistant", tool: "Tool" };

function bodyOf(message) {
  if (message.role === "user")
    return [
      ...message.pictures.map(({ name, width, height }) => `*(picture: ${name}, ${width} × ${height})*`),
      message.text,
    ]
      .filter(Boolean)
      .join("\n\n");
  if (message.role === "tool") return `Result of \`${message.name}\`:\n\n${fenced(message.text)}`;
  const { text, calls } = shownAnswer(message);
  const called = calls.map((call) => fenced(`${call.name}(${call.arguments})`));
  return [text, ...called].filter(Boolean).join("\n\n");
}

function fenced(text) {
  const longest = Math.max(2, ...[...text.matchAll(/`+/g)].map(([run]) => run.length));
  const fence = "`".repeat(longest + 1);
  return `${fence}\n${text}\n${fence}`;
}

function toOpenAI(message) {
  if (message.role === "user") {
    if (!message.pictures.length) return { role: "user", content: message.text };
    const images = message.pictures.map(({ url }) => ({ type: "image_url", image_url: { url } }));
    const text = message.text ? [{ type: "text", text: message.text }] : [];
    return { role: "user", content: [...images, ...text] };
  }
  if (message.role === "tool") return { role: "tool", tool_call_id: message.callId, content: message.text };
  const { text, calls } = shownAnswer(message);
  if (!text && !calls.length) return null; // failed or stopped before it said anything
  const called = calls.map(({ id, name, arguments: given }) => ({
    id,
    type: "function",
    function: { name, arguments: given },
  }));
  return { role: "assistant", content: text || null, ...(called.length ? { tool_calls: called } : {}) };
}

function check(message) {
  const good = {
    user: ({ text, pictures }) => typeof text === "string" && Array.isArray(pictures) && pictures.every(isPicture),
    assistant: ({ versions, shown }) => Array.isArray(versions) && versions.every(isAnswer) && shown in versions,
    tool: ({ callId, text }) => typeof callId === "string" && typeof text === "string",
  }[message?.role];
  if (!Number.isInteger(message?.id) || !good?.(message)) throw new Error("A message in this file is damaged.");
}

/** Returns a message that was read, with all that an answer has. */
function whole(message) {
  if (message.role !== "assistant") return message;
  return { ...message, versions: message.versions.map((answer) => ({ ...newAnswer(0), finish: "stop", ...answer })) };
}

function isPicture({ url, name, width, height } = {}) {
  const drawn = typeof url === "string" && url.startsWith("data:image/");
  return drawn && typeof name === "string" && width > 0 && height > 0;
}

function isAnswer({ text, calls, tokens, routes } = {}) {
  const areLists = [calls, tokens, routes].every(Array.isArray);
  return (
    typeof text === "string" && areLists && calls.every(isCall) && tokens.every(isToken) && routes.every(Array.isArray)
  );
}

function isCall({ id, name, arguments: given } = {}) {
  return [id, name, given].every((each) => typeof each === "string");
}

function isToken({ token, logprob, top } = {}) {
  return typeof token === "string" && typeof logprob === "number" && Array.isArray(top) && top.every(isLikely);
}

function isLikely({ token, logprob } = {}) {
  return typeof token === "string" && typeof logprob === "number";
}
