// The page: its parts, joined.

import { Api } from "./api.js";
import { Composer } from "./composer.js";
import { Conversation, openCalls } from "./conversation.js";
import { byId, el } from "./dom.js";
import { keepingEnd, scrollToEnd } from "./end.js";
import { joinFilesMenu } from "./files.js";
import { askForKey } from "./key.js";
import { listen } from "./keys.js";
import { Live } from "./live.js";
import { Messages } from "./messages.js";
import { Panel } from "./panel.js";
import { presets } from "./presets.js";
import { Routing } from "./routing.js";
import { SettingError, Settings } from "./settings.js";
import { say, sayAnswer } from "./speech.js";
import { Talk } from "./talk.js";
import { nextTheme } from "./theme.js";
import { describeModel } from "./welcome.js";

const api = new Api();
const conversation = new Conversation();
const settings = new Settings();
const panel = new Panel();
const talk = new Talk(api, conversation, settings);

start();

async function start() {
  const model = await loadModel();
  talk.model = model.name;
  settings.adapt(model.abilities);
  const options = presets(model.system_prompt).map(({ name, text }) => el("option", { value: text }, name));
  byId("system-preset").append(...options);
  const stop = () => talk.stop();
  const composer = new Composer(model, { send, stop, editLast: () => messages.editLast(), tell: say });
  const messages = new Messages(byId("messages"), conversation, model, { edit, again, result, routing: showRouting });
  const routing = new Routing(api, conversation, model);
  const live = new Live(api);
  describeModel(model, (text) => composer.write(text));

  followAnswers();
  joinButtons();
  live.start();
  byId("welcome").hidden = !conversation.isEmpty;
  composer.focus();
  document.body.dataset.ready = "";

  function send(text, pictures) {
    const goesOn = conversation.last?.role === "user" || conversation.last?.role === "tool";
    if (talk.isBusy || (!text && !pictures.length && !goesOn)) return false;
    if (!isSendable()) return false;
    if (text || pictures.length) conversation.addUser(text, pictures);
    ask();
    return true;
  }

  function edit(message, text) {
    if (talk.isBusy || !isSendable()) return;
    conversation.cutAfter(message, true);
    conversation.addUser(text.trim(), message.pictures);
    ask();
  }

  function again(message) {
    if (isSendable()) ask(message);
  }

  function result(call, text) {
    conversation.addTool(call.id, call.name, text);
    if (!openCalls(conversation).length && isSendable()) ask();
  }

  function ask(message = null) {
    composer.complain("");
    if (document.activeElement.closest("#messages")) composer.focus(); // what had the focus is about to go
    talk.ask(message);
    scrollToEnd();
  }

  /** Says whether the settings make a request; shows the one that does not. */
  function isSendable() {
    try {
      settings.request(model.name, []);
      return true;
    } catch (error) {
      if (!(error instanceof SettingError)) throw error;
      panel.open("settings");
      composer.complain(error.message);
      error.field.closest("details")?.setAttribute("open", "");
      error.field.focus();
      return false;
    }
  }

  function showRouting(message) {
    panel.open("routing", true);
    routing.showMessage(message);
  }

  function followAnswers() {
    let isDrawing = false;
    talk.addEventListener("begin", () => {
      composer.setBusy(true);
      say("The model is answering.");
    });
    talk.addEventListener("progress", ({ detail: { message } }) => {
      if (isDrawing) return; // once a frame is enough
      isDrawing = true;
      requestAnimationFrame(() => {
        isDrawing = false;
        keepingEnd(() => messages.update(message, talk.growing === message));
        routing.show();
      });
    });
    talk.addEventListener("end", ({ detail: { message, answer } }) => {
      composer.setBusy(false);
      keepingEnd(() => messages.update(message, false));
      routing.show();
      sayAnswer(answer);
      if (answer.error?.status === 401) changeKey(answer.error.message);
    });
    conversation.addEventListener("change", () => {
      byId("welcome").hidden = !conversation.isEmpty;
    });
  }

  function joinButtons() {
    const renew = () => {
      talk.stop();
      conversation.clear();
      composer.complain("");
      composer.focus();
      say("New conversation.");
    };
    const theme = () => say(`Colours: ${nextTheme()}.`);
    const shortcuts = () => byId("shortcuts").showModal();
    const againLast = () => conversation.last?.role === "assistant" && again(conversation.last);
    byId("new").addEventListener("click", renew);
    byId("theme").addEventListener("click", theme);
    byId("show-shortcuts").addEventListener("click", shortcuts);
    byId("show-key").addEventListener("click", () => changeKey());
    joinFilesMenu(conversation, settings, model, (problem) => {
      talk.stop();
      composer.complain(problem);
    });
    listen([
      ["Escape", "Esc", "stop the answer", stop],
      ["KeyM", "Alt M", "go to the message box", () => composer.focus()],
      ["KeyE", "Alt E", "edit what you said last (also ↑ in an empty box)", () => messages.editLast()],
      ["KeyR", "Alt R", "answer again", againLast],
      ["KeyN", "Alt N", "new conversation", renew],
      ["KeyP", "Alt P", "open or close the panel", () => panel.toggle()],
      ["Digit1", "Alt 1", "settings", () => panel.open("settings", true)],
      ["Digit2", "Alt 2", "routing", () => panel.open("routing", true)],
      ["Digit3", "Alt 3", "server", () => panel.open("live", true)],
      ["KeyT", "Alt T", "light, dark or as the system", theme],
      ["KeyK", "Alt K", "this list", shortcuts],
    ]);
  }

  async function changeKey(why) {
    if (await askForKey(api, why)) live.start();
  }
}

/** Returns what the server says of its model, asking for a key where one is needed. */
async function loadModel() {
  for (;;) {
    try {
      return await api.get("look/model");
    } catch (error) {
      if (error.status === 401) await askForKey(api, error.message);
      else {
        byId("pulse").textContent = error.message;
        await new Promise((resolve) => setTimeout(resolve, 3000));
      }
    }
  }
}
