/** The data owner of one plan: makes keys, encrypts inputs, decrypts answers. */

import { Packer, readLogits } from "./codec.js";
import { InputError, MessageError, SecretsError } from "./errors.js";
import { SecretKey } from "./keys.js";
import { HEADER_BYTES, openAnswer, sealMessage, sessionKey, TAGS } from "./messages.js";
import { centredBinomial, randomBytes, ternary } from "./randomness.js";
import { checkPolicy, release, usualPolicy } from "./release.js";
import { writeResidues } from "./residues.js";
import { Ring } from "./ring.js";
import { expand, SEED_BYTES } from "./seeds.js";

/** @typedef {import("./plan.js").Plan} Plan */
/** @typedef {import("./release.js").Policy} Policy */
/** @typedef {import("./release.js").Answer} Answer */
/**
 * @typedef {object} Secrets whoever has them reads all questions and answers under these keys
 * @property {Uint8Array<ArrayBuffer>} session @property {Int8Array<ArrayBuffer>} coefficients
 */
/** @typedef {{nextId: number, released: number}} Counts of questions, and of released answers */

const SESSION_KEY_BYTES = 32;
const OPEN_QUERIES = 65536;

/**
 * Holds the secret key of one plan. Only answers as the policy lets them out, questions and public
 * material leave it.
 *
 * *Guarantee.* Whoever lacks the key learns nothing of an input from what leaves, under ring-LWE at
 * 128 bits. *Assumptions.* `crypto.getRandomValues` is the system's generator; AES-256 behaves like
 * an ideal cipher. *Not covered.* Whoever delivers this code; other code in the page; memory that is
 * freed and not overwritten; timing on processors whose additions take longer for some numbers.
 */
export class DataOwner {
  /** @type {Map<number, number>} */
  #open = new Map();
  #counts;
  #session;
  #mac;
  #secret;
  #packer;
  #policy;

  /**
   * @param {Plan} plan @param {Policy} policy @param {SecretKey} secret @param {Packer} packer
   * @param {Uint8Array<ArrayBuffer>} session @param {CryptoKey} mac @param {Counts} counts
   */
  constructor(plan, policy, secret, packer, session, mac, counts = { nextId: 0, released: 0 }) {
    this.plan = plan;
    this.#counts = { ...counts };
    this.#policy = policy;
    this.#secret = secret;
    this.#packer = packer;
    this.#session = session;
    this.#mac = mac;
  }

