// The page of a run: asks every second what is new, keeps the lines of the log, and shows them.

import { Chart, drawLoads, el, short } from "./chart.js";

const PAUSE_MS = { running: 1000, waiting: 1000, still: 5000, finished: 15000, lost: 3000 };
const MOST_LINES = 8000; // kept; of more, every second one
const RECENT = 20; // steps whose middle is the time of a step
const SAID = {
  waiting: "has not finished a step yet",
  running: "running",
  still: "no step for a while: paused, stopped, or busy with something else",
  finished: "finished",
};
const THEMES = { auto: "light", light: "dark", dark: "auto" };
const COLUMNS = ["step", "loss", "lr", "grad_norm", "tokens", "seconds", "tokens_per_second", "min_load", "max_load"];

const byId = (id) => document.getElementById(id);
const charts = [
  new Chart("Loss, nats per learnt token", (line) => line.loss, pointNear),
  new Chart("Learning rate", (line) => line.lr, pointNear),
  new Chart("Norm of the gradient", (line) => line.grad_norm, pointNear),
  new Chart("Tokens a second", (line) => line.tokens_per_second, pointNear),
  new Chart("Busiest expert, over an even share", (line) => line.max_load, pointNear),
  new Chart("Idlest expert, over an even share", (line) => line.min_load, pointNear),
];
let place = { file: 0, offset: 0 };
let steps = [];
let work = null; // operations of a token, and the most that the processors do
let sampled = ""; // the samples that are shown, as JSON
let chosen = null; // null follows the last step

byId("charts").append(...charts.map((chart) => chart.element));
byId("columns").append(...COLUMNS.map((name) => el("th", { scope: "col" }, name.replaceAll("_", " "))));
byId("cursor").addEventListener("input", (event) => choose(Number(event.target.value)));
byId("theme").addEventListener("click", () => setTheme(THEMES[document.documentElement.dataset.theme ?? "auto"]));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showLoads);
window.addEventListener("resize", showLoads);
ask();

async function ask() {
  let state = "lost";
  try {
    const answer = await fetch(`news?file=${place.file}&offset=${place.offset}`);
    const news = await answer.json();
    if (!answer.ok) throw new Error(news.error);
    state = news.state;
    take(news);
  } catch (error) {
    byId("state").textContent = `not reached: ${error.message}`;
    byId("state").dataset.state = state;
  }
  setTimeout(ask, PAUSE_MS[state]);
}

function take(news) {
  place = news.place;
  byId("name").textContent = document.title = news.name;
  if (byId("state").textContent !== SAID[news.state]) byId("state").textContent = SAID[news.state];
  byId("state").dataset.state = news.state;
  takeWork(news.work);
  if (news.is_new) steps = [];
  if (news.steps.length || news.is_new) {
    steps.push(...news.steps);
    while (steps.length > MOST_LINES) steps = steps.filter((_, i) => i % 2 === 0 || i === steps.length - 1);
    showSteps();
  }
  showEnergy(news.energy);
  showGauges(news);
  showHeldOut(news.held_out);
  showSamples(news.samples);
}

/** Adds a chart of utilisation with the first news of a known peak, and says what it is out of. */
function takeWork(told) {
  const isFirst = !work?.peak_flops && told?.peak_flops;
  work = told;
  byId("work").hidden = work === null;
  if (work === null) return;
  byId("work").textContent =
    `Utilisation (MFU): ${short(work.token_flops)} operations a token, attention to earlier positions and pictures not ` +
    `counted, out of a peak that is ${work.peak_source}.`;
  if (!isFirst) return;
  const chart = new Chart("Utilisation (MFU), %", utilisation, pointNear);
  charts.push(chart);
  byId("charts").append(chart.element);
  chart.show(steps);
}

/** Returns the per cent of the peak that a line of the log stands for; NaN where it is not known. */
function utilisation(line) {
  return work?.peak_flops ? (100 * line.tokens_per_second * work.token_flops) / work.peak_flops : NaN;
}

/** Returns what the newest start draws on average, and how that is known. */
function watts(energy) {
  const last = energy.at(-1);
  if (!last?.joules) return "not measured";
  const joules = Object.values(last.joules).reduce((a, b) => a + b, 0);
  return `${short(joules / last.seconds)} (${Object.keys(last.joules).join(", ")})`;
}

function showSteps() {
  charts.forEach((chart) => chart.show(steps));
  byId("cursor").max = Math.max(0, steps.length - 1);
  choose(chosen);
  const last = steps.slice(-RECENT).reverse();
  byId("rows").replaceChildren(
    ...last.map((line) => el("tr", {}, ...COLUMNS.map((name) => el("td", {}, short(line[name]))))),
  );
  showLoads();
}

function showLoads() {
  const known = steps.some((line) => line.loads?.length);
  byId("experts").hidden = !known;
  if (!known) return;
  const sentence = drawLoads(byId("heat"), steps);
  byId("heat-text").textContent = sentence;
  byId("heat").setAttribute("aria-label", `Loads by layer over time. ${sentence}`);
}

