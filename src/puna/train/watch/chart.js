// Lines over steps as SVG, and layers over steps on a canvas. Text only ever becomes text nodes.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 600;
const HEIGHT = 190;
const EDGE = { left: 52, right: 8, top: 10, bottom: 22 };
const COLUMNS = 270; // of a line or a map: more steps share one

/** Returns an element of HTML; children are elements or text. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Returns a number with about four digits. */
export function short(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6) return `${(value / 1e6).toPrecision(4)} M`;
  if (size >= 1e4) return `${(value / 1e3).toPrecision(4)} k`;
  return size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

/** One quantity of each step. `read` gets it from a line of the log; `least` is the smallest range of its axis. */
export class Chart {
  #title;
  #read;
  #steps = [];
  #value = el("output");
  #picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  #cursor = svg("line", { class: "cursor", y1: EDGE.top, y2: HEIGHT - EDGE.bottom });
  #span = [0, 1];

  constructor(title, read, point) {
    this.#title = title;
    this.#read = read;
    this.element = el("figure", {}, el("figcaption", {}, el("b", {}, title), this.#value), this.#picture);
    this.#picture.setAttribute("aria-label", `${title}: nothing yet`);
    this.#picture.addEventListener("pointermove", (event) => point(this.#stepAt(event)));
  }

  /** Draws all steps. */
  show(steps) {
    this.#steps = steps.filter((each) => Number.isFinite(this.#read(each)));
    if (!this.#steps.length) return;
    this.#span = [this.#steps[0].step, Math.max(this.#steps.at(-1).step, this.#steps[0].step + 1)];
    const groups = columns(this.#steps, this.#span).map(({ step, lines }) => {
      const values = lines.map(this.#read);
      return { step, least: Math.min(...values), most: Math.max(...values), mean: mean(values) };
    });
    const range = spread(Math.min(...groups.map((g) => g.least)), Math.max(...groups.map((g) => g.most)));
    const y = (value) => HEIGHT - EDGE.bottom - ((value - range[0]) / (range[1] - range[0])) * this.#height;
    const x = (step) => this.#x(step).toFixed(1);
    const path = (points) => points.map(([a, b], i) => `${i ? "L" : "M"}${x(a)} ${y(b).toFixed(1)}`).join("");
    const above = groups.map((g) => [g.step, g.most]);
    const below = groups.map((g) => [g.step, g.least]).reverse();
    this.#picture.replaceChildren(
      ...[0, 0.5, 1].map((part) => this.#gridLine(range[0] + part * (range[1] - range[0]), y)),
      text(EDGE.left, HEIGHT - 6, "start", `step ${this.#span[0]}`),
      text(WIDTH - EDGE.right, HEIGHT - 6, "end", String(this.#steps.at(-1).step)),
      svg("path", { class: "band", d: `${path(above)}${path(below).replace("M", "L")}Z` }),
      svg("path", { class: "line", d: path(groups.map((g) => [g.step, g.mean])) }),
      this.#cursor,
    );
    const [first, last] = [this.#steps[0], this.#steps.at(-1)];
    const ends = `${short(this.#read(first))} at step ${first.step} to ${short(this.#read(last))} at step ${last.step}`;
    const extremes = `between ${short(Math.min(...below.map((p) => p[1])))} and ${short(Math.max(...above.map((p) => p[1])))}`;
    this.#picture.setAttribute("aria-label", `${this.#title}: from ${ends}, ${extremes}`);
  }

  /** Points at a line of the log. */
  point(line) {
    const x = this.#x(line.step).toFixed(1);
    this.#cursor.setAttribute("x1", x);
    this.#cursor.setAttribute("x2", x);
    this.#value.value = short(this.#read(line));
  }

  get #height() {
    return HEIGHT - EDGE.top - EDGE.bottom;
  }

  #x(step) {
    const [first, last] = this.#span;
    return EDGE.left + ((step - first) / (last - first)) * (WIDTH - EDGE.left - EDGE.right);
  }

  #stepAt(event) {
    const box = this.#picture.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * WIDTH;
    const part = (x - EDGE.left) / (WIDTH - EDGE.left - EDGE.right);
    return this.#span[0] + Math.max(0, Math.min(1, part)) * (this.#span[1] - this.#span[0]);
  }

  #gridLine(value, y) {
    const at = y(value);
    const line = svg("line", { class: "grid", x1: EDGE.left, x2: WIDTH - EDGE.right, y1: at, y2: at });
    return svg("g", {}, line, text(EDGE.left - 6, at + 4, "end", short(value)));
  }
}

/** Draws how much the busiest expert of each layer read, over an even share, and returns that in a sentence. */
export function drawLoads(canvas, steps) {
  const own = steps.filter((each) => each.loads?.length);
  const rows = own[0].loads.length;
  const groups = columns(own, [own[0].step, Math.max(own.at(-1).step, own[0].step + 1)]);
  const ratio = window.devicePixelRatio || 1;
  canvas.style.setProperty("--rows", String(rows));
  canvas.width = Math.round(canvas.clientWidth * ratio);
  canvas.height = Math.round(canvas.clientHeight * ratio);
  const drawing = canvas.getContext("2d");
  const [low, high] = ["--heat-low", "--heat-high"].map((name) => colour(canvas, name));
  const values = groups.map(({ lines }) => own[0].loads.map((_, row) => mean(lines.map((each) => each.loads[row][1]))));
  const most = Math.max(2, ...values.flat());
  values.forEach((column, i) =>
    column.forEach((value, row) => {
      const part = Math.max(0, Math.min(1, (value - 1) / (most - 1)));
      drawing.fillStyle = `rgb(${low.map((channel, c) => Math.round(channel + (high[c] - channel) * part)).join(" ")})`;
      const [left, right] = [i, i + 1].map((n) => Math.round((n / groups.length) * canvas.width));
      const [top, bottom] = [row, row + 1].map((n) => Math.round((n / rows) * canvas.height));
      drawing.fillRect(left, top, right - left, bottom - top);
    }),
  );
  const last = own.at(-1).loads.map(([, busiest]) => busiest);
  const worst = last.indexOf(Math.max(...last));
  const idle = own.at(-1).loads.filter(([least]) => least === 0).length;
  return (
    `Step ${own.at(-1).step}: of ${rows} layers with experts the ${ordinal(worst + 1)} is the least even; its busiest expert ` +
    `read ${short(last[worst])} times an even share. ${idle} ${idle === 1 ? "layer has" : "layers have"} an expert that read nothing.`
  );
}

/** Returns steps in at most COLUMNS groups of neighbours: {step, lines}. */
function columns(steps, [first, last]) {
  const found = new Map();
  for (const line of steps) {
    const key = steps.length <= COLUMNS ? line.step : Math.floor(((line.step - first) / (last - first)) * (COLUMNS - 1));
    if (found.has(key)) found.get(key).lines.push(line);
    else found.set(key, { step: line.step, lines: [line] });
  }
  return [...found.values()];
}

function spread(least, most) {
  const room = (most - least) * 0.05 || Math.abs(most) * 0.05 || 1;
  return [least >= 0 ? Math.max(0, least - room) : least - room, most + room];
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

function text(x, y, anchor, content) {
  return svg("text", { x, y, "text-anchor": anchor }, content);
}

function ordinal(n) {
  const ending = { 1: "st", 2: "nd", 3: "rd" }[n % 10];
  return `${n}${ending === undefined || (n % 100 > 10 && n % 100 < 14) ? "th" : ending}`;
}

function colour(element, name) {
  const probe = el("span", { hidden: "" });
  element.parentElement.append(probe);
  probe.style.color = `var(${name})`;
  const channels = getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number);
  probe.remove();
  return channels;
}
