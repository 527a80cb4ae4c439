/** The form of a model of numbers: for each a field with its name, its unit and its range. */

/** @typedef {import("./page.js").Model} Model */

export class NumbersForm {
  #form;
  /** @type {HTMLInputElement[]} */
  #inputs = [];

  /** @param {HTMLFormElement} form @param {Model} model @param {() => void} done */
  constructor(form, { contract, features, units }, done) {
    this.#form = form;
    form.hidden = false;
    const [lows, highs] = contract.inputRange;
    for (let n = 0; n < contract.inputShape[0]; n++) {
      this.#add(`number-${n}`, features[n] ?? `Number ${n + 1}`, units[n], at(lows, n), at(highs, n));
    }
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      done();
    });
  }

  /** @param {string} id @param {string} name @param {string | undefined} unit @param {number} low @param {number} high */
  #add(id, name, unit, low, high) {
    const label = Object.assign(document.createElement("label"), { htmlFor: id, textContent: name });
    const input = document.createElement("input");
    Object.assign(input, { id, type: "number", inputMode: "decimal", min: low, max: high });
    Object.assign(input, { step: "any", required: true, autocomplete: "off" });
    const hint = document.createElement("span");
    Object.assign(hint, { id: `${id}-range`, className: "small" });
    hint.textContent = `${unit ? `${unit}, ` : ""}from ${low} to ${high}`;
    input.setAttribute("aria-describedby", hint.id);
    const field = document.createElement("div");
    field.append(label, input, hint);
    this.#form.append(field);
    this.#inputs.push(input);
  }

  /** The numbers; null where one is missing or outside its range, which the browser then shows. */
  numbers() {
    return this.#form.reportValidity() ? this.#inputs.map((input) => input.valueAsNumber) : null;
  }
}

/** @param {any} end @param {number} n */
function at(end, n) {
  return Array.isArray(end) ? end[end.length === 1 ? 0 : n] : end;
}
