/** The page: draw, choose or type; ask; see what each side has. */

import { hog, pixels } from "./features.js";
import { NumbersForm } from "./form.js";
import { digit } from "./picture.js";
import { Pad } from "./pad.js";
import { OwnerSession, ServiceError } from "./session.js";

/** @typedef {import("./owner/plan.js").Contract} Contract */
/** @typedef {import("./owner/plan.js").Plan} Plan */
/** @typedef {import("./session.js").Step} Step */
/**
 * @typedef {object} Model
 * @property {string} service its address; "" where it serves the page
 * @property {"hog" | "pixels" | "numbers"} inputs how the model's input is made
 * @property {string[]} features names of numbers @property {string[]} units theirs
 * @property {Contract} contract
 */

/** @template {HTMLElement} T @param {string} id @returns {T} */
const the = (id) => /** @type {T} */ (document.getElementById(id));
/** @param {number} bytes */
const size = (bytes) =>
  bytes < 1e6 ? `${(bytes / 1000).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(2)} MB`;
/** @param {number} milliseconds */
const time = (milliseconds) => `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms`;
const NOISE = 96;
const HEAD = 70;

/** @type {Record<string, [string, string]>} */
const STEPS = {
  keys: ["Keys made", "here"],
  "send keys": ["Public keys sent", "to the service"],
  features: ["Prepared", "here"],
  encrypt: ["Encrypted", "here"],
  ask: ["Asked and answered", "at the service"],
  decrypt: ["Opened", "here"],
};

/** @param {Model} model @param {() => Worker} worker */
export function start(model, worker) {
  new Page(model, worker).begin(new URLSearchParams(location.hash.slice(1)).get("token") ?? "");
  // The invitation is in no history and no screenshot.
  if (location.hash !== "") history.replaceState(null, "", location.pathname);
}

class Page {
  /** @type {OwnerSession | undefined} */
  #session;
  #model;
  #worker;
  /** @type {Pad | undefined} */
  #pad;
  /** @type {NumbersForm | undefined} */
  #form;
  #asking = false;
  #again = false;

