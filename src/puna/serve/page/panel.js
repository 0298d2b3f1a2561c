// The panel beside the conversation, and its tabs, between which arrow keys move. On narrow screens it lies over the
// page.

import { byId } from "./dom.js";

const NARROW = matchMedia("(max-width: 68rem)");

export class Panel {
  #panel = byId("panel");
  #button = byId("toggle-panel");
  #tabs = [...this.#panel.querySelectorAll('[role="tab"]')];

  constructor() {
    this.#button.addEventListener("click", () => this.toggle());
    byId("close-panel").addEventListener("click", () => this.#set(false));
    byId("shade").addEventListener("click", () => this.#set(false));
    this.#tabs.forEach((tab) => tab.addEventListener("click", () => this.open(tab.dataset.tab)));
    this.#panel.querySelector('[role="tablist"]').addEventListener("keydown", (event) => this.#step(event));
    this.#panel.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !NARROW.matches) return;
      event.stopPropagation();
      this.#set(false);
    });
    this.#set(!NARROW.matches, false);
  }

  get isOpen() {
    return !this.#panel.hidden;
  }

  toggle() {
    this.#set(!this.isOpen);
  }

  /** Opens the panel at a tab. */
  open(name, takesFocus = false) {
    this.#tabs.forEach((tab) => {
      const isChosen = tab.dataset.tab === name;
      tab.setAttribute("aria-selected", String(isChosen));
      tab.tabIndex = isChosen ? 0 : -1;
      byId(tab.getAttribute("aria-controls")).hidden = !isChosen;
      if (isChosen && takesFocus) tab.focus();
    });
    if (!this.isOpen) this.#set(true);
  }

  #set(isOpen, movesFocus = true) {
    this.#panel.hidden = !isOpen;
    document.body.classList.toggle("with-panel", isOpen);
    this.#button.setAttribute("aria-expanded", String(isOpen));
    if (!movesFocus || !NARROW.matches) return;
    if (isOpen) byId("close-panel").focus();
    else this.#button.focus();
  }

  #step(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const at = this.#tabs.findIndex((tab) => tab.getAttribute("aria-selected") === "true");
    this.open(this.#tabs.at((at + step) % this.#tabs.length).dataset.tab, true);
  }
}
