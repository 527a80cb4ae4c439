/**
 * Release policies, as in `privacy/inference/owner/release_policy.py`: which part of a decryption
 * leaves the owner. A decryption is the message plus noise that depends on the secret key: in full
 * precision it reveals the key (Li and Micciancio 2021), so that logits leave the worker rounded,
 * under noise, or not at all.
 */

import { ReleaseError } from "./errors.js";
import { gaussian } from "./gaussian.js";

/** @typedef {import("./plan.js").Plan} Plan */
/**
 * @typedef {object} Policy
 * @property {"class" | "top" | "labels" | "rounded" | "flooded"} kind
 * @property {number} [threshold] where a single logit, or each label, decides
 * @property {number} [count] of "top"
 * @property {number} [decimals] of "rounded"
 * @property {number} [statisticalBits] of "flooded" @property {number} [queries] of "flooded", a key
 */
/**
 * @typedef {object} Answer one entry an input
 * @property {number[]} labels @property {string[] | null} names
 * @property {number[][] | null} top @property {number[][] | null} labelSets
 * @property {number[][] | null} logits
 */

const MOST_DECIMALS = 300;
const MOST_STATISTICAL_BITS = 1000;
const TENS = Math.log10(2);

/** @param {Plan} plan @returns {Policy} */
export function usualPolicy(plan) {
  return { kind: plan.multi_label ? "labels" : "class" };
}

/** @param {Policy} policy @param {Plan} plan */
export function checkPolicy(policy, plan) {
  const { kind, threshold = 0, count = 1, decimals = 0 } = policy;
  if (!["class", "top", "labels", "rounded", "flooded"].includes(kind)) {
    throw new ReleaseError(`there is no release policy "${kind}" here`);
  }
  if (kind === "labels" && !plan.multi_label) {
    throw new ReleaseError("of this model's classes one holds: release the class");
  }
  if ((kind === "class" || kind === "top") && plan.multi_label) {
    throw new ReleaseError("this model's labels are independent of each other: release labels");
  }
  if (!Number.isFinite(threshold)) throw new ReleaseError("threshold is not a number");
  if (threshold !== 0 && plan.logits > 1 && !plan.multi_label) {
    throw new ReleaseError("of several logits the largest decides: leave threshold out");
  }
  if (threshold !== 0 && Math.abs(threshold) >= 2 ** plan.logit_bits) {
    throw new ReleaseError(`threshold is ${threshold}, beyond every logit of this model`);
  }
  if (kind === "top" && !(Number.isInteger(count) && count >= 1 && count <= plan.classes)) {
    throw new ReleaseError(`count is ${count}; the model has ${plan.classes} classes`);
  }
  if (kind === "rounded") checkRounding(decimals, plan);
  if (kind === "flooded") checkFlooding(policy, plan);
}

/** @param {number} decimals @param {Plan} plan */
function checkRounding(decimals, plan) {
  const { error_bits: usual, worst_error_bits: worst } = plan;
  if (!Number.isInteger(decimals) || Math.abs(decimals) > MOST_DECIMALS) {
    throw new ReleaseError(`decimals is ${decimals}; give a whole number`);
  }
  if (10 ** -decimals < 2 ** (worst + 8)) {
    const allowed = Math.floor(-(worst + 8) * TENS);
    // Both errors shrink together, as a rule.
    const tolerance = 2 ** (Math.floor(-decimals / TENS) - 8 + usual - worst);
    throw new ReleaseError(
      `decimals is ${decimals}; the plan's error for the worst input is about 2^${worst}, a step ` +
        `must be 2^8 times that: give decimals=${allowed} or less, or compile with a tolerance ` +
        `of about ${tolerance.toPrecision(2)}, or with a narrower input_range`,
    );
  }
}

/**
 * The noise's standard deviation: Li, Micciancio, Schultz and Sorrell 2022, the Gaussian mechanism.
 * @param {Policy} policy @param {Plan} plan
 */
export function floodingNoise({ statisticalBits = 0, queries = 0 }, plan) {
  const logits = plan.logits * plan.batch_size;
  const factor = Math.sqrt(12 * queries * logits) * 2 ** (statisticalBits / 2);
  return 2 ** plan.worst_error_bits * factor;
}

/** @param {Policy} policy @param {Plan} plan */
function checkFlooding(policy, plan) {
  const { statisticalBits = 0, queries = 0 } = policy;
  const inRange = (/** @type {number} */ value, /** @type {number} */ most) =>
    Number.isInteger(value) && value >= 1 && value <= most;
  if (!inRange(statisticalBits, MOST_STATISTICAL_BITS)) {
    throw new ReleaseError(`statisticalBits is ${statisticalBits}; give a whole number from 1 on`);
  }
  if (!inRange(queries, Number.MAX_SAFE_INTEGER)) {
    throw new ReleaseError(`queries is ${queries}; give a whole number from 1 on`);
  }
  const noise = floodingNoise(policy, plan);
  const largest = 2 ** plan.logit_bits;
  if (noise > largest / 8) {
    throw new ReleaseError(
      `flooding ${queries} queries to ${statisticalBits} bits takes noise of ` +
        `${noise.toPrecision(3)} on logits below ${largest}: the plan has no bits for it. Compile ` +
        "with a smaller tolerance or a narrower input_range, or allow fewer queries",
    );
  }
}

/**
 * The answer from logits, after `released` earlier ones under the same key.
 * @param {Policy} policy @param {number[][]} exact (inputs, logits) @param {Plan} plan
 * @param {number} released @returns {Answer}
 */
export function release(policy, exact, plan, released) {
  const { kind, threshold = 0, count = 1, decimals = 0, queries = 0 } = policy;
  let logits = exact;
  if (kind === "flooded") {
    if (released >= queries) {
      throw new ReleaseError(
        `${released} answers were released under this key, queries is ${queries}; make new keys`,
      );
    }
    const noise = floodingNoise(policy, plan);
    logits = exact.map((row) => row.map((value) => value + noise * gaussian()));
  }
  /** @type {Answer} */
  const answer = { labels: [], names: null, top: null, labelSets: null, logits: null };
  if (kind === "flooded") answer.logits = logits;
  if (kind === "rounded") {
    answer.logits = logits.map((row) => row.map((value) => rounded(value, decimals)));
  }
  if (plan.multi_label) {
    answer.labelSets = logits.map((row) => row.flatMap((value, k) => (value > threshold ? [k] : [])));
    return answer;
  }
  answer.labels = logits.map((row) => decided(row, threshold));
  if (kind === "top") {
    answer.top = logits.map((row, n) => {
      const first = answer.labels[n];
      if (plan.logits === 1) return [first, 1 - first].slice(0, count);
      return row.map((_, k) => k).sort((a, b) => row[b] - row[a] || a - b).slice(0, count);
    });
  }
  if (plan.class_names.length > 0) {
    answer.names = answer.labels.map((label) => plan.class_names[label]);
  }
  return answer;
}

/** @param {number[]} row @param {number} threshold */
function decided(row, threshold) {
  if (row.length === 1) return Number(row[0] > threshold);
  return row.reduce((best, value, k) => (value > row[best] ? k : best), 0);
}

/** @param {number} value @param {number} decimals halves go to the even neighbour */
function rounded(value, decimals) {
  const step = 10 ** Math.abs(decimals);
  const scaled = decimals > 0 ? value * step : value / step;
  const floor = Math.floor(scaled);
  const rest = scaled - floor;
  const up = rest > 0.5 || (rest === 0.5 && floor % 2 !== 0);
  const whole = floor + Number(up);
  return (decimals > 0 ? whole / step : whole * step) + 0;
}
