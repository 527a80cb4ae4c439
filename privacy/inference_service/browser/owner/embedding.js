/**
 * Slots and coefficients: slot j of a real polynomial is its value at ζ^(3^j), ζ = exp(iπ/N). One of
 * each conjugate pair of roots is a ζ^(4t+1): with b_k = c_k + i·c_(k+N/2), the values there are a
 * Fourier transform of b_k·ζ^k.
 */

import { reversedBits } from "./transform.js";

/** @typedef {{real: Float64Array, imaginary: Float64Array}} Complex */

/** @param {number} count @returns {Complex} */
function complex(count) {
  return { real: new Float64Array(count), imaginary: new Float64Array(count) };
}

/** The embedding of one ring degree. */
export class Embedding {
  /** @param {number} degree */
  constructor(degree) {
    const half = (this.half = degree / 2);
    this.order = reversedBits(half);
    this.turns = complex(half);
    this.twist = complex(half);
    this.points = new Uint32Array(half);
    this.signs = new Float64Array(half);
    for (let n = 0, exponent = 1; n < half; n++, exponent = (exponent * 3) % (2 * degree)) {
      const conjugated = exponent % 4 === 3;
      this.signs[n] = conjugated ? -1 : 1;
      this.points[n] = (conjugated ? 2 * degree - exponent : exponent) >> 2;
      this.turns.real[n] = Math.cos((2 * Math.PI * n) / half);
      this.turns.imaginary[n] = Math.sin((2 * Math.PI * n) / half);
      this.twist.real[n] = Math.cos((Math.PI * n) / degree);
      this.twist.imaginary[n] = Math.sin((Math.PI * n) / degree);
    }
  }

  /**
   * The real polynomial with these slots.
   * @param {Complex} slots
   */
  coefficients(slots) {
    const { half, points, signs, twist } = this;
    const values = complex(half);
    for (let n = 0; n < half; n++) {
      values.real[points[n]] = slots.real[n];
      values.imaginary[points[n]] = signs[n] * slots.imaginary[n];
    }
    this.#fourier(values, -1);
    const result = new Float64Array(2 * half);
    for (let n = 0; n < half; n++) {
      const real = values.real[n] / half;
      const imaginary = values.imaginary[n] / half;
      result[n] = real * twist.real[n] + imaginary * twist.imaginary[n];
      result[n + half] = imaginary * twist.real[n] - real * twist.imaginary[n];
    }
    return result;
  }

  /**
   * The real parts of the slots of a real polynomial.
   * @param {Float64Array} coefficients
   */
  realSlots(coefficients) {
    const { half, points, twist } = this;
    const values = complex(half);
    for (let n = 0; n < half; n++) {
      const low = coefficients[n];
      const high = coefficients[n + half];
      values.real[n] = low * twist.real[n] - high * twist.imaginary[n];
      values.imaginary[n] = low * twist.imaginary[n] + high * twist.real[n];
    }
    this.#fourier(values, 1);
    return Float64Array.from(points, (point) => values.real[point]);
  }

  /** @param {Complex} values in place @param {number} sign of the exponent */
  #fourier({ real, imaginary }, sign) {
    const { half, order, turns } = this;
    for (let n = 0; n < half; n++) {
      const m = order[n];
      if (n < m) {
        [real[n], real[m]] = [real[m], real[n]];
        [imaginary[n], imaginary[m]] = [imaginary[m], imaginary[n]];
      }
    }
    for (let length = 1; length < half; length *= 2) {
      const step = half / (2 * length);
      for (let k = 0; k < length; k++) {
        const c = turns.real[k * step];
        const s = sign * turns.imaginary[k * step];
        for (let n = k, m = k + length; m < half; n += 2 * length, m += 2 * length) {
          const x = real[m] * c - imaginary[m] * s;
          const y = real[m] * s + imaginary[m] * c;
          real[m] = real[n] - x;
          imaginary[m] = imaginary[n] - y;
          real[n] += x;
          imaginary[n] += y;
        }
      }
    }
  }
}
