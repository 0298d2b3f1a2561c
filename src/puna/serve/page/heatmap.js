// Layers by experts as a map on a canvas: the more tokens an expert read, the stronger its cell. Colours are the page's
// (custom properties --heat-0 to --heat-5), so the map follows the theme. Arrow keys move a cell cursor; the caller's
// `tell` says where it is.

import { el } from "./dom.js";
import { fairShares } from "./routes.js";

const STEPS = 6;
const AXIS = { left: 30, top: 18 };
const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

export class HeatMap {
  #counts = [];
  #layers = [];
  #cursor = null; // [row, expert]
  #canvas = el("canvas", { class: "heat", tabindex: "0", role: "application" });
  #tell;

  /** `tell` gets a sentence about the cell that is pointed at. */
  constructor(tell) {
    this.#tell = tell;
    this.element = this.#canvas;
    this.#canvas.addEventListener("pointermove", (event) => this.#point(event));
    this.#canvas.addEventListener("pointerleave", () => this.#moveTo(null));
    this.#canvas.addEventListener("blur", () => this.#moveTo(null));
    this.#canvas.addEventListener("keydown", (event) => this.#step(event));
    new ResizeObserver(() => this.draw()).observe(this.#canvas);
  }

  /** Shows counts [row][expert]; `layers` are the rows' numbers in the model, `label` is the map in a sentence. */
  show(counts, layers, label) {
    this.#counts = counts;
    this.#layers = layers;
    this.#canvas.setAttribute("aria-label", label);
    this.#canvas.style.setProperty("--rows", String(counts.length));
    this.draw();
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    if (!width || !height || !this.#counts.length) return;
    const ratio = window.devicePixelRatio || 1;
    this.#canvas.width = Math.round(width * ratio);
    this.#canvas.height = Math.round(height * ratio);
    const drawing = this.#canvas.getContext("2d");
    drawing.scale(ratio, ratio);
    const [cellWidth, cellHeight] = this.#cell();
    const gap = Math.min(cellWidth, cellHeight) >= 7 ? 1.5 : Math.min(cellWidth, cellHeight) >= 4 ? 0.5 : 0;
    const shares = fairShares(this.#counts);
    const most = Math.max(2, ...shares.flat());
    const colours = ramp(this.#canvas);
    shares.forEach((row, layer) =>
      row.forEach((share, expert) => {
        drawing.fillStyle = mix(colours, share / most);
        const [left, right] = [expert, expert + 1].map((n) => snapped(AXIS.left + n * cellWidth, ratio));
        const [top, bottom] = [layer, layer + 1].map((n) => snapped(AXIS.top + n * cellHeight, ratio));
        drawing.beginPath();
        drawing.roundRect(left, top, right - left - gap, bottom - top - gap, gap ? Math.min(3, cellHeight / 5) : 0);
        drawing.fill();
      }),
    );
    this.#axes(drawing, cellWidth, cellHeight);
    this.#frame(drawing, cellWidth, cellHeight);
  }

  #cell() {
    const { clientWidth, clientHeight } = this.#canvas;
    return [(clientWidth - AXIS.left) / this.#counts[0].length, (clientHeight - AXIS.top) / this.#counts.length];
  }

  #axes(drawing, cellWidth, cellHeight) {
    const style = getComputedStyle(this.#canvas);
    drawing.fillStyle = style.color;
    drawing.font = `11px ${style.fontFamily}`;
    drawing.textBaseline = "middle";
    drawing.textAlign = "right";
    const everyRow = Math.ceil(14 / cellHeight);
    this.#layers.forEach((layer, row) => {
      if (row % everyRow === 0) drawing.fillText(String(layer), AXIS.left - 8, AXIS.top + (row + 0.5) * cellHeight);
    });
    drawing.textAlign = "center";
    const everyColumn = [1, 2, 4, 8, 16, 32].find((n) => n * cellWidth >= 22) ?? 64;
    for (let expert = 0; expert < this.#counts[0].length; expert += everyColumn)
      drawing.fillText(String(expert), AXIS.left + (expert + 0.5) * cellWidth, AXIS.top / 2);
  }

  #frame(drawing, cellWidth, cellHeight) {
    if (this.#cursor === null) return;
    const [row, expert] = this.#cursor;
    drawing.strokeStyle = getComputedStyle(this.#canvas).color;
    drawing.lineWidth = 2;
    drawing.strokeRect(
      AXIS.left + expert * cellWidth - 1,
      AXIS.top + row * cellHeight - 1,
      cellWidth + 1,
      cellHeight + 1,
    );
  }

  #point({ offsetX, offsetY }) {
    if (!this.#counts.length) return;
    const [cellWidth, cellHeight] = this.#cell();
    const expert = Math.floor((offsetX - AXIS.left) / cellWidth);
    const row = Math.floor((offsetY - AXIS.top) / cellHeight);
    this.#moveTo(this.#counts[row]?.[expert] === undefined ? null : [row, expert]);
  }

  #step(event) {
    const arrow = ARROWS[event.key];
    if (!arrow || !this.#counts.length) return;
    event.preventDefault();
    const [row, expert] = this.#cursor ?? [0, 0];
    const target = this.#cursor === null ? [0, 0] : [row + arrow[0], expert + arrow[1]];
    if (this.#counts[target[0]]?.[target[1]] !== undefined) this.#moveTo(target);
  }

  #moveTo(cursor) {
    this.#cursor = cursor;
    this.draw();
    if (cursor === null) return this.#tell(null);
    const [row, expert] = cursor;
    const n = this.#counts[row][expert];
    const share = fairShares([this.#counts[row]])[0][expert];
    const tokens = `${n} ${n === 1 ? "token" : "tokens"}`;
    this.#tell(`Layer ${this.#layers[row]}, expert ${expert}: ${tokens}, ${share.toFixed(1)} × a fair share`);
  }
}

/** Returns a place on the border of two of the screen's pixels: cells of few pixels would blur otherwise. */
function snapped(place, ratio) {
  return Math.round(place * ratio) / ratio;
}

/** Returns the theme's colours as [red, green, blue], weakest first. */
function ramp(element) {
  const probe = el("span", { hidden: true });
  element.parentElement.append(probe);
  const colours = Array.from({ length: STEPS }, (_, i) => {
    probe.style.color = `var(--heat-${i})`;
    return getComputedStyle(probe)
      .color.match(/[\d.]+/g)
      .slice(0, 3)
      .map(Number);
  });
  probe.remove();
  return colours;
}

function mix(colours, amount) {
  const place = Math.max(0, Math.min(1, amount)) * (colours.length - 1);
  const low = Math.min(Math.floor(place), colours.length - 2);
  const [from, to] = [colours[low], colours[low + 1]];
  const channels = from.map((value, i) => Math.round(value + (to[i] - value) * (place - low)));
  return `rgb(${channels.join(" ")})`;
}
