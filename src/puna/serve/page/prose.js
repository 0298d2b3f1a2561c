// A Markdown tree to elements, and the part of it that has changed since last time: while an answer streams, only its
// last blocks are made anew, so a selection in what stands already survives.

import { el, iconButton } from "./dom.js";
import { highlight } from "./highlight.js";
import { parse } from "./markdown.js";

/** Shows a growing text inside `container`. */
export class Prose {
  #container;
  #sources = [];

  constructor(container) {
    this.#container = container;
  }

  update(text) {
    const blocks = parse(text);
    let same = 0;
    while (same < blocks.length && blocks[same].source === this.#sources[same]) same += 1;
    while (this.#container.children.length > same) this.#container.lastElementChild.remove();
    this.#container.append(...blocks.slice(same).map((each) => block(each, AUTO)));
    this.#sources = blocks.map(({ source }) => source);
  }
}

const AUTO = { dir: "auto" }; // a text in Arabic begins at the right; what is inside a block follows it

function block(node, direction = {}) {
  switch (node.type) {
    case "heading": // h1 is the page's, h2 the messages'
      return el(`h${Math.min(node.level + 2, 6)}`, direction, inlines(node.children));
    case "code":
      return codeBlock(node);
    case "quote":
      return el(
        "blockquote",
        direction,
        node.children.map((each) => block(each)),
      );
    case "list":
      return list(node, direction);
    case "table":
      return table(node, direction);
    case "rule":
      return el("hr");
    default:
      return el("p", direction, inlines(node.children));
  }
}

function list({ ordered, start, items }, direction) {
  const isLoose = items.some((item) => item.filter(({ type }) => type === "paragraph").length > 1);
  const children = items.map((item) =>
    el(
      "li",
      {},
      item.map((each) => (each.type === "paragraph" && !isLoose ? inlines(each.children) : block(each))),
    ),
  );
  return el(ordered ? "ol" : "ul", { ...direction, start: start === 1 ? null : start }, children);
}

function table({ head, aligns, rows }, direction) {
  const cell = (tag) => (children, column) =>
    el(tag, { class: aligns[column] && `to-${aligns[column]}`, scope: tag === "th" && "col" }, inlines(children));
  return el(
    "div",
    { class: "table", tabindex: "0", role: "region", "aria-label": "Table", ...direction }, // scrolls, also by keyboard
    el(
      "table",
      {},
      el("thead", {}, el("tr", {}, head.map(cell("th")))),
      el(
        "tbody",
        {},
        rows.map((row) => el("tr", {}, row.map(cell("td")))),
      ),
    ),
  );
}

function codeBlock({ language, text }) {
  const pieces = highlight(text, language).map(([kind, part]) =>
    kind ? el("span", { class: `code-${kind}` }, part) : part,
  );
  const copy = iconButton("copy", "Copy code", () => copyText(text, copy));
  const code = el("pre", { tabindex: "0" }, el("code", {}, pieces));
  return el(
    "div",
    { class: "code", dir: "ltr" },
    el("div", { class: "code-head" }, el("span", {}, language || "text"), copy),
    code,
  );
}

function inlines(nodes) {
  return nodes.map((node) => {
    if (typeof node === "string") return node;
    if (node.type === "break") return el("br");
    if (node.type === "code") return el("code", {}, node.text);
    if (node.type !== "link") return el(node.type, {}, inlines(node.children));
    const safe = { href: node.href, target: "_blank", rel: "noopener noreferrer nofollow" };
    return el("a", safe, inlines(node.children));
  });
}

/** Puts a text on the clipboard and lets the button say so for a moment. */
export async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.dataset.done = "";
    setTimeout(() => delete button.dataset.done, 1200);
  } catch {
    button.title = "The browser did not allow copying";
  }
}
