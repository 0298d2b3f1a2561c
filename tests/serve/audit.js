// The body of a function that returns what is wrong with a page for those who do not see it, see little, or use no
// mouse: things without a name, references that lead nowhere, too little contrast, too small to hit.
// Source of the limits: WCAG 2.2, 1.4.3 (4.5 to 1), 4.1.2 (names); 2.5.8 asks for 24 pixels or room around, which the
// page has, so 20 are the least here.

const faults = [];
const root = document.querySelector("dialog[open]") ?? document.body;
const isSeen = (e) =>
  e.checkVisibility({ opacityProperty: true, visibilityProperty: true }) &&
  !e.closest("[aria-hidden=true]") &&
  !e.matches(".unseen, .unseen *, .skip");
const seen = [...root.querySelectorAll("*")].filter(isSeen);
const matching = (selector) => seen.filter((e) => e.matches(selector));
const show = (e) => e.outerHTML.slice(0, 90);
const ids = (e, name) => (e.getAttribute(name) ?? "").split(" ").filter(Boolean);

// Names

const nameOf = (e) =>
  e.getAttribute("aria-label") ||
  ids(e, "aria-labelledby")
    .map((id) => document.getElementById(id)?.textContent ?? "")
    .join(" ") ||
  [...(e.labels ?? [])].map((label) => label.textContent).join(" ") ||
  (e.matches("button, a, summary, option, [role=tab], [role=tooltip]") ? e.textContent : "");
for (const e of matching("button, a, summary, input, select, textarea, nav, aside, dialog, canvas, [role]"))
  if (!nameOf(e).trim() && !e.matches("[role=alert], [role=status]")) faults.push(`no name: ${show(e)}`);
for (const name of ["aria-controls", "aria-labelledby", "aria-describedby"])
  for (const e of seen)
    for (const id of ids(e, name)) if (!document.getElementById(id)) faults.push(`${name} leads nowhere: ${show(e)}`);

// Contrast

const drawing = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
const rgba = (colour) => {
  drawing.clearRect(0, 0, 1, 1);
  drawing.fillStyle = colour;
  drawing.fillRect(0, 0, 1, 1);
  const [red, green, blue, alpha] = drawing.getImageData(0, 0, 1, 1).data;
  return [red, green, blue, alpha / 255];
};
const over = ([red, green, blue, alpha], below) => [red, green, blue].map((v, i) => v * alpha + below[i] * (1 - alpha));
const ground = (e) =>
  e === null ? [255, 255, 255] : over(rgba(getComputedStyle(e).backgroundColor), ground(e.parentElement));
const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
const luminance = (colour) => {
  const [red, green, blue] = colour.map((v) => linear(v / 255));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};
const hasText = (e) => [...e.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
for (const e of seen.filter((e) => hasText(e) && !e.closest("svg") && !e.matches(":disabled"))) {
  const below = ground(e);
  const values = [luminance(over(rgba(getComputedStyle(e).color), below)), luminance(below)];
  const ratio = (Math.max(...values) + 0.05) / (Math.min(...values) + 0.05);
  if (ratio < 4.5) faults.push(`contrast ${ratio.toFixed(2)}: ${show(e)}`);
}

// Hands and order

for (const e of matching("button, summary, select, [role=tab], input[type=checkbox], input[type=radio]")) {
  const { width, height } = (e.closest("label") ?? e).getBoundingClientRect();
  if (Math.min(width, height) < 20) faults.push(`too small to hit: ${width} x ${height} ${show(e)}`);
}
for (const e of seen.filter((e) => e.tabIndex > 0)) faults.push(`has its own place in the order: ${show(e)}`);
const all = [...document.querySelectorAll("[id]")].map((e) => e.id);
if (new Set(all).size < all.length) faults.push("an id occurs twice");
return faults;
