/** The primes of a ring: of each length the largest that are 1 modulo 2N, the smallest first. */

import { PlanError } from "./errors.js";

/**
 * Bits of the whole modulus at 128-bit security (Homomorphic Encryption Standard 2018, table 1).
 * @type {Record<number, number>}
 */
export const MAX_MODULUS_BITS = {
  1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881,
};
/** Products of residues are exact in doubles for shorter primes only. */
export const MAX_PRIME_BITS = 50;
const WITNESSES = [2n, 3n, 5n, 7n, 11n, 13n, 17n, 19n, 23n, 29n, 31n, 37n];

/**
 * @param {number} degree @param {number[]} bits
 * @returns {number[]}
 */
export function choosePrimes(degree, bits) {
  /** @type {Map<number, number[]>} */
  const waiting = new Map();
  for (const each of new Set(bits)) {
    const count = bits.filter((other) => other === each).length;
    waiting.set(each, largest(degree, each, count));
  }
  return bits.map((each) => /** @type {number} */ (waiting.get(each)?.pop()));
}

/** @param {number} degree @param {number} bits @param {number} count */
function largest(degree, bits, count) {
  const step = 2 * degree;
  const primes = [];
  let candidate = Math.floor((2 ** bits - 1) / step) * step + 1;
  for (; primes.length < count && candidate > 2 ** (bits - 1); candidate -= step) {
    if (candidate < 2 ** bits && isPrime(BigInt(candidate))) primes.push(candidate);
  }
  if (primes.length < count) {
    throw new PlanError(`there are not ${count} primes of ${bits} bits for degree ${degree}`);
  }
  return primes;
}

/** @param {bigint} number */
function isPrime(number) {
  if (number < 2n) return false;
  for (const witness of WITNESSES) if (number % witness === 0n) return number === witness;
  let odd = number - 1n;
  let twos = 0;
  for (; odd % 2n === 0n; odd /= 2n) twos++;
  return WITNESSES.every((witness) => {
    let value = modularPower(witness, odd, number);
    if (value === 1n || value === number - 1n) return true;
    for (let n = 1; n < twos; n++) {
      value = (value * value) % number;
      if (value === number - 1n) return true;
    }
    return false;
  });
}

/** @param {bigint} base @param {bigint} exponent @param {bigint} modulus */
export function modularPower(base, exponent, modulus) {
  let result = 1n;
  let square = base % modulus;
  for (let left = exponent; left > 0n; left >>= 1n) {
    if (left & 1n) result = (result * square) % modulus;
    square = (square * square) % modulus;
  }
  return result;
}
