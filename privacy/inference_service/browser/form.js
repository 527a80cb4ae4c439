/** The form of a model of numbers: for each a field with its name, its unit and its range; for those that belong together one choice. */

import { outdated } from "./page.js";

/** @typedef {import("./page.js").Model} Model */

export class Input {
  #form;
  /** @type {(() => number[])[]} */
  #fields = [];
  #mayBeEmpty;

  /** @param {Model} model @param {() => void} ask */
  constructor({ contract, features, units, choices, mayBeEmpty }, ask) {
    this.#mayBeEmpty = mayBeEmpty;
    this.#form = /** @type {HTMLFormElement} */ (document.getElementById("numbers"));
    this.#form.hidden = false;
    document.getElementById("ask")?.setAttribute("form", "numbers");
    const [lows, highs] = contract.inputRange;
    for (let n = 0; n < contract.inputShape[0]; ) {
      const choice = choices.find(({ first }) => first === n);
      if (choice) this.#addChoice(`number-${n}`, choice.name, choice.options);
      else this.#add(`number-${n}`, features[n] ?? `Number ${n + 1}`, units[n], at(lows, n), at(highs, n));
      n += choice ? choice.options.length : 1;
    }
    this.#form.addEventListener("input", outdated);
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      ask();
    });
  }

  /** @param {string} id @param {string} name @param {string | undefined} unit @param {number} low @param {number} high */
  #add(id, name, unit, low, high) {
    const input = document.createElement("input");
    // Not of type "number": browsers drop the comma of 1,5 there, and take 15. Phones' keyboards
    // for decimals have no minus.
    Object.assign(input, { id, inputMode: low < 0 ? "text" : "decimal", required: !this.#mayBeEmpty });
    Object.assign(input, { autocomplete: "off", spellcheck: false });
    const hint = document.createElement("span");
    Object.assign(hint, { id: `${id}-range`, className: "small" });
    hint.textContent = `${unit ? `${unit}, ` : ""}from ${short(low)} to ${short(high)}`;
    if (this.#mayBeEmpty) hint.textContent += "; empty where it is not known";
    input.setAttribute("aria-describedby", hint.id);
    const check = () => {
      const empty = this.#mayBeEmpty && input.value.trim() === "";
      input.setCustomValidity(empty ? "" : fault(input.value, low, high));
      input.removeAttribute("aria-invalid");
    };
    input.addEventListener("input", check);
    input.addEventListener("invalid", () => input.setAttribute("aria-invalid", "true"));
    check();
    this.#append(name, input, hint);
    this.#fields.push(() => [input.value.trim() === "" ? low / 2 + high / 2 : numberOf(input.value)]);
  }

  /** @param {string} id @param {string} name @param {string[]} options */
  #addChoice(id, name, options) {
    const select = Object.assign(document.createElement("select"), { id, required: !this.#mayBeEmpty });
    select.append(
      new Option(this.#mayBeEmpty ? "not known" : "choose", ""),
      ...options.map((option, n) => new Option(option, String(n))),
    );
    select.addEventListener("change", () => select.removeAttribute("aria-invalid"));
    select.addEventListener("invalid", () => select.setAttribute("aria-invalid", "true"));
    this.#append(name, select);
    this.#fields.push(() => options.map((_, n) => (select.value === String(n) ? 1 : 0)));
  }

  /** @param {string} name @param {HTMLInputElement | HTMLSelectElement} input @param {HTMLElement[]} hints */
  #append(name, input, ...hints) {
    const label = Object.assign(document.createElement("label"), { htmlFor: input.id, textContent: name });
    const field = document.createElement("div");
    field.append(label, input, ...hints);
    this.#form.append(field);
  }

  /** The numbers; null where one is missing or outside its range, which the browser then shows. */
  numbers() {
    if (!this.#form.reportValidity()) return null;
    return this.#fields.flatMap((read) => read());
  }
}

/** @param {any} end @param {number} n */
function at(end, n) {
  return Array.isArray(end) ? end[end.length === 1 ? 0 : n] : end;
}

/** An end of a range as a person writes it, without what single precision adds. @param {number} end */
function short(end) {
  return Number(end.toPrecision(7));
}

/** A number with a point or a comma, and nothing between its digits. @param {string} text */
function numberOf(text) {
  const plain = text.trim().replace(",", ".").replace("\u2212", "-");
  return /^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(plain) ? Number(plain) : NaN;
}

/** What is wrong with a field, or "". @param {string} text @param {number} low @param {number} high */
function fault(text, low, high) {
  const value = numberOf(text);
  if (text.trim() === "") return "Fill in a number.";
  if (Number.isNaN(value)) return "Write a number, such as 0.5 or 0,5.";
  const groups = text.match(/^\s*([-+\u2212]?[1-9]\d{0,2}),(\d{3})\s*$/);
  if (groups) {
    const [, before, behind] = groups;
    return `This can mean two numbers: write ${before}${behind} or ${before}.${behind}.`;
  }
  return value >= low && value <= high ? "" : `Write a number from ${short(low)} to ${short(high)}.`;
}
