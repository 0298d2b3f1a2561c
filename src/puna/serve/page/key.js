// The dialog that asks for an API key.

import { byId } from "./dom.js";

/** Asks for a key and gives it to `api`. Returns whether one was given. `why` is the server's word, if it had one. */
export function askForKey(api, why = "") {
  const dialog = byId("key-dialog");
  const field = byId("key");
  byId("key-why").textContent =
    why || "This server may ask for a key. It stays on this page and is sent to this server only.";
  field.value = "";
  if (!dialog.open) dialog.showModal();
  byId("cancel-key").onclick = () => dialog.close("cancel");
  return new Promise((resolve) => {
    byId("key-form").onsubmit = () => {
      api.setKey(field.value, byId("keep-key").checked);
      field.value = "";
      resolve(true);
    };
    dialog.onclose = () => resolve(false); // after a submission this changes nothing
  });
}
