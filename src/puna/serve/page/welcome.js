// What stands on the page before anything was said: the model in a sentence, and examples to try.

import { byId, el } from "./dom.js";

const EXAMPLES = [
  "Tell me a story.",
  "What does “river” mean?",
  "Name three mountains and how high they are, in a table.",
];

/** Shows the model everywhere its name or nature stands. `onExample` gets the text of a chosen example. */
export function describeModel(model, onExample) {
  const { name, context_len: contextLen, vision, moe_layers: layers, n_experts: nExperts } = model;
  document.title = `${name} · puna`;
  byId("model").textContent = name;
  const sees = vision ? "It reads text and pictures" : "It reads text";
  byId("about-model").textContent =
    `You are talking with ${name}. ${sees}, ${contextLen.toLocaleString("en")} tokens at a time.`;
  byId("examples").replaceChildren(
    ...EXAMPLES.map((text) =>
      el("li", {}, el("button", { type: "button", class: "example", on: { click: () => onExample(text) } }, text)),
    ),
  );
  const facts = [
    ["Model", name],
    ["Context", `${contextLen.toLocaleString("en")} tokens`],
    ["Layers with experts", layers.length ? `${layers.length} × ${nExperts} experts` : "none"],
    ["Pictures", vision ? `up to ${vision.max_tiles} tiles of ${vision.tile_size} × ${vision.tile_size}` : "not read"],
    ["Guards", model.abilities.guards ? "on" : "off"],
    ["puna", model.version],
  ];
  byId("model-facts").replaceChildren(
    ...facts.map(([term, value]) => el("div", {}, el("dt", {}, term), el("dd", {}, value))),
  );
}
