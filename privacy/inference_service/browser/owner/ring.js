/** The ring of a plan: polynomials of whole numbers into residues, transformed, and back. */

import { Embedding } from "./embedding.js";
import { choosePrimes } from "./primes.js";
import { centred, WHOLE } from "./residues.js";
import { Transform } from "./transform.js";

const WHOLE_BITS = 51;

export class Ring {
  /** @param {number} degree @param {number[]} primeBits */
  constructor(degree, primeBits) {
    this.degree = degree;
    this.primes = choosePrimes(degree, primeBits);
    this.levels = Math.max(1, this.primes.length - 1);
    this.transforms = this.primes.map((prime) => new Transform(degree, prime));
    /** @type {Embedding | undefined} */
    this.made = undefined;
  }

  get embedding() {
    return (this.made ??= new Embedding(this.degree));
  }

  /**
   * The places of the primes up to a level and of the special prime.
   * @param {number} level
   */
  extended(level) {
    return [...Array(level).keys(), this.primes.length - 1];
  }

  /**
   * A polynomial with small whole coefficients modulo one prime, transformed.
   * @param {Float64Array} coefficients below 2^51 in size @param {number} place of the prime
   */
  transformed(coefficients, place) {
    const { value, inverse } = this.transforms[place].prime;
    const row = new Float64Array(this.degree);
    for (let n = 0; n < row.length; n++) row[n] = centred(coefficients[n], value, inverse);
    return this.transforms[place].forward(row);
  }

  /**
   * Real coefficients times a power of two, rounded, plus an error, modulo one prime, transformed.
   * @param {Float64Array} values @param {number} scaleBits
   * @param {Float64Array} error @param {number} place of the prime
   */
  encoded(values, scaleBits, error, place) {
    const scale = 2 ** scaleBits;
    const { value, inverse } = this.transforms[place].prime;
    const row = new Float64Array(this.degree);
    let largest = 0;
    for (let n = 0; n < values.length; n++) largest = Math.max(largest, Math.abs(values[n]));
    if (largest * scale < 2 ** (WHOLE_BITS - 1)) {
      for (let n = 0; n < row.length; n++) {
        row[n] = centred((values[n] * scale + WHOLE - WHOLE) + error[n], value, inverse);
      }
    } else {
      for (let n = 0; n < row.length; n++) {
        const whole = BigInt(Math.round(values[n] * scale)) + BigInt(error[n]);
        row[n] = Number(whole % BigInt(value));
      }
    }
    return this.transforms[place].forward(row);
  }
}
