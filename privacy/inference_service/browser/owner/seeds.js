/**
 * Uniform polynomials from seeds that travel in their place.
 *
 * The keystream of AES-256 in counter mode, the seed as its key, is read as 64-bit integers,
 * little-endian, cut to the bits of the prime; those that are not below it are left out. A prime
 * takes N of them and then 64 at a time, of which what is left over is thrown away; the next prime
 * starts there.
 */

import { readCut } from "./residues.js";

export const SEED_BYTES = 32;
const SPARE = 64;

/**
 * @param {Uint8Array<ArrayBuffer>} seed @param {number[]} primes @param {number} degree
 * @returns {Promise<Float64Array[]>}
 */
export async function expand(seed, primes, degree) {
  const key = await crypto.subtle.importKey("raw", seed, "AES-CTR", false, ["encrypt"]);
  for (let words = primes.length * (degree + SPARE); ; words *= 2) {
    const algorithm = { name: "AES-CTR", counter: new Uint8Array(16), length: 128 };
    const zeros = new Uint8Array(8 * words);
    const stream = new Uint8Array(await crypto.subtle.encrypt(algorithm, key, zeros));
    const rows = filled(stream, primes, degree);
    if (rows) return rows;
  }
}

/** @param {Uint8Array<ArrayBuffer>} stream @param {number[]} primes @param {number} degree */
function filled(stream, primes, degree) {
  let offset = 0;
  const rows = [];
  for (const prime of primes) {
    const bits = prime.toString(2).length;
    const row = new Float64Array(degree);
    for (let count = 0; count < degree; ) {
      const wanted = count === 0 ? degree : SPARE;
      if (offset + 8 * wanted > stream.length) return null;
      for (const value of readCut(stream, offset, wanted, bits)) {
        if (value < prime && count < degree) row[count++] = value;
      }
      offset += 8 * wanted;
    }
    rows.push(row);
  }
  return rows;
}
