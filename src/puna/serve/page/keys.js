// Shortcuts, and the list of them. All but Escape hold Alt, so that no letter alone does anything.

import { byId, el } from "./dom.js";

/** Listens. `shortcuts` are [code, shown, about, act]; a code is KeyboardEvent's, so layouts do not matter. */
export function listen(shortcuts) {
  const list = byId("shortcut-list");
  for (const [, shown, about] of shortcuts)
    list.append(
      el(
        "div",
        {},
        el(
          "dt",
          {},
          shown.split(" ").map((key) => el("kbd", {}, key)),
        ),
        el("dd", {}, about),
      ),
    );
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.defaultPrevented || event.isComposing) return;
    const found = shortcuts.find(([code]) => code === event.code && event.altKey === (code !== "Escape"));
    if (!found || (found[0] === "Escape" && document.querySelector("dialog[open]"))) return;
    event.preventDefault();
    found[3]();
  });
}
