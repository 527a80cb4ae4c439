/** The drawing area: a pen by pointer or keyboard, or a picture that is put there. */

import { gathered, greyOf } from "./picture.js";

/** @typedef {import("./picture.js").Grey} Grey */

const PEN = 18;
const STEP = 10;
const WHITE = "#fff";
const NO_POINTER = -1;
const STRIP = 128;
/** @type {Record<string, [number, number]>} */
const ARROWS = {
  ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP],
};

export class Pad {
  #canvas;
  #context;
  #pen;
  #words;
  #on;
  #empty = true;
  #down = false; // by keyboard
  #pointer = NO_POINTER; // that draws
  #at = [128, 128];
  /** @type {Grey | null} */
  #picture = null;

  /**
   * @param {HTMLElement} canvas @param {HTMLElement} pen @param {HTMLElement} words where the pen is
   * @param {{begun: () => void, lifted: () => void, done: () => void}} on a stroke, its end, Enter
   */
  constructor(canvas, pen, words, on) {
    this.#canvas = /** @type {HTMLCanvasElement} */ (canvas);
    const context = this.#canvas.getContext("2d", { willReadFrequently: true });
    this.#context = /** @type {CanvasRenderingContext2D} */ (context);
    this.#pen = pen;
    this.#words = words;
    this.#on = on;
    this.clear();
    // A second finger, or another button, draws nothing.
    canvas.addEventListener("pointerdown", (event) => {
      if (this.#pointer !== NO_POINTER || event.button !== 0) return;
      this.#pointer = event.pointerId;
      canvas.setPointerCapture(event.pointerId);
      on.begun();
      this.#at = this.#place(event);
      this.#line(this.#at);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.pointerId !== this.#pointer) return;
      // Not in Safari before 18.2.
      const between = event.getCoalescedEvents?.() ?? [];
      for (const each of [...between, event]) this.#line(this.#place(each));
    });
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => {
        if (/** @type {PointerEvent} */ (event).pointerId !== this.#pointer) return;
        this.#pointer = NO_POINTER;
        if (name === "pointerup") on.lifted();
      });
    }
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => (pen.hidden = true));
  }

  clear() {
    this.#context.fillStyle = "#000";
    this.#context.fillRect(0, 0, this.#canvas.width, this.#canvas.height);
    this.#empty = true;
    this.#picture = null;
  }

  /** What is drawn or shown, or null. @returns {Grey | null} */
  image() {
    if (this.#picture) return this.#picture;
    const { width, height } = this.#canvas;
    return this.#empty ? null : greyOf(this.#context.getImageData(0, 0, width, height));
  }

  /** Show a picture file in the place of a drawing. @param {Blob} file */
  async show(file) {
    const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
    const { width, height } = bitmap;
    const context = new OffscreenCanvas(width, Math.min(height, STRIP)).getContext("2d");
    if (!context) throw new Error("no canvas");
    const picture = gathered(width, height, STRIP, (top, rows) => {
      // What is transparent is laid on white.
      context.fillStyle = WHITE;
      context.fillRect(0, 0, width, rows);
      context.drawImage(bitmap, 0, -top);
      return greyOf(context.getImageData(0, 0, width, rows));
    });
    this.clear();
    this.#picture = picture;
    const side = this.#canvas.width;
    const fit = side / Math.max(width, height);
    const [w, h] = [width * fit, height * fit];
    this.#context.fillStyle = WHITE;
    this.#context.fillRect((side - w) / 2, (side - h) / 2, w, h);
    this.#context.drawImage(bitmap, (side - w) / 2, (side - h) / 2, w, h);
  }

  /** @param {PointerEvent} event */
  #place(event) {
    const box = this.#canvas.getBoundingClientRect();
    const scale = this.#canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  }

  /** @param {number[]} to */
  #line(to) {
    if (this.#picture) this.clear();
    const context = this.#context;
    context.strokeStyle = WHITE;
    context.lineWidth = PEN;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(this.#at[0], this.#at[1]);
    context.lineTo(to[0], to[1]);
    context.stroke();
    this.#at = to;
    this.#empty = false;
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const arrow = ARROWS[event.key];
    const side = this.#canvas.width;
    if (arrow) {
      const to = this.#at.map((each, n) => Math.min(Math.max(each + arrow[n], 0), side));
      if (this.#down) this.#line(to);
      this.#at = to;
    } else if (event.key === " ") {
      this.#down = !this.#down;
      if (this.#down) {
        this.#on.begun();
        this.#line(this.#at);
      } else this.#on.lifted();
    } else if (event.key === "Enter") this.#on.done();
    else if (event.key === "Escape") this.clear();
    else return;
    event.preventDefault();
    const [across, down] = this.#at.map((each) => Math.round((100 * each) / side));
    this.#words.textContent = `Pen ${this.#down ? "down" : "up"}, ${across}% across, ${down}% down`;
    this.#pen.hidden = false;
    this.#pen.classList.toggle("down", this.#down);
    this.#pen.style.left = `${(100 * this.#at[0]) / side}%`;
    this.#pen.style.top = `${(100 * this.#at[1]) / side}%`;
  }
}
