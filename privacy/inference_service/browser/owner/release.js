/**
 * Release policies: which part of a decryption leaves the owner. A decryption is the message plus
 * noise that depends on the secret key: in full precision it reveals the key (Li and Micciancio
 * 2021), so that logits leave the worker rounded or not at all.
 */

import { ReleaseError } from "./errors.js";

/** @typedef {import("./plan.js").Plan} Plan */
/**
 * @typedef {object} Policy
 * @property {"class" | "top" | "labels" | "rounded"} kind
 * @property {number} [threshold] where a single logit, or each label, decides
 * @property {number} [count] of "top"
 * @property {number} [decimals] of "rounded"
 */
/**
 * @typedef {object} Answer one entry an input
 * @property {number[]} labels @property {string[] | null} names
 * @property {number[][] | null} top @property {number[][] | null} labelSets
 * @property {number[][] | null} logits
 */

/** @param {Plan} plan @returns {Policy} */
export function usualPolicy(plan) {
  return { kind: plan.multi_label ? "labels" : "class" };
}

/** @param {Policy} policy @param {Plan} plan */
export function checkPolicy(policy, plan) {
  const { kind, threshold = 0, count = 1, decimals = 0 } = policy;
  if (!["class", "top", "labels", "rounded"].includes(kind)) {
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
  if (kind === "rounded") {
    if (!Number.isInteger(decimals)) throw new ReleaseError("decimals is not a whole number");
    if (10 ** -decimals < 2 ** (plan.worst_error_bits + 8)) {
      throw new ReleaseError(
        `decimals is ${decimals}; a step must be 2^8 times the plan's error for the worst input, ` +
          `2^${plan.worst_error_bits}: round more`,
      );
    }
  }
}

/**
 * @param {Policy} policy @param {number[][]} logits (inputs, logits) @param {Plan} plan
 * @returns {Answer}
 */
export function release(policy, logits, plan) {
  const { kind, threshold = 0, count = 1, decimals = 0 } = policy;
  /** @type {Answer} */
  const answer = { labels: [], names: null, top: null, labelSets: null, logits: null };
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
