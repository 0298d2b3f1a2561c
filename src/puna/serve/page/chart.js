// A line over the last minutes, small enough to stand beside a number.

import { svg } from "./dom.js";

const WIDTH = 240;
const HEIGHT = 44;

/** A sparkline of at most `length` values; `least` is the smallest top of its scale. */
export class Sparkline {
  #values = [];
  #length;
  #least;
  #line = svg("path", { class: "chart-line" });
  #area = svg("path", { class: "chart-area" });

  constructor(length, least) {
    this.#length = length;
    this.#least = least;
    const viewBox = `0 0 ${WIDTH} ${HEIGHT}`;
    this.element = svg(
      "svg",
      { class: "chart", viewBox, preserveAspectRatio: "none", "aria-hidden": "true" },
      this.#area,
      this.#line,
    );
  }

  push(value) {
    this.#values = [...this.#values, value].slice(-this.#length);
    const top = Math.max(this.#least, ...this.#values);
    const step = WIDTH / (this.#length - 1);
    const begin = WIDTH - step * (this.#values.length - 1);
    const points = this.#values.map((each, i) => [begin + i * step, HEIGHT - 2 - (each / top) * (HEIGHT - 4)]);
    const line = points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
    this.#line.setAttribute("d", line);
    this.#area.setAttribute("d", `${line}L${WIDTH} ${HEIGHT}L${begin.toFixed(1)} ${HEIGHT}Z`);
  }
}
