// An answer token by token: how sure the model was of each, what else it thought of, and which experts read it.
// Hovering, or moving with the arrow keys, shows one token's card.

import { el } from "./dom.js";

const LEVELS = [0.9, 0.6, 0.3, 0.1]; // sure, likely, unsure, doubtful; below: surprising

/** Returns the view of an answer's tokens. */
export function tokenView(answer, moeLayers) {
  const card = el("div", { class: "token-card", id: `card-${crypto.randomUUID()}`, role: "tooltip", hidden: true });
  const spans = answer.tokens.map((token, index) =>
    el("span", { class: "token", "data-level": level(token), tabindex: index ? "-1" : "0" }, visible(token)),
  );
  const show = (span) => {
    const index = spans.indexOf(span);
    if (index < 0) return;
    card.replaceChildren(...cardOf(answer.tokens[index], answer.routes[index], moeLayers));
    card.hidden = false;
    place(card, span, view);
    spans.forEach((each) => each.removeAttribute("aria-describedby"));
    span.setAttribute("aria-describedby", card.id);
  };
  const hide = () => {
    card.hidden = true;
  };
  const move = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const target = spans[spans.indexOf(document.activeElement) + step];
    if (event.key === "Escape" && !card.hidden) {
      hide();
      event.stopPropagation();
    }
    if (!step || !target) return;
    document.activeElement.tabIndex = -1;
    target.tabIndex = 0;
    target.focus();
    event.preventDefault();
  };
  const text = el("p", { class: "tokens", on: { keydown: move } }, spans);
  text.addEventListener("pointerover", (event) => show(event.target));
  text.addEventListener("focusin", (event) => show(event.target));
  text.addEventListener("pointerleave", hide);
  text.addEventListener("focusout", hide);
  const view = el("div", { class: "token-view" }, text, card, legend());
  return view;
}

/** Returns a probability for people. */
export function percent(logprob) {
  const p = Math.exp(logprob) * 100;
  if (p >= 99.95) return "100 %";
  return p < 0.1 ? "< 0.1 %" : `${p.toPrecision(p < 10 ? 2 : 3)} %`;
}

function cardOf(token, route, moeLayers) {
  const rows = token.top.some(({ token: other }) => other === token.token) ? token.top : [token, ...token.top];
  return [
    el(
      "table",
      {},
      el("caption", {}, "What the model expected here"),
      rows.map((row) => {
        const share = Math.exp(row.logprob);
        const bar = el("meter", { min: "0", max: "1", value: String(share), "aria-hidden": "true" });
        const mark = row.token === token.token ? { class: "chosen" } : {};
        const name = el("th", { scope: "row" }, visible(row).replace(/^ /, "␣"));
        return el("tr", mark, name, el("td", {}, bar), el("td", {}, percent(row.logprob)));
      }),
    ),
    route ? el("p", { class: "token-route" }, el("span", {}, "Experts "), routeText(route, moeLayers)) : null,
  ].filter(Boolean);
}

function routeText(route, moeLayers) {
  return route.map((experts, i) => {
    const title = `Layer ${moeLayers[i]}`;
    return el("span", { class: "token-expert", title }, experts.join("+"));
  });
}

function level({ logprob }) {
  const p = Math.exp(logprob);
  const index = LEVELS.findIndex((least) => p >= least);
  return index < 0 ? LEVELS.length : index;
}

function visible({ token }) {
  return token.replace(/\n/g, "⏎\n").replace(/\t/g, "⇥\t") || "∅";
}

function legend() {
  const names = ["≥ 90 %", "≥ 60 %", "≥ 30 %", "≥ 10 %", "less"];
  const items = names.map((name, i) => el("li", {}, el("span", { class: "token", "data-level": i }, "a"), name));
  return el("ul", { class: "token-legend", "aria-label": "Colours by probability" }, items);
}

function place(card, span, view) {
  const around = view.getBoundingClientRect();
  const at = span.getClientRects()[0] ?? span.getBoundingClientRect();
  const left = Math.max(0, Math.min(at.left - around.left, around.width - card.offsetWidth));
  const above = at.top - card.offsetHeight - 8;
  card.style.left = `${left}px`;
  card.style.top = `${(above > 64 ? above : at.bottom + 8) - around.top}px`;
}
