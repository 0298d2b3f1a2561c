// The server now: answers in progress and waiting, room in the cache, tokens a second. One stream of numbers, open only
// while somebody can see them.

import { Sparkline } from "./chart.js";
import { byId, el } from "./dom.js";

const SECONDS = 120; // on a chart; the server sends a sample a second
const RETRY_MS = 3000;

const GAUGES = [
  { name: "running", title: "Running", about: "answers being made", least: 4, show: String },
  { name: "waiting", title: "Waiting", about: "answers not begun", least: 4, show: String },
  { name: "generated_per_second", title: "Written", about: "tokens a second", least: 10, show: rate },
  { name: "read_per_second", title: "Read", about: "prompt tokens a second", least: 100, show: rate },
  { name: "kv_use", title: "Cache", about: "keys and values held", least: 1, show: share },
];

export class Live {
  #api;
  #gauges = new Map();
  #pulse = byId("pulse");
  #stopping = null;

  constructor(api) {
    this.#api = api;
    const list = byId("gauges");
    for (const gauge of GAUGES) {
      const number = el("output", {}, "–");
      const chart = new Sparkline(SECONDS, gauge.least);
      const about = el("span", { class: "gauge-about" }, gauge.about);
      list.append(el("li", { class: "gauge" }, el("h3", {}, gauge.title), number, about, chart.element));
      this.#gauges.set(gauge.name, { ...gauge, number, chart });
    }
    document.addEventListener("visibilitychange", () => (document.hidden ? this.stop() : this.start()));
  }

  /** Listens until `stop`, again and again where the stream breaks. */
  async start() {
    if (this.#stopping !== null || document.hidden) return;
    const stopping = new AbortController();
    this.#stopping = stopping;
    while (!stopping.signal.aborted) {
      try {
        for await (const sample of this.#api.stream("look/live", { signal: stopping.signal })) this.#show(sample);
        this.#showLost("the server is going down");
      } catch (error) {
        if (error.name !== "AbortError") this.#showLost(error.message);
        if (error.status === 401) break; // asked for elsewhere; starts again with a key
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
    if (this.#stopping === stopping) this.#stopping = null;
  }

  stop() {
    this.#stopping?.abort();
    this.#stopping = null;
  }

  #show(sample) {
    for (const { name, number, chart, show } of this.#gauges.values()) {
      const value = sample[name];
      number.value = value === null || value === undefined ? "–" : show(value);
      chart.push(value ?? 0);
    }
    const { running, waiting, generated_per_second: speed } = sample;
    this.#pulse.dataset.state = running ? "busy" : "idle";
    this.#pulse.textContent = running ? `${running} running · ${waiting} waiting · ${rate(speed)} tok/s` : "idle";
  }

  #showLost(why) {
    this.#pulse.dataset.state = "lost";
    this.#pulse.textContent = "not reached";
    this.#pulse.title = why;
  }
}

function rate(value) {
  return value.toFixed(value > 0 && value < 10 ? 1 : 0);
}

function share(value) {
  return `${(value * 100).toFixed(value > 0 && value < 0.1 ? 1 : 0)} %`;
}
