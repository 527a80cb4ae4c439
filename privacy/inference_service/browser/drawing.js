/** Images of digits: drawn, dropped or chosen, and made into what the model takes. */

import { hog, pixels } from "./features.js";
import { answered, outdated, say, showStep, the } from "./page.js";
import { Pad } from "./pad.js";
import { digit, PictureError } from "./picture.js";

/** @typedef {import("./page.js").Model} Model */

export class Input {
  #model;
  #pad;
  #ask;

  /** @param {Model} model @param {() => Promise<void>} ask */
  constructor(model, ask) {
    this.#model = model;
    this.#ask = ask;
    the("ask").addEventListener("click", ask);
    the("image").hidden = the("keys").hidden = the("strokes").hidden = false;
    /** @type {HTMLInputElement} */
    const each = the("each");
    const lifted = () => each.checked && ask();
    this.#pad = new Pad(the("drawing"), the("pen"), the("place"), { begun: outdated, lifted, done: ask });
    the("clear").addEventListener("click", () => {
      this.#pad.clear();
      answered([]);
    });
    this.#takePictures();
  }

  /** @returns {ArrayLike<number> | null} the model's input, or null where there is none */
  numbers() {
    const image = this.#pad.image();
    if (!image) {
      say("Draw something first, or choose a picture.", true);
      return null;
    }
    const began = performance.now();
    const input = this.#features(digit(image));
    showStep({ name: "features", milliseconds: performance.now() - began, bytes: 0 });
    return input;
  }

  /** Browsers compile what has run a few times: the first question need not wait for that. */
  rehearse() {
    for (let n = 0; n < 4; n++) {
      setTimeout(() => {
        const side = 256;
        const values = Float64Array.from({ length: side * side }, (_, k) => 255 * Number(k % side === k >> 8));
        this.#features(digit({ width: side, height: side, values }));
      }, 20 * n);
    }
  }

  /** @param {Uint8Array} image of 28 by 28 pixels */
  #features(image) {
    return this.#model.inputs === "hog" ? hog(image) : pixels(image);
  }

  #takePictures() {
    const file = /** @type {HTMLInputElement} */ (the("file"));
    const { body } = document;
    file.addEventListener("change", () => {
      if (file.files?.[0]) this.#take(file.files[0]);
      file.value = "";
    });
    body.addEventListener("dragover", (event) => {
      event.preventDefault();
      body.classList.add("over");
    });
    body.addEventListener("dragleave", () => body.classList.remove("over"));
    body.addEventListener("drop", (event) => {
      event.preventDefault();
      body.classList.remove("over");
      const dropped = event.dataTransfer?.files[0];
      if (dropped) this.#take(dropped);
    });
  }

  /** @param {File} file */
  async #take(file) {
    try {
      await this.#pad.show(file);
      outdated();
    } catch (error) {
      const seen = error instanceof PictureError;
      say(seen ? error.message : `${file.name} cannot be read as a picture.`, true);
      return;
    }
    await this.#ask();
  }
}
