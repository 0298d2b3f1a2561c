// The routing panel: which experts read the tokens of one answer, of the whole conversation, or of all that the server
// has done since it started.

import { shownAnswer } from "./conversation.js";
import { byId, el } from "./dom.js";
import { HeatMap } from "./heatmap.js";
import { addCounts, countRoutes, emptyCounts, summary } from "./routes.js";
import { say } from "./speech.js";

const EVERY_MS = 2000; // while the server's own counts are shown

const HINTS = {
  message: "Ask something: the tokens of its answer light up the experts that read them.",
  conversation: "No answer has left a trace yet.",
  server: "The server has counted nothing yet.",
};

export class Routing {
  #api;
  #conversation;
  #model;
  #message = null; // whose routing is shown; that of the newest answer where it is null
  #scope = "message";
  #map;
  #timer = null;

  constructor(api, conversation, model) {
    this.#api = api;
    this.#conversation = conversation;
    this.#model = model;
    this.#map = new HeatMap((text) => {
      byId("cell").textContent = text ?? "";
      if (text && document.activeElement === this.#map.element) say(text);
    });
    byId("heat").append(this.#map.element);
    byId("routing-scope").addEventListener("change", () => this.#choose());
    byId("heat-table").addEventListener("toggle", () => this.show());
    conversation.addEventListener("change", () => this.show());
    document.addEventListener("themechange", () => this.#map.draw());
    new IntersectionObserver(() => this.show()).observe(byId("heat"));
    this.show();
  }

  /** Shows the routing of one answer. */
  showMessage(message) {
    this.#message = message;
    byId("routing-scope").elements.scope.value = "message";
    this.#choose();
  }

  /** Shows what is known now. Call it as an answer grows. */
  async show() {
    clearTimeout(this.#timer);
    if (!byId("heat").offsetParent) return; // its panel is closed
    if (this.#scope === "server") this.#timer = setTimeout(() => this.show(), EVERY_MS);
    const counts = await this.#counts();
    const found = summary(counts);
    byId("heat-empty").hidden = found !== null;
    byId("heat-empty").textContent = HINTS[this.#scope];
    byId("heat-shown").hidden = found === null;
    if (found === null) return;
    const { busiest, imbalance, evenness, tokens } = found;
    const layer = this.#model.moe_layers[busiest.layer];
    byId("heat-facts").replaceChildren(
      fact("Tokens", String(tokens), "routed in each layer"),
      fact("Imbalance", `${imbalance.toFixed(2)} ×`, "the busiest expert over a fair share, mean of the layers"),
      fact("Evenness", `${(evenness * 100).toFixed(0)} %`, "entropy over that of a uniform choice"),
    );
    const share = busiest.share.toFixed(1);
    const label = [
      `Tokens by layer and expert. Busiest: layer ${layer}, expert ${busiest.expert}, ${share} times a fair share.`,
      "Arrow keys move from cell to cell.",
    ];
    byId("heat-top").textContent = `${Math.max(2, busiest.share).toFixed(1)} ×`;
    this.#map.show(counts, this.#model.moe_layers, label.join(" "));
    if (byId("heat-table").open) byId("heat-rows").replaceChildren(...rows(counts, this.#model.moe_layers));
  }

  #choose() {
    this.#scope = byId("routing-scope").elements.scope.value;
    byId("with-prompt-field").hidden = this.#scope === "server"; // which counts all that it reads
    this.show();
  }

  async #counts() {
    const { moe_layers: layers, n_experts: nExperts } = this.#model;
    const nothing = emptyCounts(layers.length, nExperts);
    const count = (message) => {
      const { routes, promptRoutes } = shownAnswer(message);
      const counts = countRoutes(routes, layers.length, nExperts);
      if (promptRoutes && byId("with-prompt").checked) addCounts(counts, promptRoutes);
      return counts;
    };
    const answers = this.#conversation.messages.filter(({ role }) => role === "assistant");
    if (this.#scope === "server") return (await this.#api.get("look/experts").catch(() => null))?.counts ?? nothing;
    if (this.#scope === "conversation") {
      answers.forEach((message) => addCounts(nothing, count(message)));
      return nothing;
    }
    const newest = answers.findLast((each) => shownAnswer(each).routes.length);
    const message = answers.includes(this.#message) ? this.#message : newest;
    return message ? count(message) : nothing;
  }
}

function fact(name, value, about) {
  return el("div", { title: about }, el("dt", {}, name), el("dd", {}, value));
}

function rows(counts, layers) {
  const head = el(
    "tr",
    {},
    el("th", { scope: "col" }, "Layer"),
    counts[0].map((_, i) => el("th", { scope: "col" }, String(i))),
  );
  const body = counts.map((row, i) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, String(layers[i])),
      row.map((n) => el("td", {}, String(n))),
    ),
  );
  return [el("thead", {}, head), el("tbody", {}, body)];
}