  /** @param {Model} model @param {() => Worker} worker */
  constructor(model, worker) {
    this.#model = model;
    this.#worker = worker;
    const ask = () => this.#ask();
    the("access").addEventListener("submit", (event) => {
      event.preventDefault();
      this.begin(/** @type {HTMLInputElement} */ (the("token")).value.trim());
    });
    addEventListener("pagehide", () => this.#session?.end());
    addEventListener("pageshow", ({ persisted }) => persisted && location.reload());
    addEventListener("offline", () => say("You are offline. Your question can wait here.", true));
    addEventListener("online", () => say("You are online again."));
    this.#offerKeeping();
    if (model.inputs === "numbers") {
      this.#form = new NumbersForm(the("numbers"), model, ask);
      the("ask").setAttribute("form", "numbers");
    } else {
      the("ask").addEventListener("click", ask);
      the("image").hidden = the("keys").hidden = false;
      this.#pad = new Pad(the("drawing"), the("pen"), the("place"), ask);
      the("clear").addEventListener("click", () => {
        this.#pad?.clear();
        answered([]);
      });
      this.#takePictures();
    }
  }

  /** Browsers compile what has run a few times: the first question need not wait for that. */
  #rehearse() {
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

  /** @param {string} token */
  async begin(token) {
    if (!isSecureContext) {
      say("This page needs https: browsers have no cryptography for other pages.", true);
      return;
    }
    const { service, contract } = this.#model;
    const onStep = (/** @type {Step} */ step) => showStep(step);
    this.#session?.end();
    this.#session = new OwnerSession({ service, token, contract, worker: this.#worker(), onStep });
    the("access").hidden = true;
    try {
      say("Asking the service for its plan …");
      showPlan(await this.#session.plan());
      const kept = await this.#session.kept().catch(() => null);
      the("keeping").hidden = kept !== "none";
      the("unlock").hidden = kept !== "here";
      if (kept === "here") {
        say("Your keys are on this device. Open them, or make new ones.");
        the("passphrase").focus();
        return;
      }
      const other = kept === "elsewhere" ? "Your kept keys are in use in another tab. " : "";
      await this.#prepare(other);
    } catch (error) {
      this.#failed(error);
    }
  }

  /** @param {string} [first] to be said before */
  async #prepare(first = "") {
    say(`${first}Making keys …`);
    if (this.#pad) this.#rehearse();
    await this.#session?.prepare();
    /** @type {HTMLButtonElement} */ (the("ask")).disabled = false;
    say(`${first}Ready. Nothing that you enter leaves this page unencrypted.`);
  }

  /** @param {unknown} error */
  #failed(error) {
    /** @type {HTMLButtonElement} */ (the("ask")).disabled = true;
    const stranger = error instanceof ServiceError && error.status === 401;
    the("access").hidden = !stranger;
    if (stranger) the("token").focus();
    say(sentence(error), true);
  }

  #offerKeeping() {
    const passphrase = (/** @type {string} */ id) => {
      const input = /** @type {HTMLInputElement} */ (the(id));
      const { value } = input;
      input.value = "";
      return value;
    };
    the("unlock").addEventListener("submit", async (event) => {
      event.preventDefault();
      try {
        say("Opening your keys …");
        await this.#session?.unlock(passphrase("passphrase"));
        await this.#opened();
      } catch (error) {
        // Keys of another plan are gone; those of another passphrase are still there.
        if ((await this.#session?.kept()) === "none") await this.#opened(`${sentence(error)} `);
        else say(sentence(error), true);
      }
    });
    the("forget").addEventListener("click", async () => {
      await this.#session?.forget();
      await this.#opened();
    });
    the("keep").addEventListener("submit", async (event) => {
      event.preventDefault();
      try {
        say("Locking your keys …");
        await this.#session?.keep(passphrase("new-passphrase"));
        the("keeping").hidden = true;
        say("Ready. Your keys are kept on this device, locked by your passphrase.");
      } catch (error) {
        say(`Your keys are not kept: ${/** @type {Error} */ (error).message}.`, true);
      }
    });
  }

  /** Go on, with keys that were opened or with new ones. @param {string} [first] */
  async #opened(first) {
    the("unlock").hidden = true;
    the("keeping").hidden = (await this.#session?.kept()) !== "none";
    try {
      await this.#prepare(first);
      the("ask").focus();
    } catch (error) {
      this.#failed(error);
    }
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
      await this.#pad?.show(file);
      await this.#ask();
    } catch {
      say(`${file.name} cannot be read as a picture.`, true);
    }
  }

  /** @returns {ArrayLike<number> | null} the model's input, or null where there is none */
  #input() {
    if (this.#form) return this.#form.numbers();
    const image = this.#pad?.image();
    if (!image) {
      say("Draw something first, or choose a picture.", true);
      return null;
    }
    const began = performance.now();
    const input = this.#features(digit(image));
    showStep({ name: "features", milliseconds: performance.now() - began, bytes: 0 });
    return input;
  }

  async #ask() {
    if (the("ask").hasAttribute("disabled") || !this.#session) return;
    this.#again = this.#asking;
    if (this.#asking) return; // once more with what is drawn then, as soon as this is answered
    this.#asking = true;
    try {
      const began = performance.now();
      const input = this.#input();
      if (!input) return;
      say("Encrypting, and asking …");
      const { answer, query } = await this.#session.ask(input);
      const { class_names: called } = await this.#session.plan();
      const milliseconds = performance.now() - began;
      const names = answer.labelSets
        ? answer.labelSets[0].map((label) => called[label] ?? String(label))
        : [answer.names?.[0] ?? String(answer.labels[0])];
      answered(names, milliseconds);
      received(query);
      say("Answered. Only this page can read the answer.");
    } catch (error) {
      answered([]);
      say(sentence(error), true);
    } finally {
      this.#asking = false;
      if (this.#again) this.#ask();
    }
  }
}

/** @param {string} text @param {boolean} [bad] */
function say(text, bad = false) {
  const status = the("status");
  status.textContent = text;
  status.classList.toggle("bad", bad);
}

/** @param {unknown} error */
function sentence(error) {
  const { name, message } = /** @type {Error} */ (error);
  const begins = /** @type {Record<string, string>} */ ({
    PlanError: "The service's plan was refused, and nothing was sent",
    MessageError: "The service's answer was refused",
    InputError: "Nothing was sent",
    ReleaseError: "Nothing was sent",
    SecretsError: "Your kept keys are not used",
  })[name];
  return begins ? `${begins}: ${message}.` : message;
}

/** @param {string[]} names @param {number} [milliseconds] */
function answered(names, milliseconds = 0) {
  const answer = the("answer");
  answer.replaceChildren();
  const small = document.createElement("p");
  small.className = "small";
  small.textContent = "The answer appears here.";
  if (milliseconds > 0) {
    const strong = document.createElement("strong");
    strong.textContent = names.join(", ") || "none";
    small.textContent = `The answer, ${time(milliseconds)} after the question.`;
    answer.append(strong);
  }
  answer.append(small);
}

/** @param {Uint8Array} query */
function received(query) {
  const canvas = /** @type {HTMLCanvasElement} */ (the("noise"));
  const image = new ImageData(NOISE, NOISE);
  for (let n = 0; n < NOISE * NOISE; n++) {
    // Of each number of eight bytes the lower four: primes leave the highest empty.
    const at = HEAD + 8 * (n >> 2) + (n & 3);
    image.data.fill(query[at % query.length], 4 * n, 4 * n + 3);
    image.data[4 * n + 3] = 255;
  }
  canvas.getContext("2d")?.putImageData(image, 0, 0);
  canvas.setAttribute("aria-label", "Noise: a part of your encrypted question, a dot a byte");
  the("received").textContent =
    `${size(query.length)} of numbers that look like chance. This is a part of them, a dot a byte.`;
}

/** @param {Step} step */
function showStep({ name, milliseconds, bytes, evaluation }) {
  const id = `step-${name.replace(" ", "-")}`;
  const row = document.getElementById(id) ?? the("table").appendChild(document.createElement("tr"));
  row.id = id;
  const [title, place] = STEPS[name];
  const inside = evaluation ? `, of which ${time(evaluation)} computing` : "";
  const sent = bytes === 0 ? "nothing" : name === "ask" ? `${size(bytes)} back` : size(bytes);
  const cells = [title, place, time(milliseconds) + inside, sent];
  row.replaceChildren(
    ...cells.map((text, n) => {
      const cell = document.createElement(n === 0 ? "th" : "td");
      if (n === 0) cell.setAttribute("scope", "row");
      cell.textContent = text;
      return cell;
    }),
  );
}

/** @param {Plan} plan */
function showPlan(plan) {
  const bits = plan.prime_bits.reduce((sum, each) => sum + each, 0);
  const classes = plan.class_names.length ? plan.class_names.join(", ") : `${plan.classes} classes`;
  const numbers = plan.input_shape.reduce((product, each) => product * each, 1);
  /** @type {[string, string][]} */
  const rows = [
    ["You give", `${numbers} numbers, encrypted before they are sent`],
    ["You get", plan.multi_label ? `those that hold of: ${classes}` : `one of: ${classes}`],
    ["Nobody gets", "the figures behind the answer; not even you, for they would betray your key"],
    ["How safe", `128 bits: ring-LWE of degree ${plan.degree}, modulus of ${bits} bits`],
    ["How exact", `rounding moves a figure by less than 2^${plan.error_bits}, by the service's word`],
    ["Sent once", `${size(plan.publicBytes)} of public keys`],
    ["Sent each time", `${size(plan.queryBytes)} there, ${size(plan.answerBytes)} back`],
    ["Version of the model", plan.model_version],
  ];
  the("plan").replaceChildren(
    ...rows.flatMap(([term, text]) =>
      [["dt", term], ["dd", text]].map(([tag, content]) =>
        Object.assign(document.createElement(tag), { textContent: content }),
      ),
    ),
  );
}
