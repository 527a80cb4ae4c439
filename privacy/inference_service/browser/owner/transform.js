/**
 * Number-theoretic transforms: value i of a transformed polynomial is the polynomial at
 * ψ^(2·bitrev(i) + 1), ψ the smallest primitive 2N-th root of unity (SEAL's order and roots).
 *
 * Forward, a stage makes x ± w·y: values of m·q in size become (m_x + 1/2 + m_y/8)·q. Every second
 * stage brings x below q/2 first, so that from m = 1 on m stays below 2. Backward, sums are brought
 * below q/2 in each stage.
 */

import { canonical, centred, cut, power, primeOf, product, times } from "./residues.js";

/** @typedef {import("./residues.js").Prime} Prime */
/**
 * @typedef {object} Table factors, cut: their high and low parts, and their shares of q
 * @property {Float64Array} high @property {Float64Array} low @property {Float64Array} share
 */

/** The transforms of one ring modulo one prime. */
export class Transform {
  /** @param {number} degree @param {number} value of the prime */
  constructor(degree, value) {
    this.degree = degree;
    this.prime = primeOf(value);
    this.root = smallestRoot(this.prime, degree);
    const back = power(this.root, 2 * degree - 1, this.prime);
    /** @type {Table} */
    this.mixing = tableOf(this.root, this.prime, degree);
    /** @type {Table} */
    this.unmixing = tableOf(back, this.prime, degree);
    this.share = power(degree, value - 2, this.prime);
  }

  /**
   * Coefficients between -q and q, in place; residues in [0, q) come out.
   * @param {Float64Array} values
   */
  forward(values) {
    const { high, low, share } = this.mixing;
    const { value, inverse, high: primeHigh, low: primeLow } = this.prime;
    let length = this.degree >> 1;
    let reducing = false;
    for (let blocks = 1; length > 0; blocks *= 2, length >>= 1) {
      for (let block = 0; block < blocks; block++) {
        const at = blocks + block;
        const wHigh = high[at];
        const wLow = low[at];
        const wShare = share[at];
        const start = 2 * block * length;
        for (let n = start, m = start + length; n < start + length; n++, m++) {
          const x = reducing ? centred(values[n], value, inverse) : values[n];
          const y = times(values[m], wHigh, wLow, wShare, primeHigh, primeLow);
          values[n] = x + y;
          values[m] = x - y;
        }
      }
      reducing = !reducing;
    }
    for (let n = 0; n < values.length; n++) values[n] = canonical(values[n], value);
    return values;
  }

  /**
   * Residues back into coefficients, in [0, q), in place.
   * @param {Float64Array} values
   */
  backward(values) {
    const { high, low, share } = this.unmixing;
    const { value, inverse, high: primeHigh, low: primeLow } = this.prime;
    for (let blocks = this.degree >> 1, length = 1; blocks > 0; blocks >>= 1, length *= 2) {
      for (let block = 0; block < blocks; block++) {
        const at = blocks + block;
        const wHigh = high[at];
        const wLow = low[at];
        const wShare = share[at];
        const start = 2 * block * length;
        for (let n = start, m = start + length; n < start + length; n++, m++) {
          const x = values[n];
          const y = values[m];
          values[n] = centred(x + y, value, inverse);
          values[m] = times(x - y, wHigh, wLow, wShare, primeHigh, primeLow);
        }
      }
    }
    for (let n = 0; n < values.length; n++) {
      values[n] = product(values[n], this.share, this.prime);
    }
    return values;
  }
}

/** @param {number} count a power of two */
export function reversedBits(count) {
  const result = new Uint32Array(count);
  for (let n = 1, half = count >> 1; n < count; n++) {
    result[n] = (result[n >> 1] >> 1) | (n & 1 ? half : 0);
  }
  return result;
}

/** @param {Prime} prime @param {number} degree */
function smallestRoot(prime, degree) {
  let root = 0;
  for (let base = 2; root === 0; base++) {
    const candidate = power(base, (prime.value - 1) / (2 * degree), prime);
    if (power(candidate, degree, prime) === prime.value - 1) root = candidate;
  }
  // Its odd powers are all of them.
  const square = product(root, root, prime);
  let smallest = root;
  for (let n = 0, each = root; n < degree; n++) {
    smallest = Math.min(smallest, each);
    each = product(each, square, prime);
  }
  return smallest;
}

/** @param {number} root @param {Prime} prime @param {number} degree @returns {Table} */
function tableOf(root, prime, degree) {
  const order = reversedBits(degree);
  const table = {
    high: new Float64Array(degree),
    low: new Float64Array(degree),
    share: new Float64Array(degree),
  };
  for (let n = 0, each = 1; n < degree; n++) {
    const w = centred(each, prime.value, prime.inverse);
    const at = order[n];
    [table.high[at], table.low[at]] = cut(w);
    table.share[at] = w * prime.inverse;
    each = product(each, root, prime);
  }
  return table;
}
