/**
 * From a grey picture of any size to 28 by 28 pixels, light on dark, as MNIST's were made and as
 * `flower_app/pictures/digits.py` makes them.
 */

import { SIDE } from "./features.js";

/** @typedef {{width: number, height: number, values: Float64Array}} Grey 0 black to 255 white */

const BOX = 20;
const LEAST_SIDE = 8;
const WORKING_SIDE = 256;
const LEAST_CONTRAST = 32;
const CLEAN = 32;
const STROKE = 1.5;
const SPECK = 0.05;
const INK = 0.2;

/** A picture in which there is nothing, or too little, to see. */
export class PictureError extends Error {
  name = "PictureError";
}

/**
 * @param {ImageData} image opaque
 * @returns {Grey}
 */
export function greyOf({ width, height, data }) {
  const values = new Float64Array(width * height);
  for (let n = 0; n < values.length; n++) {
    const at = 4 * n;
    values[n] = (data[at] * 19595 + data[at + 1] * 38470 + data[at + 2] * 7471 + 0x8000) >> 16;
  }
  return { width, height, values };
}

/**
 * @param {Grey} picture
 * @returns {Uint8Array}
 */
export function digit(picture) {
  const exact = picture.width === SIDE && picture.height === SIDE;
  if (Math.min(picture.width, picture.height) < LEAST_SIDE) {
    throw new PictureError("The picture is too small to show anything.");
  }
  const grey = exact ? picture : reduced(picture);
  const [low, high] = ends(grey.values);
  if (high - low < LEAST_CONTRAST) {
    throw new PictureError("Nothing can be seen: the picture is blank, or too faint.");
  }
  const edge = ring(grey);
  const ground = median(edge);
  const unrest = percentile(edge.map((value) => Math.abs(value - ground)), 0.9);
  const dark = isDarkOnLight(grey, ground);
  if (exact && (dark ? 255 - ground : ground) <= CLEAN) {
    return bytes(dark ? grey.values.map((value) => 255 - value) : grey.values);
  }
  const peak = dark ? ground - low : high - ground;
  const least = Math.min(2 * unrest, 0.4 * peak);
  const values = new Float64Array(grey.values.length);
  for (let n = 0; n < values.length; n++) {
    const drawn = dark ? ground - grey.values[n] : grey.values[n] - ground;
    values[n] = Math.min(Math.max((drawn - least) / (peak - least), 0), 1);
  }
  const level = { ...grey, values };
  return exact ? bytes(level.values.map((value) => 255 * value)) : centred(level);
}

/** @param {Float64Array} values */
function bytes(values) {
  return Uint8Array.from(values, (value) => Math.min(Math.max(even(value), 0), 255));
}

/** To a whole number, halves to even. @param {number} value */
function even(value) {
  return value + 1.5 * 2 ** 52 - 1.5 * 2 ** 52;
}

/** @param {Float64Array} values @returns {[number, number]} */
function ends(values) {
  let low = Infinity;
  let high = -Infinity;
  for (let n = 0; n < values.length; n++) {
    if (values[n] < low) low = values[n];
    if (values[n] > high) high = values[n];
  }
  return [low, high];
}

/** @param {ArrayLike<number>} values @param {number} share */
function percentile(values, share) {
  const sorted = Float64Array.from(values).sort();
  const at = share * (sorted.length - 1);
  const low = Math.floor(at);
  return sorted[low] + (at - low) * (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]);
}

/** @param {ArrayLike<number>} values */
const median = (values) => percentile(values, 0.5);

/** Scaled as Pillow does: where it shrinks, every pixel counts. @param {Grey} grey @param {number} height @param {number} width @returns {Grey} */
export function resized(grey, height, width) {
  const wide = new Float64Array(width * grey.height);
  shares(grey.width, width, (c, first, weights) => {
    for (let r = 0; r < grey.height; r++) {
      let sum = 0;
      for (let n = 0; n < weights.length; n++) sum += grey.values[r * grey.width + first + n] * weights[n];
      wide[r * width + c] = Math.fround(sum);
    }
  });
  const values = new Float64Array(width * height);
  shares(grey.height, height, (r, first, weights) => {
    for (let c = 0; c < width; c++) {
      let sum = 0;
      for (let n = 0; n < weights.length; n++) sum += wide[(first + n) * width + c] * weights[n];
      values[r * width + c] = Math.fround(sum);
    }
  });
  return { width, height, values };
}

/**
 * For each pixel of a side of `to` pixels, which of `from` it is made of, and how much of each.
 * @param {number} from @param {number} to
 * @param {(place: number, first: number, weights: Float64Array) => void} use
 */
