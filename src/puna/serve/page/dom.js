// Elements from values. Text only ever becomes text nodes: nothing in this page parses HTML, and the server's
// policy (require-trusted-types-for) would refuse it.

const SVG = "http://www.w3.org/2000/svg";

/** Returns an HTML element. `on` holds listeners; null, undefined and false leave an attribute or child out. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Returns an SVG element, likewise. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** Returns one of the page's icons, which are symbols in index.html. Names for readers belong on the button. */
export function icon(name) {
  return svg("svg", { class: "icon", "aria-hidden": "true" }, svg("use", { href: `#icon-${name}` }));
}

/** Returns a button that shows an icon and is called `label`. */
export function iconButton(name, label, act, attributes = {}) {
  const given = { type: "button", class: "icon-button", "aria-label": label, title: label, on: { click: act } };
  return el("button", { ...given, ...attributes }, icon(name));
}

/** Returns the element of index.html with this id. */
export function byId(id) {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`index.html has no #${id}`);
  return found;
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, act] of Object.entries(value)) element.addEventListener(event, act);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}
