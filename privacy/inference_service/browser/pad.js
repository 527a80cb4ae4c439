/** The drawing area: a pen by pointer or keyboard, or a picture that is put there. */

import { greyOf } from "./picture.js";

/** @typedef {import("./picture.js").Grey} Grey */

const PEN = 18;
const STEP = 10;
const LARGEST = 1024;
/** @type {Record<string, [number, number]>} */
const ARROWS = {
  ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP],
};

export class Pad {
  #canvas;
  #context;
  #pen;
  #words;
  #done;
  #empty = true;
  #down = false;
  #at = [128, 128];
  /** @type {Grey | null} */
  #picture = null;

  /**
   * @param {HTMLElement} canvas @param {HTMLElement} pen @param {HTMLElement} words where the pen is
   * @param {() => void} done at a stroke's end
   */
  constructor(canvas, pen, words, done) {
    this.#canvas = /** @type {HTMLCanvasElement} */ (canvas);
    const context = this.#canvas.getContext("2d", { willReadFrequently: true });
    this.#context = /** @type {CanvasRenderingContext2D} */ (context);
    this.#pen = pen;
    this.#words = words;
    this.#done = done;
    this.clear();
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.#at = this.#place(event);
      this.#down = true;
      this.#line(this.#at);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (this.#down) for (const each of [...event.getCoalescedEvents(), event]) this.#line(this.#place(each));
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => this.#lift());
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
    const scale = Math.min(1, LARGEST / Math.max(bitmap.width, bitmap.height));
    const width = Math.max(1, Math.round(bitmap.width * scale));
    const height = Math.max(1, Math.round(bitmap.height * scale));
    const context = new OffscreenCanvas(width, height).getContext("2d");
    if (!context) throw new Error("no canvas");
    // What is transparent is laid on white.
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, height);
    context.drawImage(bitmap, 0, 0, width, height);
    this.clear();
    this.#picture = greyOf(context.getImageData(0, 0, width, height));
    const side = this.#canvas.width;
    const fit = side / Math.max(width, height);
    const [w, h] = [width * fit, height * fit];
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
    context.strokeStyle = "#fff";
    context.lineWidth = PEN;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(this.#at[0], this.#at[1]);
    context.lineTo(to[0], to[1]);
    context.stroke();
    this.#at = to;
    this.#empty = false;
  }

  #lift() {
    if (this.#down) this.#done();
    this.#down = false;
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
      if (this.#down) this.#lift();
      else {
        this.#down = true;
        this.#line(this.#at);
      }
    } else if (event.key === "Enter") this.#done();
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
