// The end of the conversation stays in sight while its reader is there, and only then; a button leads back to it.

import { byId } from "./dom.js";

const NEAR = 80; // pixels

const scroll = byId("scroll");

scroll.addEventListener("scroll", () => {
  byId("to-end").hidden = isAtEnd();
});
byId("to-end").addEventListener("click", scrollToEnd);

/** Goes to the end. */
export function scrollToEnd() {
  scroll.scrollTop = scroll.scrollHeight;
}

/** Does something that may make the conversation longer. */
export function keepingEnd(act) {
  const stays = isAtEnd();
  act();
  if (stays) scrollToEnd();
}

function isAtEnd() {
  return scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < NEAR;
}