/** Points all charts at a line of the log by its number; null, or the last number, follows the run. */
function choose(index) {
  chosen = index === null || index >= steps.length - 1 ? null : index;
  const line = steps.at(chosen ?? -1);
  if (line === undefined) return;
  byId("cursor").value = chosen ?? steps.length - 1;
  byId("cursor-step").value = byId("cursor").ariaValueText = String(line.step);
  charts.forEach((chart) => chart.point(line));
}

function pointNear(step) {
  const behind = steps.findIndex((line) => line.step >= step);
  if (behind >= 0) choose(behind);
}

function showGauges({ state, energy }) {
  const last = steps.at(-1);
  if (last === undefined) return;
  const left = last.steps === undefined ? null : (last.steps - last.step) * middle(steps.slice(-RECENT));
  const known = energy.filter((start) => start.kwh !== null);
  const gauges = {
    Step: last.steps === undefined ? short(last.step) : `${last.step} of ${last.steps}`,
    Loss: short(last.loss),
    "Learning rate": short(last.lr),
    "Gradient norm": short(last.grad_norm),
    "Tokens a second": short(last.tokens_per_second),
    "Time left": state === "finished" ? "none" : left === null ? "–" : duration(left),
    "Expert load": `${short(last.min_load)} to ${short(last.max_load)}`,
    Energy: known.length ? `${short(sum(known, "kwh"))} kWh` : "not known",
    Watts: watts(energy),
    "Utilisation (MFU)": work?.peak_flops ? `${short(utilisation(last))} %` : "not known",
  };
  byId("gauges").replaceChildren(
    ...Object.entries(gauges).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
  );
}

function showEnergy(starts) {
  byId("energy").hidden = !starts.length;
  if (!starts.length) return;
  const known = starts.filter((start) => start.kwh !== null);
  byId("energy-text").textContent = known.length
    ? `${short(sum(known, "kwh"))} kWh in ${starts.length} ${starts.length === 1 ? "start" : "starts"} of the run, up to its ` +
      "last checkpoint, work that was done twice included."
    : "Not known: this machine has no meter that may be read, and the recipe declares no watts.";
  byId("energy-rows").replaceChildren(
    ...starts.map((start) => {
      const joules = start.joules === null ? null : Object.values(start.joules).reduce((a, b) => a + b, 0);
      const cells = [
        start.date.replace("T", " ").slice(0, 16),
        `${start.first_step} to ${start.last_step}`,
        short(start.seconds / 3600),
        short(start.kwh),
        short(joules === null ? null : joules / start.seconds),
        short(start.location_kg),
        short(start.market_kg),
        start.joules === null ? "none" : Object.keys(start.joules).join(", "),
      ];
      return el("tr", {}, ...cells.map((cell) => el("td", {}, cell)));
    }),
  );
}

/** Shows samples step by step; what is shown already stays as it is, or nobody could select it. */
function showSamples(samples) {
  byId("samples").hidden = !samples.length;
  const told = JSON.stringify(samples);
  if (told === sampled) return;
  sampled = told;
  const steps = [...new Set(samples.map((sample) => sample.step))];
  byId("samples-list").replaceChildren(
    ...steps.map((step) =>
      el(
        "article",
        {},
        el("h3", {}, `Step ${step}`),
        el("dl", {}, ...samples.filter((sample) => sample.step === step).map(entry)),
      ),
    ),
  );
}

function entry({ asked, written, picture, wanted }) {
  const facts = [picture && `picture ${picture}`, wanted.length && `right would be: ${wanted.join(" / ")}`].filter(Boolean);
  const lines = [el("dt", {}, asked), el("dd", {}, written || "(nothing)")];
  if (facts.length) lines.push(el("dd", { class: "aside" }, facts.join("; ")));
  return el("div", {}, ...lines);
}

function showHeldOut(scores) {
  byId("held-out").hidden = scores === null;
  if (scores === null) return;
  byId("held-out-list").replaceChildren(
    ...Object.entries(scores).map(([name, bits]) => el("div", {}, el("dt", {}, name), el("dd", {}, short(bits)))),
  );
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `Theme: ${theme === "auto" ? "as the system" : theme}`;
  showLoads();
}

function middle(lines) {
  return lines.map((line) => line.seconds).sort((a, b) => a - b)[Math.floor(lines.length / 2)];
}

function sum(records, name) {
  return records.reduce((total, record) => total + record[name], 0);
}

function duration(seconds) {
  const [days, hours, minutes] = [seconds / 86400, (seconds / 3600) % 24, (seconds / 60) % 60].map(Math.floor);
  if (days) return `${days} d ${hours} h`;
  return hours ? `${hours} h ${minutes} min` : minutes ? `${minutes} min` : `${Math.ceil(seconds)} s`;
}
