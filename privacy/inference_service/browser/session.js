/**
 * Asks a service about inputs: keys where needed, encryption, the question, decryption.
 *
 *     const session = new OwnerSession({ service, token, contract });
 *     const { answer } = await session.ask([0.1, 0.2, ...]);
 *
 * The secret key is in a worker, in memory only, unless `keep` was asked for; `end` has the service
 * forget the public ones, unless they are kept.
 */

import { fromHex } from "./owner/messages.js";
import { randomBytes } from "./owner/randomness.js";

/** @typedef {import("./owner/plan.js").Plan} Plan */
/** @typedef {import("./owner/release.js").Answer} Answer */
/** @typedef {{name: string, milliseconds: number, bytes: number, evaluation?: number}} Step */

const ATTEMPTS = 5;
const LARGEST_TEXT = 1 << 22;
const TIMEOUT_MILLISECONDS = 120_000;
const KEYS_LOST = ["keys-gone", "no-keys"];
const ENDED = "The worker that holds the key did not start, or has ended; load the page again.";
const NO_TOKEN = "That is no invitation: it has characters that none has. Give it as it was given to you.";
const UNREACHABLE =
  "The service cannot be reached. See that you are connected to the network, then try again; " +
  "nothing is lost.";
const ELSEWHERE =
  " If you are, it may not let this page ask: its operator names pages with serve --origin.";
const SLOW = "The service took too long. The network may be slow; try again.";

/** A request that was refused or failed. */
export class ServiceError extends Error {
  name = "ServiceError";

  /** @param {string} code @param {number} status @param {string} message @param {number} [wait] */
  constructor(code, status, message, wait = 0) {
    super(message);
    this.code = code;
    this.status = status;
    this.wait = wait;
  }
}

export class OwnerSession {
  #service;
  #token;
  #contract;
  #release;
  #worker;
  #onStep;
  #onWait;
  #name = "";
  #keeping = false;
  #ended = false;
  /** @type {Promise<Plan> | undefined} */
  #opened;
  /** @type {Promise<any>} */
  #last = Promise.resolve();
  #calls = 0;
  /** @type {Map<number, {resolve: (value: any) => void, reject: (error: Error) => void}>} */
  #waiting = new Map();

  /**
   * @param {object} options
   * @param {string} [options.service] its address; "" where it serves the page
   * @param {string} [options.token]
   * @param {import("./owner/plan.js").Contract} options.contract what its plan must agree with
   * @param {import("./owner/release.js").Policy} [options.release]
   * @param {Worker} [options.worker] that runs `worker.js`, where that is not beside this module
   * @param {(step: Step) => void} [options.onStep]
   * @param {(seconds: number) => void} [options.onWait] where the service is busy
   */
  constructor({
    service = "", token = "", contract, release, worker, onStep = () => {}, onWait = () => {},
  }) {
    this.#service = service.replace(/\/$/, "");
    this.#token = token;
    this.#contract = contract;
    this.#release = release;
    this.#onStep = onStep;
    this.#onWait = onWait;
    this.#worker = worker ?? new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    this.#worker.addEventListener("message", ({ data }) => this.#answered(data));
    this.#worker.addEventListener("error", () => this.#over());
  }