  /**
   * An owner with a fresh key.
   * @param {Plan} plan from `acceptPlan` @param {Policy} [policy]
   */
  static create(plan, policy) {
    return DataOwner.#with(plan, policy, {
      session: randomBytes(SESSION_KEY_BYTES),
      coefficients: ternary(plan.degree),
    });
  }

  /**
   * The owner whose `secrets` and `counts` these are. Questions that were open are not any more.
   * @param {Plan} plan the same @param {Policy | undefined} policy
   * @param {Secrets} secrets @param {Counts} counts
   */
  static restore(plan, policy, { session, coefficients }, counts) {
    const whole = coefficients.every((each) => each >= -1 && each <= 1);
    if (session.length !== SESSION_KEY_BYTES || coefficients.length !== plan.degree || !whole) {
      throw new SecretsError("these keys belong to another plan; make new ones");
    }
    return DataOwner.#with(plan, policy, { session, coefficients }, counts);
  }

  /**
   * @param {Plan} plan @param {Policy | undefined} policy
   * @param {{session: Uint8Array<ArrayBuffer>, coefficients: ArrayLike<number>}} secrets
   * @param {Counts} [counts]
   */
  static async #with(plan, policy = usualPolicy(plan), { session, coefficients }, counts) {
    checkPolicy(policy, plan);
    const ring = new Ring(plan.degree, plan.prime_bits);
    const packer = await Packer.of(plan, ring);
    const secret = new SecretKey(ring, Float64Array.from(coefficients));
    return new DataOwner(plan, policy, secret, packer, session, await sessionKey(session), counts);
  }

  /** For a place that is encrypted. @returns {Secrets} */
  get secrets() {
    return { session: this.#session, coefficients: Int8Array.from(this.#secret.coefficients) };
  }

  /** To be kept with `secrets` before a question or an answer leaves. @returns {Counts} */
  get counts() {
    return { ...this.#counts };
  }

  /**
   * A public key, evaluation keys and the session key, for the evaluator, over TLS.
   * @param {Uint8Array<ArrayBuffer>} [binding] from the service
   */
  async publicMaterial(binding) {
    const { plan } = this;
    const secret = this.#secret;
    const { ring } = secret;
    const message = new Uint8Array(plan.publicBytes);
    message.set(this.#session, HEADER_BYTES);
    const write = writer(message, HEADER_BYTES + SESSION_KEY_BYTES);
    const all = ring.primes.map((_, place) => place);
    const fresh = await this.#uniform(all);
    const error = centredBinomial(plan.degree);
    const begun = all.map((place) => ring.transformed(error, place));
    write(secret.encrypted(begun, fresh.rows, all), fresh.seed);

    /** @param {number} level @param {(place: number) => Float64Array} other */
    const writeKey = async (level, other) => {
      const places = ring.extended(level);
      for (let index = 0; index < level; index++) {
        const { seed, rows } = await this.#uniform(places);
        const noise = centredBinomial(plan.degree);
        write(secret.switching(other(index), index, noise, rows, places), seed);
      }
    };
    if (plan.relin_level) await writeKey(plan.relin_level, (place) => secret.squared(place));
    for (const [element, level] of plan.rotation_levels) {
      await writeKey(level, (place) => secret.rotated(element, place));
    }
    return sealMessage(message, TAGS.material, plan, 0, this.#mac, binding);
  }

  /**
   * A query: one input, or up to `batch_size` of them.
   * @param {ArrayLike<number>[]} inputs flat
   */
  async encrypt(inputs) {
    const { plan } = this;
    if (inputs.length < 1 || inputs.length > plan.batch_size) {
      throw new InputError(`${inputs.length} inputs; give 1 to ${plan.batch_size}`);
    }
    const secret = this.#secret;
    const { ring } = secret;
    const polynomials = [...this.#packer.polynomials(inputs)];
    const message = new Uint8Array(plan.queryBytes);
    const write = writer(message, HEADER_BYTES);
    const places = [...Array(plan.levels).keys()];
    for (const polynomial of polynomials) {
      const { seed, rows } = await this.#uniform(places);
      const error = centredBinomial(plan.degree);
      const begun = places.map((place) =>
        ring.encoded(polynomial, plan.input_scale_bits, error, place),
      );
      write(secret.encrypted(begun, rows, places), seed);
    }
    const id = this.#counts.nextId++;
    this.#open.set(id, inputs.length);
    if (this.#open.size > OPEN_QUERIES) {
      this.#open.delete(/** @type {number} */ (this.#open.keys().next().value));
    }
    return sealMessage(message, TAGS.query, plan, id, this.#mac);
  }

  /**
   * Decrypt an answer and release it as the policy allows; each query is answered once.
   * @param {Uint8Array<ArrayBuffer>} message
   * @returns {Promise<Answer>}
   */
  async decrypt(message) {
    const { queryId, body } = await openAnswer(message, this.plan, this.#mac);
    const images = this.#open.get(queryId);
    if (images === undefined) {
      throw new MessageError("the answer was given before: its question is not open");
    }
    this.#open.delete(queryId);
    const logits = readLogits(this.plan, this.#secret, body).slice(0, images);
    return release(this.#policy, logits, this.plan, this.#counts.released++);
  }

  /** @param {number[]} places */
  async #uniform(places) {
    const { ring } = this.#secret;
    const seed = randomBytes(SEED_BYTES);
    const primes = places.map((place) => ring.primes[place]);
    return { seed, rows: await expand(seed, primes, ring.degree) };
  }
}

/**
 * Writes polynomials and their seed one behind the other.
 * @param {Uint8Array<ArrayBuffer>} message @param {number} start
 */
function writer(message, start) {
  let offset = start;
  return (/** @type {Float64Array[]} */ rows, /** @type {Uint8Array<ArrayBuffer>} */ seed) => {
    for (const row of rows) {
      writeResidues(row, message, offset);
      offset += 8 * row.length;
    }
    message.set(seed, offset);
    offset += seed.length;
  };
}
