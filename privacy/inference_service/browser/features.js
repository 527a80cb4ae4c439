/**
 * A model's inputs from an image of 28 by 28 pixels, as `flower_app/data/features.py` has them: the
 * image straightened and moved to the middle, and histograms of oriented gradients of that, less
 * what is typical.
 */

import { TYPICAL } from "./typical.js";

export const SIDE = 28;
const CELL = 4;
const CELLS = SIDE / CELL;
const DIRECTIONS = 8;
const MIDDLE = (SIDE - 1) / 2;
// Before what is typical is subtracted.
const LOW = -((DIRECTIONS - 1) ** 0.75) / DIRECTIONS;
const HIGH = 1 - 1 / DIRECTIONS;
const f32 = Math.fround;
const TURN = f32(DIRECTIONS / (2 * Math.PI));

/** How much pixel n gives to each cell: a triangle as wide as two cells. */
const SHARES = Array.from({ length: CELLS }, (_, cell) =>
  Float32Array.from({ length: SIDE }, (_, n) =>
    Math.max(0, 1 - Math.abs(n - ((cell + 0.5) * CELL - 0.5)) / CELL),
  ),
);

/**
 * Sheared so that the ink's axis stands upright, and moved to the middle; 0 to 1.
 * @param {Uint8Array} image 784 pixels, light on dark
 */
export function upright(image) {
  const result = new Float32Array(SIDE * SIDE);
  const ink = Float64Array.from(image, (value) => value / 255);
  let total = 0;
  let row = 0;
  let column = 0;
  ink.forEach((value, n) => {
    total += value;
    row += value * Math.floor(n / SIDE);
    column += value * (n % SIDE);
  });
  if (total === 0) return result;
  row /= total;
  column /= total;
  let spread = 0;
  let lean = 0;
  ink.forEach((value, n) => {
    const down = Math.floor(n / SIDE) - row;
    spread += value * down * down;
    lean += value * down * ((n % SIDE) - column);
  });
  const slant = spread > 0 ? lean / spread : 0;
  for (let r = 0; r < SIDE; r++) {
    for (let c = 0; c < SIDE; c++) {
      const y = r + row - MIDDLE;
      const x = slant * r + c + (column - MIDDLE - slant * MIDDLE);
      result[r * SIDE + c] = Math.min(Math.max(f32(between(ink, y, x)), 0), 1);
    }
  }
  return result;
}

/** @param {Float64Array} ink @param {number} y @param {number} x outside the image there is nothing */
function between(ink, y, x) {
  if (y < 0 || x < 0 || y > SIDE - 1 || x > SIDE - 1) return 0;
  const top = Math.min(Math.floor(y), SIDE - 2);
  const left = Math.min(Math.floor(x), SIDE - 2);
  const down = y - top;
  const right = x - left;
  const at = top * SIDE + left;
  return (
    (ink[at] * (1 - right) + ink[at + 1] * right) * (1 - down) +
    (ink[at + SIDE] * (1 - right) + ink[at + SIDE + 1] * right) * down
  );
}

/**
 * The straightened image in steps of 1/255.
 * @param {Uint8Array} image
 */
export function pixels(image) {
  return upright(image).map((value) => f32(halfToEven(f32(value * 255)) / 255));
}

/** @param {number} value */
function halfToEven(value) {
  return value + 2 ** 52 - 2 ** 52;
}

/**
 * 392 features.
 * @param {Uint8Array} image
 */
export function hog(image) {
  const cells = histograms(upright(image));
  const length = Math.sqrt(cells.reduce((sum, value) => sum + value * value, 0)) || 1;
  const roots = cells.map((value) => Math.sqrt(value / length));
  return Float32Array.from(roots, (value, n) => {
    const start = n - (n % DIRECTIONS);
    let mean = 0;
    for (let k = 0; k < DIRECTIONS; k++) mean += roots[start + k] / DIRECTIONS;
    return f32(Math.min(Math.max(value - mean, LOW), HIGH)) - f32(TYPICAL[n] / 100);
  });
}

/** @param {Float32Array} image @returns {Float64Array} 7 by 7 cells of 8 directions */
function histograms(image) {
  const cells = new Float64Array(CELLS * CELLS * DIRECTIONS);
  for (let r = 0; r < SIDE; r++) {
    for (let c = 0; c < SIDE; c++) {
      const at = r * SIDE + c;
      const down = r > 0 && r < SIDE - 1 ? f32(image[at + SIDE] - image[at - SIDE]) : 0;
      const right = c > 0 && c < SIDE - 1 ? f32(image[at + 1] - image[at - 1]) : 0;
      const strength = f32(Math.hypot(right, down));
      if (strength === 0) continue;
      // In 32 bits, as there: a square root makes much of what rounding leaves of a vote.
      const turn = f32(f32(Math.atan2(down, right)) * TURN);
      const direction = f32(turn - Math.floor(turn / DIRECTIONS) * DIRECTIONS);
      const first = Math.floor(direction);
      const rest = direction - first;
      vote(cells, r, c, first % DIRECTIONS, (1 - rest) * strength);
      vote(cells, r, c, (first + 1) % DIRECTIONS, rest * strength);
    }
  }
  return cells;
}

/**
 * @param {Float64Array} cells @param {number} r @param {number} c @param {number} direction
 * @param {number} strength
 */
function vote(cells, r, c, direction, strength) {
  for (let i = 0; i < CELLS; i++) {
    if (SHARES[i][r] === 0) continue;
    for (let j = 0; j < CELLS; j++) {
      cells[(i * CELLS + j) * DIRECTIONS + direction] += SHARES[i][r] * strength * SHARES[j][c];
    }
  }
}