function shares(from, to, use) {
  const scale = from / to;
  const wide = Math.max(scale, 1);
  for (let place = 0; place < to; place++) {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - wide + 0.5));
    const last = Math.min(from, Math.trunc(centre + wide + 0.5));
    const weights = new Float64Array(last - first);
    let total = 0;
    for (let n = 0; n < weights.length; n++) {
      weights[n] = Math.max(0, 1 - Math.abs((first + n - centre + 0.5) / wide));
      total += weights[n];
    }
    for (let n = 0; n < weights.length; n++) weights[n] /= total;
    use(place, first, weights);
  }
}

/** @param {Grey} grey @returns {Grey} */
function turned({ width, height, values }) {
  const result = new Float64Array(values.length);
  for (let r = 0; r < height; r++) {
    for (let c = 0; c < width; c++) result[c * height + r] = values[r * width + c];
  }
  return { width: height, height: width, values: result };
}

/** Sides of a picture as it is looked at. @param {number} height @param {number} width */
function reducedSides(height, width) {
  const factor = Math.min(1, WORKING_SIDE / Math.max(width, height));
  return [height, width].map((side) => Math.max(1, even(side * factor)));
}

/** @param {Grey} grey */
function reduced(grey) {
  const [height, width] = reducedSides(grey.height, grey.width);
  return width === grey.width && height === grey.height ? grey : resized(grey, height, width);
}

/**
 * A picture as it is looked at, read by strips: photos are too large to be held as numbers.
 * @param {number} width @param {number} height @param {number} strip rows at a time
 * @param {(top: number, rows: number) => Grey} read
 */
export function gathered(width, height, strip, read) {
  const [short, narrow] = reducedSides(height, width);
  const values = new Float64Array(narrow * height);
  for (let top = 0; top < height; top += strip) {
    const part = read(top, Math.min(strip, height - top));
    values.set(resized(part, part.height, narrow).values, narrow * top);
  }
  return resized({ width: narrow, height, values }, short, narrow);
}

/** A rectangle. @param {Grey} grey @param {number} top @param {number} bottom @param {number} left @param {number} right @returns {Grey} */
function part({ width, values }, top, bottom, left, right) {
  const result = { width: right - left, height: bottom - top };
  const taken = new Float64Array(result.width * result.height);
  for (let r = top; r < bottom; r++) {
    taken.set(values.subarray(r * width + left, r * width + right), (r - top) * result.width);
  }
  return { ...result, values: taken };
}

/** The pixels at the edge. @param {Grey} grey */
function ring(grey) {
  const { width: w, height: h } = grey;
  const edge = Math.max(1, Math.floor(Math.min(w, h) / 16));
  const sides = [
    part(grey, 0, edge, 0, w), part(grey, h - edge, h, 0, w),
    part(grey, edge, h - edge, 0, edge), part(grey, edge, h - edge, w - edge, w),
  ];
  const result = new Float64Array(sides.reduce((sum, side) => sum + side.values.length, 0));
  sides.reduce((at, { values }) => (result.set(values, at), at + values.length), 0);
  return result;
}

/** @param {Grey} grey @param {number} ground */
function isDarkOnLight(grey, ground) {
  const { width: w, height: h, values } = grey;
  const [low, high] = ends(values);
  const middle = (low + high) / 2;
  const darkest = ground - low;
  const lightest = high - ground;
  if (Math.min(darkest, lightest) < LEAST_CONTRAST / 2) return darkest > lightest;
  const size = Math.max(1, Math.floor(Math.min(w, h) / 16));
  const tops = [0, h - size];
  const corners = tops.flatMap((top) =>
    [0, w - size].map((left) => median(part(grey, top, top + size, left, left + size).values)),
  );
  let below = 0;
  let above = 0;
  for (let n = 0; n < values.length; n++) {
    const from = values[n] - ground;
    if (from < 0) below += from * from;
    else above += from * from;
  }
  return below > above && median(corners) > middle && median(ring(grey)) > middle;
}