  /** The plan, checked. @returns {Promise<Plan>} */
  plan() {
    this.#opened ??= this.#openPlan().catch((error) => {
      this.#opened = undefined;
      throw error;
    });
    return this.#opened;
  }

  /** Make keys and send the public ones, unless that is done. */
  prepare() {
    return this.#inTurn(() => this.#prepared());
  }

  /**
   * Ask about one input.
   * @param {ArrayLike<number>} input flat, in the contract's range
   * @returns {Promise<{answer: Answer, query: Uint8Array<ArrayBuffer>}>} the query as the service received it
   */
  ask(input) {
    return this.#inTurn(() => this.#asked(input));
  }

  /**
   * Whether keys of this service are stored in this browser: for this tab, or in use by another.
   * @returns {Promise<"none" | "here" | "elsewhere">}
   */
  kept() {
    return this.#inTurn(async () => (await this.#call("kept", { service: this.#service })).value);
  }

  /** Use the stored keys, and store what becomes of them. @param {string} passphrase */
  unlock(passphrase) {
    return this.#inTurn(async () => {
      await this.plan();
      this.#name = (await this.#call("unlock", { service: this.#service, passphrase })).value;
      this.#keeping = true;
    });
  }

  /**
   * Store the keys, and those after them, in IndexedDB under a passphrase; with their counts, so
   * that a reload resets no limit of release.
   * @param {string} passphrase
   */
  keep(passphrase) {
    return this.#inTurn(async () => {
      await this.#prepared();
      await this.#call("keep", { service: this.#service, passphrase });
      this.#keeping = true;
    });
  }

  /** Delete the stored keys; those in use last until `end`. */
  forget() {
    return this.#inTurn(async () => {
      await this.#call("forget", { service: this.#service });
      this.#keeping = false;
    });
  }

  /** Forget the secret key, and have the service forget the public ones, unless they are kept. */
  end() {
    this.#worker.terminate();
    this.#over();
    if (this.#name === "" || this.#keeping) return;
    const path = `/v1/keys/${this.#name}`;
    this.#name = "";
    fetch(this.#service + path, { ...this.#options("DELETE"), keepalive: true }).catch(() => {});
  }

  /** @template T @param {() => Promise<T>} work @returns {Promise<T>} */
  #inTurn(work) {
    const result = this.#last.then(work, work);
    this.#last = result.catch(() => {});
    return result;
  }

  async #openPlan() {
    const { body } = await this.#request("GET", "/v1/plan", LARGEST_TEXT);
    const text = new TextDecoder().decode(body);
    const argument = { text, contract: this.#contract, release: this.#release };
    return (await this.#call("open", argument)).value;
  }

  async #prepared() {
    const plan = await this.plan();
    if (this.#name !== "") return plan;
    const { body } = await this.#patiently(() => this.#request("GET", "/v1/keys/binding", 4096));
    const made = await this.#call("material", { binding: fromHex(digits(body, "binding")) });
    this.#onStep({ name: "keys", milliseconds: made.milliseconds, bytes: 0 });
    const began = performance.now();
    const sent = await this.#patiently(() => this.#request("PUT", "/v1/keys", 4096, made.value));
    this.#name = digits(sent.body, "key_id");
    await this.#call("named", { name: this.#name });
    const milliseconds = performance.now() - began;
    this.#onStep({ name: "send keys", milliseconds, bytes: made.value.length });
    return plan;
  }

  /** @param {ArrayLike<number>} input */
  async #asked(input) {
    for (let attempt = 1; ; attempt++) {
      const plan = await this.#prepared();
      const encrypted = await this.#call("encrypt", { inputs: [Float64Array.from(input)] });
      const query = encrypted.value;
      this.#onStep({ name: "encrypt", milliseconds: encrypted.milliseconds, bytes: query.length });
      try {
        const began = performance.now();
        const path = `/v1/keys/${this.#name}/answers`;
        const asked = await this.#patiently(() =>
          this.#request("POST", path, Math.max(plan.answerBytes, 4096), query),
        );
        const milliseconds = performance.now() - began;
        const evaluation = Number(/dur=([\d.]+)/.exec(asked.timing)?.[1] ?? NaN);
        this.#onStep({ name: "ask", milliseconds, bytes: asked.body.length, evaluation });
        const read = await this.#call("decrypt", { answer: asked.body });
        this.#onStep({ name: "decrypt", milliseconds: read.milliseconds, bytes: 0 });
        return { answer: read.value, query };
      } catch (error) {
        const lost = error instanceof ServiceError && KEYS_LOST.includes(error.code);
        if (!lost || attempt === ATTEMPTS) throw error;
        this.#name = "";
      }
    }
  }

  /** @template T @param {() => Promise<T>} ask @returns {Promise<T>} */
  async #patiently(ask) {
    for (let attempt = 1; ; attempt++) {
      try {
        return await ask();
      } catch (error) {
        const busy = error instanceof ServiceError && [429, 503].includes(error.status);
        if (!busy || attempt === ATTEMPTS) throw error;
        // At random: others were refused at the same time, and would come back together.
        const random = 1 + (randomBytes(1)[0] / 256) * attempt;
        const seconds = Math.min(random * (error.wait || 1), 60);
        this.#onWait(seconds);
        await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
      }
    }
  }

  /** @param {string} method @returns {RequestInit} */
  #options(method) {
    return {
      method,
      headers: this.#token === "" ? {} : { Authorization: `Bearer ${this.#token}` },
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      referrerPolicy: "no-referrer",
    };
  }

  /**
   * @param {string} method @param {string} path @param {number} most bytes of the answer
   * @param {Uint8Array<ArrayBuffer>} [body]
   */
  async #request(method, path, most, body) {
    // Other characters stand in no header.
    if (!/^[!-~]*$/.test(this.#token)) throw new ServiceError("no-token", 401, NO_TOKEN);
    try {
      const options = this.#options(method);
      const signal = AbortSignal.timeout(TIMEOUT_MILLISECONDS);
      // Chromium sends a blob in a quarter of the time that it takes for an array.
      const content = body && new Blob([body]);
      const response = await fetch(this.#service + path, { ...options, body: content, signal });
      const received = await limited(response, most);
      if (!response.ok) throw refusal(response, received);
      return { body: received, timing: response.headers.get("Server-Timing") ?? "" };
    } catch (error) {
      if (error instanceof ServiceError) throw error;
      const slow = /** @type {Error} */ (error).name === "TimeoutError";
      if (slow) throw new ServiceError("slow", 0, SLOW);
      const elsewhere = new URL(this.#service, location.href).origin !== location.origin;
      throw new ServiceError("unreachable", 0, UNREACHABLE + (elsewhere ? ELSEWHERE : ""));
    }
  }

  /** @param {string} call @param {object} argument @returns {Promise<{value: any, milliseconds: number}>} */
  #call(call, argument) {
    if (this.#ended) return Promise.reject(new ServiceError("no-worker", 0, ENDED));
    const id = this.#calls++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, call, argument });
    });
  }

  /** Nothing is answered from now on. */
  #over() {
    this.#ended = true;
    for (const { reject } of this.#waiting.values()) reject(new ServiceError("no-worker", 0, ENDED));
    this.#waiting.clear();
  }

  /** @param {any} data */
  #answered({ id, value, milliseconds, refusal: refused }) {
    const { resolve, reject } = this.#waiting.get(id) ?? {};
    this.#waiting.delete(id);
    if (refused) reject?.(Object.assign(new Error(refused.message), { name: refused.name }));
    else resolve?.({ value, milliseconds });
  }
}

