/**
 * Residues modulo primes below 2^50, held in doubles, whose products are exact.
 *
 * JavaScript has no fused multiply-add. A factor is therefore cut into a part that is a multiple
 * of 2^25 and a rest of at most 2^24 in size, and so are x, q and the quotient b. The three sums of
 * products below hold whole numbers of at most 53 bits (times 2^50, 2^25 and 1), so that nothing
 * is rounded but b, which may be: x·w - b·q is then at most (1/2 + m/8)·q in size for |x| <= m·q,
 * m < 4, |w| <= q/2. No branch and no address depends on a value.
 */

/** Adding and taking away rounds to a whole number, halves to even, below 2^51 in size. */
export const WHOLE = 1.5 * 2 ** 52;
/** The same, to a multiple of 2^25. */
const HIGH = 1.5 * 2 ** 77;
const TWO_52 = 2 ** 52;

/**
 * @typedef {object} Prime
 * @property {number} value
 * @property {number} inverse 1/value
 * @property {number} high the part that is a multiple of 2^25
 * @property {number} low the rest
 */

/** @param {number} value @returns {Prime} */
export function primeOf(value) {
  const high = value + HIGH - HIGH;
  return { value, inverse: 1 / value, high, low: value - high };
}

/**
 * x·w - b·q, at most (1/2 + m/8)·q in size.
 * @param {number} x
 * @param {number} high of w, @param {number} low of w, @param {number} share w/q
 * @param {number} primeHigh @param {number} primeLow
 */
export function times(x, high, low, share, primeHigh, primeLow) {
  const b = x * share + WHOLE - WHOLE;
  const bHigh = b + HIGH - HIGH;
  const bLow = b - bHigh;
  const xHigh = x + HIGH - HIGH;
  const xLow = x - xHigh;
  return (
    xHigh * high - bHigh * primeHigh +
    (xHigh * low + xLow * high - (bHigh * primeLow + bLow * primeHigh)) +
    (xLow * low - bLow * primeLow)
  );
}

/**
 * A residue between -q/2 and q/2, of one between -4q and 4q.
 * @param {number} x @param {number} value @param {number} inverse
 */
export function centred(x, value, inverse) {
  return x - (x * inverse + WHOLE - WHOLE) * value;
}

/**
 * A residue in [0, q), of one between -4q and 4q.
 * @param {number} x @param {number} value
 */
export function canonical(x, value) {
  return x - Math.floor(x / value) * value;
}

/**
 * The product of two residues, in [0, q).
 * @param {number} x @param {number} y @param {Prime} prime
 */
export function product(x, y, prime) {
  const w = centred(y, prime.value, prime.inverse);
  const high = w + HIGH - HIGH;
  const { value } = prime;
  return canonical(times(x, high, w - high, w * prime.inverse, prime.high, prime.low), value);
}

/**
 * A centred factor, cut: what `times` takes.
 * @param {number} w @returns {[number, number]}
 */
export function cut(w) {
  const high = w + HIGH - HIGH;
  return [high, w - high];
}

/**
 * sum + x·y for polynomials in the transformed domain; all in [0, q).
 * @param {Float64Array} sum changed in place
 * @param {Float64Array} x @param {Float64Array} y @param {Prime} prime
 */
export function addProducts(sum, x, y, prime) {
  const { value, inverse, high, low } = prime;
  for (let n = 0; n < sum.length; n++) {
    const w = centred(y[n], value, inverse);
    const wHigh = w + HIGH - HIGH;
    sum[n] = canonical(
      sum[n] + times(x[n], wHigh, w - wHigh, w * inverse, high, low),
      value,
    );
  }
}

/**
 * base^exponent modulo a prime.
 * @param {number} base @param {number} exponent @param {Prime} prime
 */
export function power(base, exponent, prime) {
  let result = 1;
  for (let left = exponent, square = base; left > 0; left = Math.floor(left / 2)) {
    if (left % 2 === 1) result = product(result, square, prime);
    square = product(square, square, prime);
  }
  return result;
}

/**
 * Residues as bytes, 64-bit integers, little-endian: the bits of 2^52 + x behind its exponent.
 * @param {Float64Array} residues @param {Uint8Array<ArrayBuffer>} bytes @param {number} offset in bytes
 */
export function writeResidues(residues, bytes, offset) {
  const doubles = new Float64Array(residues.length);
  for (let n = 0; n < residues.length; n++) doubles[n] = residues[n] + TWO_52;
  const words = new Uint32Array(doubles.buffer);
  for (let n = 1; n < words.length; n += 2) words[n] &= 0xfffff;
  bytes.set(new Uint8Array(doubles.buffer), offset);
}

/**
 * 64-bit integers, little-endian, cut to `bits` (at most 52), as doubles.
 * @param {Uint8Array<ArrayBuffer>} bytes @param {number} offset @param {number} count @param {number} bits
 */
export function readCut(bytes, offset, count, bits) {
  const words = new Uint32Array(bytes.slice(offset, offset + 8 * count).buffer);
  const doubles = new Float64Array(words.buffer);
  const lowMask = bits < 32 ? 2 ** bits - 1 : 0xffffffff;
  const highMask = bits > 32 ? 2 ** (bits - 32) - 1 : 0;
  for (let n = 0; n < words.length; n += 2) {
    words[n] &= lowMask;
    words[n + 1] = (words[n + 1] & highMask) | 0x43300000;
  }
  for (let n = 0; n < count; n++) doubles[n] -= TWO_52;
  return doubles;
}

/**
 * Residues that a stranger sent, or null if one is not below its prime.
 * @param {Uint8Array<ArrayBuffer>} bytes @param {number} offset @param {number} count @param {number} prime
 * @returns {Float64Array | null}
 */
export function readResidues(bytes, offset, count, prime) {
  const words = new Uint32Array(bytes.slice(offset, offset + 8 * count).buffer);
  let over = 0;
  for (let n = 1; n < words.length; n += 2) over |= words[n] >>> 20;
  const values = readCut(bytes, offset, count, 52);
  for (let n = 0; n < count; n++) over |= Number(values[n] >= prime);
  return over === 0 ? values : null;
}
