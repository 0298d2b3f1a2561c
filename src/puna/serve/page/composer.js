// Where people write: a field that grows, pictures above it, one button that sends or stops.

import { byId, el, iconButton } from "./dom.js";
import { drawTiles, readPicture } from "./pictures.js";

export class Composer {
  #form = byId("composer");
  #field = byId("ask");
  #strip = byId("chosen");
  #problem = byId("composer-problem");
  #button = byId("send");
  #model;
  #acts;
  #pictures = [];

  /** `acts`: send(text, pictures), stop(), editLast(), tell(text). */
  constructor(model, acts) {
    this.#model = model;
    this.#acts = acts;
    this.#form.addEventListener("submit", (event) => this.#submit(event));
    this.#field.addEventListener("keydown", (event) => this.#key(event));
    this.#field.addEventListener("input", () => this.#grow());
    this.#field.addEventListener("paste", (event) => this.#paste(event));
    const chooser = byId("files");
    byId("attach").addEventListener("click", () => chooser.click());
    byId("attach").hidden = !model.vision;
    chooser.addEventListener("change", () => {
      this.add([...chooser.files]);
      chooser.value = "";
    });
    this.#acceptDrops();
  }

  /** Shows whether the button sends or stops. */
  setBusy(isBusy) {
    this.#button.dataset.busy = String(isBusy);
    this.#button.setAttribute("aria-label", isBusy ? "Stop the answer" : "Send");
    this.#button.title = isBusy ? "Stop (Escape)" : "Send (Enter)";
  }

  focus() {
    this.#field.focus();
  }

  /** Puts a text into the field, to be sent or changed. */
  write(text) {
    this.#field.value = text;
    this.#grow();
    this.focus();
  }

  /** Says what is wrong with what was chosen or asked, empty when nothing is. */
  complain(message) {
    this.#problem.textContent = message;
    this.#problem.hidden = !message;
  }

  /** Takes pictures in. */
  async add(files) {
    if (!files.length) return;
    const { limits, vision } = this.#model;
    if (!vision) return this.complain("This model reads no pictures.");
    const problems = [];
    for (const file of files) {
      if (this.#pictures.length >= limits.max_images) {
        problems.push(`At most ${limits.max_images} pictures fit into a message.`);
        break;
      }
      try {
        this.#pictures.push(await readPicture(file, limits));
      } catch (error) {
        problems.push(error.message);
      }
    }
    this.complain(problems.join(" "));
    this.#showPictures();
    this.#acts.tell(`${this.#pictures.length} of ${limits.max_images} pictures chosen.`);
    this.focus();
  }

  #submit(event) {
    event.preventDefault();
    if (this.#button.dataset.busy === "true") return this.#acts.stop();
    const text = this.#field.value.trim();
    this.complain("");
    if (!this.#acts.send(text, this.#pictures)) return;
    this.#pictures = [];
    this.#field.value = "";
    this.#showPictures();
    this.#grow();
  }

  #key(event) {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      if (this.#button.dataset.busy !== "true") this.#form.requestSubmit();
    } else if (event.key === "ArrowUp" && !this.#field.value) {
      event.preventDefault();
      this.#acts.editLast();
    }
  }

  #paste(event) {
    const files = [...event.clipboardData.files].filter(({ type }) => type.startsWith("image/"));
    if (!files.length) return;
    event.preventDefault();
    this.add(files);
  }

  #acceptDrops() {
    let depth = 0; // a drag enters and leaves every element on its way
    const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
    const mark = (by) => {
      depth = Math.max(0, depth + by);
      document.body.classList.toggle("dropping", depth > 0);
    };
    document.addEventListener("dragenter", (event) => hasFiles(event) && mark(1));
    document.addEventListener("dragleave", (event) => hasFiles(event) && mark(-1));
    document.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
    document.addEventListener("drop", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      mark(-depth);
      this.add([...event.dataTransfer.files]);
    });
  }

  #grow() {
    this.#field.style.height = "auto";
    this.#field.style.height = `${this.#field.scrollHeight}px`;
  }

  #showPictures() {
    this.#strip.hidden = !this.#pictures.length;
    this.#strip.replaceChildren(
      ...this.#pictures.map((picture) => {
        const remove = () => {
          this.#pictures = this.#pictures.filter((each) => each !== picture);
          this.#showPictures();
          this.focus();
        };
        return el(
          "li",
          {},
          drawTiles(picture, this.#model.vision),
          iconButton("close", `Remove ${picture.name}`, remove),
        );
      }),
    );
  }
}