/** @param {Response} response @param {number} most */
async function limited(response, most) {
  const parts = [];
  let size = 0;
  const reader = response.body?.getReader();
  for (let part = await reader?.read(); part && !part.done; part = await reader?.read()) {
    size += part.value.length;
    if (size > most) {
      await reader?.cancel();
      throw new ServiceError("too-large", 0, "The service answers with more than it may.");
    }
    parts.push(part.value);
  }
  const body = new Uint8Array(size);
  parts.reduce((offset, part) => (body.set(part, offset), offset + part.length), 0);
  return body;
}

/** A field of a reply. @param {Uint8Array<ArrayBuffer>} body @param {string} field */
function digits(body, field) {
  let value;
  try {
    value = JSON.parse(new TextDecoder().decode(body))[field];
  } catch {}
  if (/^([0-9a-f]{2})+$/.test(value)) return value;
  throw new ServiceError("no-answer", 0, "The service's reply is none that this release knows.");
}

/** @param {Response} response @param {Uint8Array<ArrayBuffer>} body */
function refusal(response, body) {
  let fields;
  try {
    fields = JSON.parse(new TextDecoder().decode(body));
  } catch {
    fields = null;
  }
  const { error = "refused", message = "the request was refused", remedy = "" } = fields ?? {};
  const wait = Number(response.headers.get("Retry-After") ?? 0);
  const sentence = `The service says: ${message}${remedy ? `; ${remedy}` : ""}.`;
  return new ServiceError(String(error), response.status, sentence.slice(0, 500), wait);
}
