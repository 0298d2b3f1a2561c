// Calls of tools as cards: what the model wants to have run, with which arguments, and a place for the result. The page
// runs nothing by itself.

import { el, icon } from "./dom.js";

/** Returns the card of a call. `onResult` gets the text that its reader gives, null where none is awaited. */
export function callCard(call, onResult) {
  return el(
    "section",
    { class: "call", "aria-label": `Call of ${call.name}` },
    el("header", {}, icon("tool"), el("code", {}, call.name)),
    argumentTable(call.arguments),
    onResult && resultForm(call, onResult),
  );
}

/** Returns a tool's result as it stands in the conversation. */
export function resultCard({ name, text }) {
  return el(
    "details",
    { class: "call-result", open: text.length < 200 },
    el("summary", {}, icon("back"), "Result of ", el("code", {}, name)),
    el("pre", { tabindex: "0" }, text),
  );
}

function argumentTable(text) {
  let given = null;
  try {
    given = JSON.parse(text);
  } catch {
    // not complete yet
  }
  if (given === null || typeof given !== "object") return el("pre", { class: "call-text" }, text);
  const rows = Object.entries(given).map(([name, value]) =>
    el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, el("code", {}, JSON.stringify(value)))),
  );
  return rows.length ? el("table", {}, el("tbody", {}, rows)) : el("p", { class: "call-none" }, "no arguments");
}

function resultForm(call, onResult) {
  const id = `result-${call.id}`;
  const field = el("textarea", { id, rows: "2", placeholder: "What the tool returned, as text or JSON" });
  const send = (event) => {
    event.preventDefault();
    onResult(field.value);
  };
  return el(
    "form",
    { on: { submit: send } },
    el("label", { for: id }, "Result"),
    field,
    el("button", { class: "button", type: "submit" }, "Return it to the model"),
  );
}
