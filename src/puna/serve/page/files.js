// The conversation as a file, out and in.

import { toMarkdown } from "./conversation.js";
import { el } from "./dom.js";

/** Saves the conversation with its settings; `load` of the conversation reads it again. */
export function saveJson(conversation, settings, model) {
  const document = conversation.toDocument(settings.toDocument(), model);
  save(JSON.stringify(document, null, 1), "application/json", "json");
}

/** Saves the conversation for people. */
export function saveMarkdown(conversation, model) {
  save(toMarkdown(conversation, model), "text/markdown", "md");
}

/** Takes an exported file in place of the conversation. Raises an Error with a message for people. */
export async function openJson(conversation, file) {
  let document;
  try {
    document = JSON.parse(await file.text());
  } catch {
    throw new Error(`${file.name} is no JSON.`);
  }
  conversation.load(document);
}

function save(text, type, ending) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const day = new Date().toISOString().slice(0, 10);
  el("a", { href: url, download: `conversation-${day}.${ending}` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000); // once it is certainly saved
}
