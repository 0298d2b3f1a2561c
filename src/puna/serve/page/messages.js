// The conversation on the page: one list item a message, made once and kept while its message is there.

import { timings } from "./answer.js";
import { callCard, resultCard } from "./calls.js";
import { openCalls, shownAnswer } from "./conversation.js";
import { el, icon, iconButton } from "./dom.js";
import { drawTiles } from "./pictures.js";
import { copyText, Prose } from "./prose.js";
import { tokenView } from "./tokens.js";

/** Shows a conversation in `list`. `acts`: edit(message, text), again(message), result(call, text), routing(message). */
export class Messages {
  #list;
  #conversation;
  #model;
  #acts;
  #views = new Map();

  constructor(list, conversation, model, acts) {
    this.#list = list;
    this.#conversation = conversation;
    this.#model = model;
    this.#acts = acts;
    conversation.addEventListener("change", () => this.#reconcile());
    this.#reconcile();
  }

  /** Shows what is new in an answer. */
  update(message, isGrowing) {
    this.#views.get(message)?.update(isGrowing);
  }

  /** Opens the last thing that its writer said for editing. */
  editLast() {
    const message = this.#conversation.messages.findLast(({ role }) => role === "user");
    if (message) this.#views.get(message).edit();
  }

  #reconcile() {
    const { messages } = this.#conversation;
    for (const [message, view] of this.#views) {
      if (messages.includes(message)) continue;
      view.element.remove();
      this.#views.delete(message);
    }
    for (const message of messages) {
      if (!this.#views.has(message)) {
        const view = new VIEWS[message.role](message, this.#model, this.#acts, this.#conversation);
        this.#views.set(message, view);
        this.#list.append(view.element);
      }
      this.#views.get(message).update(false);
    }
  }
}

class UserView {
  #message;
  #acts;
  #body = el("div", { class: "said" });
  #edit = el("div", { class: "acts" }, iconButton("edit", "Edit and ask again", () => this.edit()));

  constructor(message, model, acts) {
    this.#message = message;
    this.#acts = acts;
    const pictures = message.pictures.map((picture) => drawTiles(picture, model.vision));
    this.element = el(
      "li",
      { class: "message user" },
      el("h2", { class: "unseen" }, "You"),
      pictures.length ? el("div", { class: "pictures" }, pictures) : null,
      el("div", { class: "said-row" }, this.#edit, this.#body),
    );
    this.#show();
  }

  update() {}

  edit() {
    this.#edit.hidden = true;
    this.#body.hidden = false;
    const field = el("textarea", { "aria-label": "Your message", rows: "3" });
    field.value = this.#message.text;
    const done = (event) => {
      event.preventDefault();
      this.#show();
      this.#acts.edit(this.#message, field.value);
    };
    const keys = (event) => {
      if (event.key === "Escape") this.#show();
      else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) done(event);
      else return;
      event.stopPropagation();
    };
    this.#body.replaceChildren(
      el(
        "form",
        { class: "edit", on: { submit: done, keydown: keys } },
        field,
        el("button", { class: "button quiet", type: "button", on: { click: () => this.#show() } }, "Cancel"),
        el("button", { class: "button", type: "submit" }, "Ask again"),
      ),
    );
    field.focus();
  }

  #show() {
    this.#edit.hidden = false;
    this.#body.textContent = this.#message.text;
    this.#body.hidden = !this.#message.text;
  }
}

class ToolView {
  constructor(message) {
    this.element = el("li", { class: "message tool" }, el("h2", { class: "unseen" }, "Tool"), resultCard(message));
  }

  update() {}
}

class AnswerView {
  #message;
  #model;
  #acts;
  #conversation;
  #answer = null;
  #body = el("div", { class: "prose" });
  #prose = new Prose(this.#body);
  #tokens = el("div", { hidden: true });
  #calls = el("div", { class: "calls" });
  #problem = el("div", { class: "problem", role: "alert", hidden: true });
  #versions = el("div", { class: "versions", role: "group", "aria-label": "Versions of this answer" });
  #facts = el("p", { class: "facts" });
  #acting = el("div", { class: "acts" });
  #showsTokens = false;

