/** A secret key, and the public and evaluation keys that it makes. */

import { addProducts, product } from "./residues.js";
import { reversedBits } from "./transform.js";

/** @typedef {import("./ring.js").Ring} Ring */

/** A secret key: coefficients -1, 0 and 1. */
export class SecretKey {
  /** @param {Ring} ring @param {Float64Array} coefficients */
  constructor(ring, coefficients) {
    this.ring = ring;
    this.coefficients = coefficients;
    this.residues = ring.primes.map((_, place) => ring.transformed(coefficients, place));
    const negated = coefficients.map((each) => -each);
    this.negated = ring.primes.map((_, place) => ring.transformed(negated, place));
  }

  /**
   * First polynomials (rows) of an encryption: what `begun` holds, an error and perhaps a message,
   * less the uniform polynomial times the key.
   * @param {Float64Array[]} begun changed @param {Float64Array[]} uniform @param {number[]} places
   */
  encrypted(begun, uniform, places) {
    begun.forEach((row, n) => {
      addProducts(row, uniform[n], this.negated[places[n]], this.ring.transforms[places[n]].prime);
    });
    return begun;
  }

  /**
   * First polynomials of part `index` of a switching key: an encryption of zero, and the special
   * prime times the other key in row `index`.
   * @param {Float64Array} other the key to be switched from, modulo prime `index`
   * @param {number} index @param {Float64Array} error
   * @param {Float64Array[]} uniform @param {number[]} places
   */
  switching(other, index, error, uniform, places) {
    const rows = places.map((place) => this.ring.transformed(error, place));
    this.encrypted(rows, uniform, places);
    const { prime } = this.ring.transforms[index];
    const special = this.ring.primes[this.ring.primes.length - 1] % prime.value;
    addProducts(rows[index], other, new Float64Array(other.length).fill(special), prime);
    return rows;
  }

  /**
   * The key's square modulo one prime, transformed.
   * @param {number} place
   */
  squared(place) {
    const { prime } = this.ring.transforms[place];
    return this.residues[place].map((value) => product(value, value, prime));
  }

  /**
   * The key with X^element for X, modulo one prime, transformed.
   * @param {number} element odd @param {number} place
   */
  rotated(element, place) {
    const { degree } = this.ring;
    const order = reversedBits(degree);
    const residues = this.residues[place];
    const result = new Float64Array(degree);
    for (let n = 0; n < degree; n++) {
      // Value n is the polynomial at the root's power 2·bitrev(n) + 1.
      const power = (element * (2 * order[n] + 1)) % (2 * degree);
      result[n] = residues[order[power >> 1]];
    }
    return result;
  }
}

/**
 * c0 + c1·s, transformed back: a ciphertext's message modulo one prime.
 * @param {SecretKey} secret @param {Float64Array} first changed
 * @param {Float64Array} second @param {number} place
 */
export function decrypted(secret, first, second, place) {
  const transform = secret.ring.transforms[place];
  addProducts(first, second, secret.residues[place], transform.prime);
  return transform.backward(first);
}
