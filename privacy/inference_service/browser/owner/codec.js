/** A packing: inputs into polynomials, residues of answers into logits. */

import { InputError, MessageError } from "./errors.js";
import { decrypted } from "./keys.js";
import { bounds, EMPTY, taps, toUnit } from "./plan.js";
import { modularPower } from "./primes.js";
import { readResidues } from "./residues.js";

/** @typedef {import("./plan.js").Plan} Plan */
/** @typedef {import("./ring.js").Ring} Ring */
/** @typedef {import("./keys.js").SecretKey} SecretKey */

const HALF_BITS = 25;
const HALF = 2 ** HALF_BITS;

/** Inputs into the polynomials of a query. */
export class Packer {
  /** @param {Plan} plan @param {Ring} ring @param {Int32Array} places */
  constructor(plan, ring, places) {
    this.plan = plan;
    this.ring = ring;
    this.places = places;
    this.bounds = bounds(plan.input_range, plan.input_shape);
    this.unit = toUnit(plan.input_range, plan.input_shape);
  }

  /** @param {Plan} plan @param {Ring} ring */
  static async of(plan, ring) {
    return new Packer(plan, ring, plan.packing_kind === "batch" ? new Int32Array() : await taps(plan));
  }

  /**
   * Real polynomials, before they are scaled and rounded.
   * @param {ArrayLike<number>[]} inputs flat, each in the plan's range
   * @returns {Generator<Float64Array>}
   */
  *polynomials(inputs) {
    const { plan, ring, places } = this;
    const scaled = inputs.map((input) => this.#checked(input));
    for (let index = 0; index < plan.ciphertexts; index++) {
      if (plan.packing_kind === "batch") {
        const values = scaled.map((input) => input[index]);
        yield plan.relin_level ? this.#slots(values, []) : padded(values, ring.degree);
        continue;
      }
      const share = plan.packing_shape[plan.packing_shape.length - 1];
      const part = (/** @type {number} */ number) => {
        const start = (number * plan.ciphertexts + index) * share;
        const taken = places.subarray(start, start + share);
        return Array.from(taken, (tap) => (tap === EMPTY ? 0 : scaled[0][tap]));
      };
      if (plan.packing_kind === "coefficients") yield padded(part(0), ring.degree);
      else yield this.#slots(part(0), plan.packing_shape[0] === 2 ? part(1) : []);
    }
  }

  /** @param {number[]} real @param {number[]} imaginary */
  #slots(real, imaginary) {
    const half = this.ring.degree / 2;
    return this.ring.embedding.coefficients({
      real: padded(real, half),
      imaginary: padded(imaginary, half),
    });
  }

  /** @param {ArrayLike<number>} input */
  #checked(input) {
    const [low, high] = this.bounds;
    const [centre, radius] = this.unit;
    if (input.length !== low.length) {
      throw new InputError(`the input has ${input.length} numbers; give ${low.length}`);
    }
    return Float64Array.from(input, (value, n) => {
      if (!(value >= low[n] && value <= high[n])) {
        throw new InputError(
          `the input has ${value} at place ${n}; the plan was proved for ${low[n]} to ${high[n]}`,
        );
      }
      return (value - centre[n]) / radius[n];
    });
  }
}

/** @param {number[]} values @param {number} size */
function padded(values, size) {
  const result = new Float64Array(size);
  result.set(values);
  return result;
}

/**
 * The logits of an answer's body, (inputs, logits).
 * @param {Plan} plan @param {SecretKey} secret @param {Uint8Array<ArrayBuffer>} body
 * @returns {number[][]}
 */
export function readLogits(plan, secret, body) {
  const primes = secret.ring.primes.slice(0, plan.answer_level);
  const join = joiner(primes);
  const scale = 2 ** plan.answer_scale_bits;
  let offset = 0;
  const next = (/** @type {number} */ count, /** @type {number} */ prime) => {
    const values = readResidues(body, offset, count, prime);
    if (!values) throw new MessageError("the answer holds a residue that is not below its prime");
    offset += 8 * count;
    return values;
  };
  if (plan.packing_kind === "batch") {
    const columns = Array.from({ length: plan.logits }, () => {
      const [first, second] = [0, 1].map(() => primes.map((prime) => next(plan.degree, prime)));
      const rows = primes.map((_, n) => decrypted(secret, first[n], second[n], n));
      const values = Float64Array.from(rows[0], (_, n) => join(rows.map((row) => row[n])) / scale);
      return plan.relin_level ? secret.ring.embedding.realSlots(values) : values;
    });
    return Array.from({ length: plan.batch_size }, (_, n) => columns.map((column) => column[n]));
  }
  const logits = [];
  for (const positions of plan.answers) {
    const second = primes.map((prime) => next(plan.degree, prime));
    for (const position of positions) {
      const parts = second.map((row) => coefficientOfProduct(row, secret.coefficients, position));
      logits.push(join(parts.map((part, n) => part + BigInt(next(1, primes[n])[0]))) / scale);
    }
  }
  return [logits];
}

/**
 * Coefficient `position` of a polynomial times the key, modulo X^N + 1. Halves of 25 bits are added
 * up, so that sums are exact.
 * @param {Float64Array} row @param {Float64Array} key @param {number} position
 */
function coefficientOfProduct(row, key, position) {
  let high = 0;
  let low = 0;
  for (let n = 0; n < row.length; n++) {
    const turned = n > position;
    const sign = key[position - n + (turned ? row.length : 0)] * (turned ? -1 : 1);
    const upper = Math.floor(row[n] / HALF);
    high += upper * sign;
    low += (row[n] - upper * HALF) * sign;
  }
  return (BigInt(high) << BigInt(HALF_BITS)) + BigInt(low);
}

/**
 * A function from residues modulo each prime to the number nearest zero that has them.
 * @param {number[]} primes
 * @returns {(residues: (number | bigint)[]) => number}
 */
function joiner(primes) {
  const moduli = primes.map(BigInt);
  const modulus = moduli.reduce((product, prime) => product * prime, 1n);
  const bases = moduli.map((prime) => {
    const others = modulus / prime;
    return others * modularPower(others % prime, prime - 2n, prime);
  });
  return (residues) => {
    const sum = residues.reduce((/** @type {bigint} */ sum, each, n) => sum + BigInt(each) * bases[n], 0n);
    const value = ((sum % modulus) + modulus) % modulus;
    return Number(value > modulus / 2n ? value - modulus : value);
  };
}
