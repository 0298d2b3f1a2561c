// What the server's guards said of a question or its answer: where, what they did, and for which hazards.

import { el, icon } from "./dom.js";

const POINTS = {
  user_input: "What was asked",
  tool_result: "A tool's result",
  assistant_output: "The answer",
  code: "Code in the answer",
};
const ACTIONS = {
  flag: "was marked",
  rewrite: "was changed",
  block: "was held back",
  escalate: "was held back and reported",
};

/** Returns a notice about guards' results, null where there is nothing to say. `hazards` names their codes. */
export function guardNotice(results, hazards) {
  const rulings = results?.rulings ?? [];
  if (!rulings.length) return null;
  const lines = rulings.map(({ point, action, enforced, codes }) => {
    const did = enforced
      ? (ACTIONS[action] ?? "could not be judged in full")
      : "would be noticed, but this policy only watches";
    const named = codes
      .map((code) => (hazards[code] ? `${hazards[code]} (${code})` : code.replaceAll("_", " ")))
      .join(", ");
    return el("li", {}, `${POINTS[point] ?? point} ${did}${named ? `: ${named}` : ""}.`);
  });
  return el(
    "section",
    { class: "guard", "aria-label": "Guards" },
    icon("shield"),
    el("div", {}, results.message ? el("p", {}, results.message) : null, el("ul", {}, lines)),
  );
}
