// What a screen reader says of an answer: that it has begun, then all of it at once. A live region around text that
// grows by the token would never be quiet.

import { byId } from "./dom.js";

const LONGEST = 1200; // characters; the rest is read in the conversation

/** Says a text, politely. */
export function say(text) {
  byId("status").textContent = text;
}

/** Says how an answer ended, and the answer. */
export function sayAnswer({ text, calls, finish, error }) {
  if (error) return; // an alert says it
  const called = calls.map(({ name }) => `Calls ${name}.`).join(" ");
  const shown = text.length > LONGEST ? `${text.slice(0, LONGEST)} … It goes on.` : text;
  say([finish === "stopped" ? "Stopped." : "Answer:", shown, called].filter(Boolean).join(" "));
}
