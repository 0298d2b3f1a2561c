// The conversation on the page: one list item a message, made once and kept while its message is there.

import { timings } from "./answer.js";
import { callCard, resultCard } from "./calls.js";
import { openCalls, shownAnswer } from "./conversation.js";
import { el, icon, iconButton } from "./dom.js";
import { guardNotice } from "./guards.js";
import { drawTiles } from "./pictures.js";
import { copyText, Prose } from "./prose.js";
import { tokenView } from "./tokens.js";

/** A conversation in a list. `acts`: edit(message, text), again(message), result(call, text), routing(message). */
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
  #body = el("div", { class: "said", dir: "auto" });
  #edit = el(
    "div",
    { class: "acts" },
    iconButton("edit", "Edit and ask again", () => this.edit()),
  );

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
    const field = el("textarea", { "aria-label": "Your message", rows: "3", dir: "auto" });
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
  #guards = el("div", {});
  #problem = el("div", { class: "problem", role: "alert", hidden: true });
  #showsTokens = false;
  #facts = el("p", { class: "facts" });
  // Made once, so that who stands on one of them with the keyboard stays there.
  #earlier = iconButton("left", "Earlier version", () => this.#turn(-1));
  #later = iconButton("right", "Later version", () => this.#turn(1));
  #place = el("span");
  #versions = el("div", { class: "versions", role: "group", "aria-label": "Versions of this answer" });
  #copy = iconButton("copy", "Copy answer", () => copyText(this.#answer.text, this.#copy));
  #again = iconButton("again", "Answer again", () => this.#acts.again(this.#message));
  #toggle = iconButton("tokens", "Token probabilities", () => this.#toggleTokens());
  #routing = iconButton("routing", "Show its routing", () => this.#acts.routing(this.#message));
  #acting = el("div", { class: "acts" }, this.#copy, this.#again, this.#toggle, this.#routing);

  constructor(message, model, acts, conversation) {
    this.#message = message;
    this.#model = model;
    this.#acts = acts;
    this.#conversation = conversation;
    this.#versions.append(this.#earlier, this.#place, this.#later);
    this.element = el(
      "li",
      { class: "message assistant" },
      el("h2", { class: "unseen" }, "Answer"),
      this.#body,
      this.#tokens,
      this.#calls,
      this.#guards,
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
    this.#guards.replaceChildren(...[guardNotice(answer.guards, this.#model.hazards)].filter(Boolean));
    this.#showProblem();
    this.#showVersions(isOver);
    this.#showTokens();
    this.#showActions(isOver);
    this.#facts.replaceChildren(...(isOver ? facts(answer) : []));
  }

  #showCalls(isOver) {
    const waiting = isOver ? openCalls(this.#conversation) : [];
    const { calls } = this.#answer;
    calls.forEach((call, i) => {
      const isAwaited = waiting.includes(call);
      const key = `${call.name}(${call.arguments}) ${isAwaited}`;
      const old = this.#calls.children[i];
      if (old?.dataset.key === key) return; // somebody may be writing its result
      const card = callCard(call, isAwaited ? (text) => this.#acts.result(call, text) : null);
      card.dataset.key = key;
      if (old) old.replaceWith(card);
      else this.#calls.append(card);
    });
    while (this.#calls.children.length > calls.length) this.#calls.lastElementChild.remove();
  }

  #showProblem() {
    const { error } = this.#answer;
    this.#problem.hidden = error === null;
    if (error === null) return;
    const again = el(
      "button",
      { class: "button", type: "button", on: { click: () => this.#acts.again(this.#message) } },
      "Try again",
    );
    this.#problem.replaceChildren(icon("warn"), el("p", {}, error.message), again);
  }

  #showVersions(isOver) {
    const { versions, shown } = this.#message;
    this.#versions.hidden = !isOver || versions.length < 2;
    this.#place.textContent = `${shown + 1} / ${versions.length}`;
    this.#earlier.setAttribute("aria-disabled", String(!this.#canTurn(-1)));
    this.#later.setAttribute("aria-disabled", String(!this.#canTurn(1)));
  }

  #canTurn(by) {
    const isLast = this.#conversation.last === this.#message; // what follows answers the version that is shown
    return isLast && this.#message.shown + by in this.#message.versions;
  }

  #turn(by) {
    if (!this.#canTurn(by)) return;
    this.#message.shown += by;
    this.#conversation.changed();
  }

  #showTokens() {
    const shows = this.#showsTokens && this.#answer.tokens.length > 0;
    this.#body.hidden = shows;
    this.#tokens.hidden = !shows;
    this.#tokens.replaceChildren(...(shows ? [tokenView(this.#answer, this.#model.moe_layers)] : []));
  }

  #showActions(isOver) {
    const { text, tokens, routes } = this.#answer;
    this.#acting.hidden = !isOver;
    this.#copy.hidden = !text;
    this.#toggle.hidden = !tokens.length;
    this.#toggle.setAttribute("aria-pressed", String(this.#showsTokens));
    this.#routing.hidden = !routes.length;
  }

  #toggleTokens() {
    this.#showsTokens = !this.#showsTokens;
    this.update(false);
  }
}

const VIEWS = { user: UserView, assistant: AnswerView, tool: ToolView };

const ENDINGS = {
  length: "cut at its limit",
  stopped: "stopped",
  content_filter: "held back by a guard",
  abort: "ended by the server",
};

function facts(answer) {
  const { made, read, remembered, firstSeconds, perSecond } = timings(answer);
  if (answer.error && !made) return [];
  const texts = [
    [`${made} ${made === 1 ? "token" : "tokens"}`, "Tokens made"],
    perSecond === null ? null : [`${perSecond.toFixed(perSecond < 10 ? 1 : 0)} tok/s`, "Speed after the first token"],
    firstSeconds === null ? null : [`first after ${seconds(firstSeconds)}`, "Time to the first token"],
    read === null
      ? null
      : [remembered ? `read ${read}, ${remembered} remembered` : `read ${read}`, "Tokens of the prompt"],
    answer.finish in ENDINGS ? [ENDINGS[answer.finish], "How the answer ended"] : null,
  ];
  const spans = texts.filter(Boolean).map(([text, title]) => el("span", { title }, text));
  return spans.flatMap((span, i) => (i ? [" · ", span] : [span]));
}

function seconds(value) {
  return value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(1)} s`;
}
