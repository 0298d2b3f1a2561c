// The conversation as a file, out and in: the menu of the bar.

import { toMarkdown } from "./conversation.js";
import { byId, el } from "./dom.js";

/** Makes the menu work. `opened` is told when a file was opened: with what was wrong with it, or with nothing. */
export function joinFilesMenu(conversation, settings, model, opened) {
  const menu = byId("files-menu");
  const chooser = byId("json-file");
  const acts = {
    "save-json": () => saveJson(conversation, settings, model.name),
    "save-markdown": () => save(toMarkdown(conversation, model.name), "text/markdown", "md"),
    "open-json": () => chooser.click(),
  };
  for (const [id, act] of Object.entries(acts))
    byId(id).addEventListener("click", () => {
      menu.open = false;
      act();
    });
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !menu.open) return;
    menu.open = false;
    menu.firstElementChild.focus();
    event.preventDefault();
  });
  document.addEventListener("click", ({ target }) => {
    if (!menu.contains(target)) menu.open = false;
  });
  chooser.addEventListener("change", async () => {
    const [file] = chooser.files;
    chooser.value = "";
    opened(await openJson(conversation, file));
  });
}

function saveJson(conversation, settings, name) {
  const document = conversation.toDocument(settings.toDocument(), name);
  save(JSON.stringify(document, null, 1), "application/json", "json");
}

/** Takes an exported file in place of the conversation. Returns what is wrong with it, empty when nothing is. */
async function openJson(conversation, file) {
  try {
    conversation.load(JSON.parse(await file.text()));
    return "";
  } catch (error) {
    return error instanceof SyntaxError ? `${file.name} is no JSON.` : error.message;
  }
}

function save(text, type, ending) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const day = new Date().toISOString().slice(0, 10);
  el("a", { href: url, download: `conversation-${day}.${ending}` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000); // once it is certainly saved
}