/** The drawing in MNIST's box, centred by its mass. @param {Grey} level changed */
function centred(level) {
  removeSpecks(level);
  let [top, bottom, left, right] = box(level);
  const before = BOX / Math.max(bottom - top, right - left);
  // With what is next to the drawing, from which its pixels have their distances.
  const around = part(
    level,
    Math.max(top - 1, 0), Math.min(bottom + 1, level.height),
    Math.max(left - 1, 0), Math.min(right + 1, level.width),
  );
  const wider = even(STROKE / before - 2 * Math.sqrt(largestDistance(around)));
  if (wider > 0) level = widened(level, wider);
  [top, bottom, left, right] = box(level);
  const cut = part(level, top, bottom, left, right);
  const scale = BOX / Math.max(cut.height, cut.width);
  const [height, width] = [cut.height, cut.width].map((side) => Math.max(1, even(side * scale)));
  const small = resized(cut, height, width);
  const peak = ends(small.values)[1];
  let mass = 0;
  let row = 0;
  let column = 0;
  small.values.forEach((value, n) => {
    mass += value;
    row += value * Math.floor(n / width);
    column += value * (n % width);
  });
  const place = (/** @type {number} */ at, /** @type {number} */ side) =>
    Math.min(Math.max(even(SIDE / 2 - at), 0), SIDE - side);
  const [y, x] = [place(row / mass, height), place(column / mass, width)];
  const result = new Float64Array(SIDE * SIDE);
  small.values.forEach((value, n) => {
    result[(y + Math.floor(n / width)) * SIDE + x + (n % width)] = (value * 255) / peak;
  });
  return bytes(result);
}

/** Top, bottom, left and right of what is drawn. @param {Grey} level */
function box({ width, height, values }) {
  let [top, bottom, left, right] = [height, 0, width, 0];
  for (let r = 0; r < height; r++) {
    for (let c = 0; c < width; c++) {
      if (values[r * width + c] <= INK) continue;
      top = Math.min(top, r);
      bottom = r + 1;
      left = Math.min(left, c);
      right = Math.max(right, c + 1);
    }
  }
  return [top, bottom, left, right];
}

/** Parts much smaller than the largest are dirt. @param {Grey} level changed */
function removeSpecks({ width, height, values }) {
  const parts = new Int32Array(values.length);
  const areas = [0];
  for (let start = 0; start < values.length; start++) {
    if (values[start] <= INK || parts[start] !== 0) continue;
    const number = areas.length;
    const open = [start];
    parts[start] = number;
    areas.push(0);
    while (open.length > 0) {
      const n = /** @type {number} */ (open.pop());
      areas[number]++;
      const r = Math.floor(n / width);
      const c = n - r * width;
      const right = Math.min(c + 1, width - 1);
      const bottom = Math.min(r + 1, height - 1);
      for (let y = Math.max(r - 1, 0); y <= bottom; y++) {
        for (let x = Math.max(c - 1, 0); x <= right; x++) {
          const m = y * width + x;
          if (values[m] > INK && parts[m] === 0) {
            parts[m] = number;
            open.push(m);
          }
        }
      }
    }
  }
  const least = SPECK * areas.reduce((most, area) => Math.max(most, area), 0);
  if (areas.length === 2) return; // one part
  for (let n = 0; n < values.length; n++) {
    if (parts[n] > 0 && areas[parts[n]] < least) values[n] = 0;
  }
}

/** The square of the largest distance of ink from what is no ink. @param {Grey} level */
function largestDistance({ width, height, values }) {
  const far = 1e9;
  const down = new Float64Array(values.length);
  for (let c = 0; c < width; c++) {
    let distance = far;
    for (let r = 0; r < height; r++) {
      distance = values[r * width + c] > 0.5 ? distance + 1 : 0;
      down[r * width + c] = distance;
    }
    distance = far;
    for (let r = height - 1; r >= 0; r--) {
      distance = values[r * width + c] > 0.5 ? distance + 1 : 0;
      down[r * width + c] = Math.min(down[r * width + c], distance);
    }
  }
  let largest = 0;
  for (let r = 0; r < height; r++) {
    for (let c = 0; c < width; c++) {
      let least = down[r * width + c] ** 2;
      for (let x = 1; x * x < least; x++) {
        if (c >= x) least = Math.min(least, x * x + down[r * width + c - x] ** 2);
        if (c + x < width) least = Math.min(least, x * x + down[r * width + c + x] ** 2);
        if (c < x && c + x >= width) break;
      }
      largest = Math.max(largest, least);
    }
  }
  return largest;
}

/** Strokes wider by so many pixels. @param {Grey} level @param {number} wider @returns {Grey} */
function widened(level, wider) {
  const across = spread(level, wider);
  return turned(spread(turned(across), wider));
}

/** @param {Grey} level @param {number} wider @returns {Grey} */
function spread({ width, height, values }, wider) {
  const wide = width + 2 * wider;
  const result = new Float64Array(wide * height);
  const before = Math.floor((wider + 1) / 2);
  for (let r = 0; r < height; r++) {
    for (let c = 0; c < wide; c++) {
      for (let k = c - before; k <= c - before + wider; k++) {
        const from = k - wider;
        if (from < 0 || from >= width) continue;
        result[r * wide + c] = Math.max(result[r * wide + c], values[r * width + from]);
      }
    }
  }
  return { width: wide, height, values: result };
}
