/**
 * Gaussian draws from the browser's generator, exact but for the last bits of a double: Karney's
 * algorithm N (2016, "Sampling exactly from the normal distribution"), which compares random digits
 * and computes no exponential, so that no tail is cut. How long a draw takes depends on it.
 */

import { randomBytes } from "./randomness.js";

const BASE = 2 ** 32;

function word() {
  return new Uint32Array(randomBytes(4).buffer)[0];
}

/** A uniform number from 0 to 1, whose digits in base 2^32 are drawn where they are needed. */
class Uniform {
  /** @type {number[]} */
  #digits = [];

  /** @param {number} place */
  digit(place) {
    while (this.#digits.length <= place) this.#digits.push(word());
    return this.#digits[place];
  }

  /** @param {Uniform} other */
  below(other) {
    let place = 0;
    while (this.digit(place) === other.digit(place)) place++;
    return this.digit(place) < other.digit(place);
  }

  value() {
    return (this.digit(0) + (this.digit(1) + this.digit(2) / BASE) / BASE) / BASE;
  }
}

/** True with probability exp(-1/2): a falling run that begins below 1/2 has an even length. */
function halving() {
  let last = new Uniform();
  if (last.digit(0) >= BASE / 2) return true;
  for (let even = false; ; even = !even) {
    const next = new Uniform();
    if (!next.below(last)) return even;
    last = next;
  }
}

/** @param {number} count below which a whole number is drawn */
function below(count) {
  const most = BASE - (BASE % count);
  for (;;) {
    const drawn = word();
    if (drawn < most) return drawn % count;
  }
}

/** True with probability exp(-x(2k + x)/(2k + 2)). @param {number} k @param {Uniform} x */
function accepted(k, x) {
  let last = x;
  for (let even = true; ; even = !even) {
    const next = new Uniform();
    if (!next.below(last)) return even;
    // The run goes on with probability (2k + x)/(2k + 2).
    const side = below(2 * k + 2);
    if (side === 0 || (side === 1 && !new Uniform().below(x))) return even;
    last = next;
  }
}

/** @param {number} times @param {() => boolean} trial */
function all(times, trial) {
  for (let n = 0; n < times; n++) if (!trial()) return false;
  return true;
}

/** One draw of the standard normal distribution. */
export function gaussian() {
  for (;;) {
    let k = 0;
    while (halving()) k++;
    if (!all(k * (k - 1), halving)) continue;
    const x = new Uniform();
    if (all(k + 1, () => accepted(k, x))) return (k + x.value()) * (below(2) ? 1 : -1);
  }
}
