/**
 * Keys' and errors' randomness, of the browser's generator. No branch and no address depends on a
 * draw that is used.
 */

const MOST_BYTES = 65536;

/** @param {number} count */
export function randomBytes(count) {
  const bytes = new Uint8Array(count);
  for (let start = 0; start < count; start += MOST_BYTES) {
    crypto.getRandomValues(bytes.subarray(start, start + MOST_BYTES));
  }
  return bytes;
}

/**
 * The difference of two sums of 21 fair bits, each time: variance 21/2. The error distribution for
 * which the Homomorphic Encryption Standard's bits are stated.
 * @param {number} size
 */
export function centredBinomial(size) {
  const words = new Uint32Array(randomBytes(8 * size).buffer);
  const result = new Float64Array(size);
  for (let n = 0; n < size; n++) {
    result[n] = ones(words[2 * n] & 0x1fffff) - ones(words[2 * n + 1] & 0x1fffff);
  }
  return result;
}

/** @param {number} word */
function ones(word) {
  word -= (word >>> 1) & 0x55555555;
  word = (word & 0x33333333) + ((word >>> 2) & 0x33333333);
  return Math.imul((word + (word >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

/**
 * Independent numbers from -1, 0 and 1, each with probability 1/3: of 256 values of a byte, 255 are
 * shared equally and one is drawn anew.
 * @param {number} size
 */
export function ternary(size) {
  const result = new Float64Array(size);
  let filled = 0;
  while (filled < size) {
    for (const byte of randomBytes(size - filled + 64)) {
      if (byte < 255 && filled < size) {
        result[filled++] = byte - 3 * ((byte * 171) >> 9) - 1;
      }
    }
  }
  return result;
}
