// How answers are made: the form of the panel, kept for the next visit, and the request that it makes. The key is not
// here (`api.js`). A field that nobody touched is not sent, so the server's own default holds.

import { byId } from "./dom.js";

const KEPT = "puna.settings"; // in localStorage
const NUMBERS = [
  "temperature",
  "top_p",
  "top_k",
  "min_p",
  "max_tokens",
  "seed",
  "frequency_penalty",
  "presence_penalty",
  "repetition_penalty",
];
const OWN = "model's own";

const EXAMPLE_TOOLS = [
  {
    type: "function",
    function: {
      name: "weather",
      description: "Says what the weather is at a place.",
      parameters: {
        type: "object",
        properties: { place: { type: "string" }, days: { type: "integer", description: "from today on" } },
        required: ["place"],
      },
    },
  },
];

/** A setting that cannot be sent as it stands. `field` is the form's element. */
export class SettingError extends Error {
  constructor(message, field) {
    super(message);
    this.field = field;
  }
}

export class Settings {
  #form = byId("settings");
  #fields = this.#form.elements;
  #abilities = { routed_experts: false };

  constructor() {
    this.#restore();
    this.#form.addEventListener("input", ({ target }) => this.#edited(target));
    this.#form.addEventListener("submit", (event) => event.preventDefault());
    byId("reset-sampling").addEventListener("click", () => this.#resetSampling());
    byId("example-tools").addEventListener("click", () => this.#set("tools", JSON.stringify(EXAMPLE_TOOLS, null, 2)));
    byId("system-preset").addEventListener("change", ({ target }) => this.#set("system", target.value));
    this.#showOutputs();
  }

  /** Leaves out what this server or model cannot do. */
  adapt(abilities) {
    this.#abilities = abilities;
    for (const part of this.#form.querySelectorAll("[data-needs]")) part.hidden = !abilities[part.dataset.needs];
  }

  get system() {
    return this.#fields.system.value;
  }

  get wantsRoutes() {
    return this.#abilities.routed_experts && this.#fields.routes.checked;
  }

  /** Returns the body of a chat request. Raises SettingError. */
  request(model, messages) {
    const fields = this.#fields;
    const body = { model, messages, stream: true, stream_options: { include_usage: true } };
    for (const name of NUMBERS) {
      const value = this.#number(name);
      if (value !== null) body[name] = value;
    }
    const stops = fields.stop.value.split("\n").filter(Boolean);
    if (stops.length) body.stop = stops;
    const tools = this.#json("tools");
    if (tools !== null) {
      if (!Array.isArray(tools))
        throw new SettingError("Tools are a JSON list of definitions: begin with [.", fields.tools);
      if (tools.length) Object.assign(body, { tools, tool_choice: fields.tool_choice.value });
      if (tools.length && !fields.parallel.checked) body.parallel_tool_calls = false;
    }
    const format = this.#format();
    if (format !== null) body.response_format = format;
    if (fields.probabilities.checked)
      Object.assign(body, { logprobs: true, top_logprobs: Number(fields.alternatives.value) });
    if (this.wantsRoutes) body.return_routed_experts = true;
    return body;
  }

  /** Returns all fields as a document. */
  toDocument() {
    const entries = [...this.#named()].map((field) => [field.name, valueOf(field)]);
    return Object.fromEntries(entries.filter(([, value]) => value !== null));
  }

  #format() {
    const kind = this.#fields.format.value;
    if (kind === "text") return null;
    if (kind === "json_object") return { type: kind };
    const schema = this.#json("schema");
    if (schema === null) throw new SettingError("Give the schema that the answer is to follow.", this.#fields.schema);
    return { type: "json_schema", json_schema: { name: "answer", schema, strict: true } };
  }

  #number(name) {
    const field = this.#fields[name];
    if (field.type === "range") return "set" in field.dataset ? Number(field.value) : null;
    if (field.validity.badInput || !field.validity.valid)
      throw new SettingError(`${field.labels[0].textContent.trim()}: ${field.validationMessage}`, field);
    return field.value === "" ? null : Number(field.value);
  }

  #json(name) {
    const field = this.#fields[name];
    if (!field.value.trim()) return null;
    try {
      return JSON.parse(field.value);
    } catch (error) {
      throw new SettingError(`This is no JSON: ${error.message}`, field);
    }
  }

  #set(name, value) {
    this.#fields[name].value = value;
    this.#fields[name].dispatchEvent(new Event("input", { bubbles: true }));
  }

  #edited(field) {
    if (field.type === "range") field.dataset.set = "";
    this.#showOutputs();
    this.#check(field);
    localStorage.setItem(KEPT, JSON.stringify(this.toDocument()));
  }

  #check(field) {
    const problem = byId("settings").querySelector(`[data-problem="${field.name}"]`);
    if (problem === null) return;
    let message = "";
    try {
      this.#json(field.name);
    } catch (error) {
      message = error.message;
    }
    problem.textContent = message;
    field.setAttribute("aria-invalid", String(Boolean(message)));
  }

  #resetSampling() {
    for (const name of NUMBERS) {
      delete this.#fields[name].dataset.set;
      this.#fields[name].value = this.#fields[name].defaultValue;
    }
    this.#showOutputs();
    localStorage.setItem(KEPT, JSON.stringify(this.toDocument()));
  }

  #showOutputs() {
    for (const output of this.#form.querySelectorAll("output")) {
      const field = this.#fields[output.htmlFor.value];
      output.value = "set" in field.dataset ? Number(field.value).toFixed(2) : OWN;
    }
    byId("schema-field").hidden = this.#fields.format.value !== "json_schema";
  }

  #restore() {
    let kept = {};
    try {
      kept = JSON.parse(localStorage.getItem(KEPT)) ?? {};
    } catch {
      localStorage.removeItem(KEPT);
    }
    for (const field of this.#named()) {
      const value = kept[field.name];
      if (value === undefined) continue;
      if (field.type === "checkbox") field.checked = value;
      else field.value = value;
      if (field.type === "range") field.dataset.set = "";
    }
  }

  #named() {
    return [...this.#fields].filter((field) => field.name);
  }
}

function valueOf(field) {
  if (field.type === "checkbox") return field.checked;
  if (field.type === "range") return "set" in field.dataset ? field.value : null;
  return field.value;
}