  constructor(message, model, acts, conversation) {
    this.#message = message;
    this.#model = model;
    this.#acts = acts;
    this.#conversation = conversation;
    this.element = el(
      "li",
      { class: "message assistant" },
      el("h2", { class: "unseen" }, "Answer"),
      this.#body,
      this.#tokens,
      this.#calls,
      this.#problem,
      el("footer", {}, this.#versions, this.#acting, this.#facts),
    );
  }

  update(isGrowing) {
    const answer = shownAnswer(this.#message);
    if (answer !== this.#answer) this.#showsTokens = false;
    this.#answer = answer;
    const isOver = answer.finish !== null && !isGrowing;
    this.element.classList.toggle("growing", !isOver);
    this.element.setAttribute("aria-busy", String(!isOver));
    this.#prose.update(answer.text);
    this.#showCalls(isOver);
    if (!isOver) {
      this.#acting.replaceChildren();
      this.#facts.replaceChildren();
      this.#problem.hidden = true;
      this.#tokens.hidden = true;
      this.#body.hidden = false;
      this.#versions.hidden = true;
      return;
    }
    this.#showProblem();
    this.#showVersions();
    this.#showTokens();
    this.#acting.replaceChildren(...this.#actions());
    this.#facts.replaceChildren(...facts(answer));
  }

  #showCalls(isOver) {
    const waiting = isOver ? openCalls(this.#conversation) : [];
    const cards = this.#answer.calls.map((call) =>
      callCard(call, waiting.includes(call) ? (text) => this.#acts.result(call, text) : null),
    );
    this.#calls.replaceChildren(...cards);
  }

  #showProblem() {
    const { error } = this.#answer;
    this.#problem.hidden = error === null;
    if (error === null) return;
    const again = el("button", { class: "button", type: "button", on: { click: () => this.#acts.again(this.#message) } }, "Try again");
    this.#problem.replaceChildren(icon("warn"), el("p", {}, error.message), again);
  }

  #showVersions() {
    const { versions, shown } = this.#message;
    this.#versions.hidden = versions.length < 2;
    const step = (by) => () => {
      this.#message.shown += by;
      this.#conversation.changed();
    };
    const isLast = this.#conversation.last === this.#message; // what follows answers the version that is shown
    this.#versions.replaceChildren(
      iconButton("left", "Earlier version", step(-1), { disabled: !isLast || shown === 0 }),
      el("span", {}, `${shown + 1} / ${versions.length}`),
      iconButton("right", "Later version", step(1), { disabled: !isLast || shown === versions.length - 1 }),
    );
  }

  #showTokens() {
    const shows = this.#showsTokens && this.#answer.tokens.length > 0;
    this.#body.hidden = shows;
    this.#tokens.hidden = !shows;
    this.#tokens.replaceChildren(...(shows ? [tokenView(this.#answer, this.#model.moe_layers)] : []));
  }

  #actions() {
    const answer = this.#answer;
    const copy = iconButton("copy", "Copy answer", () => copyText(answer.text, copy));
    const tokens = iconButton("tokens", "Token probabilities", () => this.#toggleTokens(), {
      "aria-pressed": String(this.#showsTokens),
    });
    return [
      answer.text ? copy : null,
      iconButton("again", "Answer again", () => this.#acts.again(this.#message)),
      answer.tokens.length ? tokens : null,
      answer.routes.length ? iconButton("routing", "Show its routing", () => this.#acts.routing(this.#message)) : null,
    ].filter(Boolean);
  }

  #toggleTokens() {
    this.#showsTokens = !this.#showsTokens;
    this.update(false);
    this.#acting.querySelector("[aria-pressed]").focus();
  }
}

const VIEWS = { user: UserView, assistant: AnswerView, tool: ToolView };

const ENDINGS = { length: "cut at its limit", stopped: "stopped", content_filter: "held back by a guard", abort: "ended by the server" };

function facts(answer) {
  const { made, read, remembered, firstSeconds, perSecond } = timings(answer);
  if (answer.error && !made) return [];
  const texts = [
    [`${made} ${made === 1 ? "token" : "tokens"}`, "Tokens made"],
    perSecond === null ? null : [`${perSecond.toFixed(perSecond < 10 ? 1 : 0)} tok/s`, "Speed after the first token"],
    firstSeconds === null ? null : [`first after ${seconds(firstSeconds)}`, "Time to the first token"],
    read === null ? null : [remembered ? `read ${read}, ${remembered} remembered` : `read ${read}`, "Tokens of the prompt"],
    answer.finish in ENDINGS ? [ENDINGS[answer.finish], "How the answer ended"] : null,
  ];
  const spans = texts.filter(Boolean).map(([text, title]) => el("span", { title }, text));
  return spans.flatMap((span, i) => (i ? [" · ", span] : [span]));
}

function seconds(value) {
  return value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(1)} s`;
}
