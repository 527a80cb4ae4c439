/** The page: draw, choose or type; ask; see what each side has. */

import { toHex } from "./owner/messages.js";
import { OwnerSession, ServiceError } from "./session.js";

/** @typedef {import("./owner/plan.js").Contract} Contract */
/** @typedef {import("./owner/plan.js").Plan} Plan */
/** @typedef {import("./session.js").Step} Step */
/**
 * @typedef {object} Model
 * @property {string} service its address; "" where it serves the page
 * @property {"hog" | "pixels" | "numbers"} inputs how the model's input is made
 * @property {string[]} features names of numbers @property {string[]} units theirs
 * @property {{ name: string, first: number, options: string[] }[]} choices numbers that are one choice
 * @property {boolean} mayBeEmpty whether fields may be left empty
 * @property {Contract} contract
 */

/**
 * @typedef {object} Inputs how an input is made
 * @property {() => ArrayLike<number> | null} numbers the input; null where there is none, which is said
 * @property {() => void} [rehearse]
 */
/** @typedef {new (model: Model, ask: () => Promise<void>) => Inputs} Input */

/** @template {HTMLElement} T @param {string} id @returns {T} */
export const the = (id) => /** @type {T} */ (document.getElementById(id));
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

/** @param {Model} model @param {() => Worker} worker @param {Input} Input */
export function start(model, worker, Input) {
  const page = new Page(model, worker, Input);
  const begin = () => {
    page.begin(tokenOf(location.hash));
    // The invitation stands in no address bar, and in no screenshot.
    if (location.hash !== "") history.replaceState(null, "", location.pathname + location.search);
  };
  addEventListener("hashchange", () => location.hash && begin());
  begin();
}

/** The token in the link of an invitation; without "#" it is the token. @param {string} given */
function tokenOf(given) {
  const [text, link] = given.trim().split("#");
  return link === undefined ? text : (new URLSearchParams(link).get("token") ?? "");
}

class Page {
  /** @type {OwnerSession | undefined} */
  #session;
  #model;
  #worker;
  #input;
  #token = "";
  #asking = false;
  #again = false;

  /** @param {Model} model @param {() => Worker} worker @param {Input} Input */
  constructor(model, worker, Input) {
    this.#model = model;
    this.#worker = worker;
    this.#input = new Input(model, () => this.#ask());
    the("access").addEventListener("submit", (event) => {
      event.preventDefault();
      const input = /** @type {HTMLInputElement} */ (the("token"));
      this.begin(tokenOf(input.value));
      input.value = "";
    });
    const again = () => this.begin(this.#token);
    the("again").addEventListener("click", again);
    addEventListener("pagehide", () => this.#session?.end());
    addEventListener("pageshow", ({ persisted }) => persisted && again());
    addEventListener("offline", () => say("You are offline. Your question can wait here.", true));
    addEventListener("online", () => (the("again").hidden ? say("You are online again.") : again()));
    this.#offerKeeping();
    the("copying").hidden = model.service !== "";
    the("copy").addEventListener("click", () => copy().catch((error) => copied(error.message)));
  }

  /** @param {string} token */
  async begin(token) {
    this.#token = token;
    if (!isSecureContext) {
      say("This page needs https: browsers have no cryptography for other pages.", true);
      return;
    }
    const { service, contract } = this.#model;
    const onWait = (/** @type {number} */ seconds) =>
      say(`The service is busy. Asking again in ${Math.ceil(seconds)} s …`);
    this.#session?.end();
    const session = new OwnerSession({
      service, token, contract, worker: this.#worker(), onStep: showStep, onWait,
    });
    this.#session = session;
    for (const id of ["access", "again", "unlock"]) the(id).hidden = true;
    try {
      say("Asking the service for its plan …");
      showPlan(await session.plan());
      const kept = await session.kept().catch(() => null);
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
      if (this.#session === session) this.#failed(error);
    }
  }

  /** @param {string} [first] to be said before */
  async #prepare(first = "") {
    say(`${first}Making keys …`);
    this.#input.rehearse?.();
    await this.#session?.prepare();
    /** @type {HTMLButtonElement} */ (the("ask")).disabled = false;
    say(`${first}Ready. Nothing that you enter leaves this page unencrypted.`);
  }

  /** No question can be asked. @param {unknown} error */
  #failed(error) {
    /** @type {HTMLButtonElement} */ (the("ask")).disabled = true;
    the("again").hidden = this.#refused(error);
  }

  /** Say what failed; whether another invitation is asked for. @param {unknown} error */
  #refused(error) {
    const stranger = error instanceof ServiceError && [401, 403].includes(error.status);
    the("access").hidden = !stranger;
    if (stranger) the("token").focus();
    say(sentence(error), true);
    return stranger;
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

  async #ask() {
    const session = this.#session;
    if (the("ask").hasAttribute("disabled") || !session) return;
    this.#again = this.#asking;
    if (this.#asking) return; // once more with what is drawn then, as soon as this is answered
    this.#asking = true;
    try {
      const began = performance.now();
      const input = this.#input.numbers();
      if (!input) return;
      say("Encrypting, and asking …");
      const { answer, query } = await session.ask(input);
      const { class_names: called } = await session.plan();
      const milliseconds = performance.now() - began;
      const names = answer.labelSets
        ? answer.labelSets[0].map((label) => called[label] ?? String(label))
        : [answer.names?.[0] ?? String(answer.labels[0])];
      answered(names, milliseconds);
      received(query);
      say("Answered. Only this page can read the answer.");
    } catch (error) {
      answered([]);
      if (session === this.#session) this.#refused(error);
    } finally {
      this.#asking = false;
      if (this.#again) this.#ask();
    }
  }
}

/** This page as one file, from the service. */
async function copy() {
  const address = new URL(".", location.href).href.replace(/\/$/, "");
  const response = await fetch(`copy.html?service=${encodeURIComponent(address)}`, { cache: "no-store" });
  if (!response.ok) {
    const { message, remedy } = await response.json();
    throw new Error(`There is none: ${message}; ${remedy}.`);
  }
  const bytes = await response.arrayBuffer();
  const href = URL.createObjectURL(new Blob([bytes]));
  Object.assign(document.createElement("a"), { href, download: "page.html" }).click();
  copied(`SHA-256 of page.html: ${toHex(await crypto.subtle.digest("SHA-256", bytes))}`);
}

/** @param {string} text */
const copied = (text) => (the("copied").textContent = text);

/** @param {string} text @param {boolean} [bad] */
export function say(text, bad = false) {
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
export function answered(names, milliseconds = 0) {
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

/** What is shown is no answer to what is there now. */
export function outdated() {
  if (the("answer").querySelector("strong")) answered([]);
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
export function showStep({ name, milliseconds, bytes, evaluation }) {
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
