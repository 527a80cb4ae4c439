/** The plan, read from the service's text and checked: a stranger may have written it. */

import { PlanError } from "./errors.js";
import { OVERHEAD } from "./messages.js";
import { MAX_MODULUS_BITS, MAX_PRIME_BITS } from "./primes.js";
import { SEED_BYTES } from "./seeds.js";

const FORMAT = 4;
const SESSION_KEY_BYTES = 32;
const MAX_BITS = 1000;
const MAX_ELEMENTS = 2 ** 31 - 1;
const MAX_PLACES = 2 ** 26;
const LONGEST_PLAN = 2 ** 22;
const MARGIN_BITS = 3;
export const MAX_ROUND_BYTES = 20_000_000;
export const EMPTY = -1;

/** @typedef {number | any[]} Bound a number, or numbers in lists that broadcast to the input's shape */
/**
 * @typedef {object} Contract what the owner knows of its inputs and classes, not by the plan's word
 * @property {number[]} inputShape
 * @property {[Bound, Bound]} inputRange lowest and highest values
 * @property {number} classes
 * @property {boolean} [multiLabel]
 * @property {number} [maxBytes] of keys and one question
 * @property {string[]} [featureNames] of an input's elements, in their order
 */
/**
 * @typedef {object} PlanFields
 * @property {number[]} input_shape @property {[Bound, Bound]} input_range @property {number} logits
 * @property {number} degree @property {number[]} prime_bits @property {number} input_scale_bits
 * @property {number} answer_scale_bits @property {number} answer_level @property {number} logit_bits
 * @property {number} headroom_bits @property {number} error_bits @property {number} worst_error_bits
 * @property {number} batch_size @property {"slots" | "coefficients" | "batch"} packing_kind
 * @property {string} packing @property {number[]} packing_shape @property {number[][]} answers
 * @property {[number, number][]} rotation_levels @property {number} relin_level
 * @property {Record<string, number>} operations @property {number} predicted_ms
 * @property {string} model_version @property {string[]} parties @property {any[]} blind_layers
 * @property {number[]} blind_sources
 * @property {boolean} multi_label @property {string[]} class_names
 * @property {string[]} [feature_names] where the plan names any
 */
/**
 * @typedef {object} Derived
 * @property {Uint8Array<ArrayBuffer>} digest @property {number} classes @property {number} levels
 * @property {number} ciphertexts @property {number} publicBytes @property {number} queryBytes
 * @property {number} answerBytes
 */
/** @typedef {PlanFields & Derived} Plan */

/** @param {number} low @param {number} [high] */
const whole = (low, high = MAX_ELEMENTS) => (/** @type {any} */ value) =>
  Number.isInteger(value) && value >= low && value <= high;
/** @param {number} low */
const real = (low) => (/** @type {any} */ value) => Number.isFinite(value) && value >= low;
const text = (/** @type {any} */ value) => typeof value === "string";
/** @param {(value: any) => boolean} check @param {number} [least] @param {number} [most] */
const each = (check, least = 0, most = Infinity) => (/** @type {any} */ value) =>
  Array.isArray(value) && value.length >= least && value.length <= most && value.every(check);
/** @param {any} value @returns {boolean} */
const bound = (value) =>
  Array.isArray(value) ? value.length > 0 && value.every(bound) : Number.isFinite(value);
const bits = whole(-MAX_BITS, MAX_BITS);

/** @param {number} longest */
const name = (longest) => (/** @type {any} */ value) =>
  text(value) && [...value].length <= longest && /^(?:[^\p{C}\p{Z}]| )+$/u.test(value);

/** @type {Record<string, (value: any) => boolean>} */
const FIELDS = {
  input_shape: each(whole(1), 1),
  input_range: each(bound, 2, 2),
  logits: whole(1),
  degree: (value) => Number.isInteger(value) && value in MAX_MODULUS_BITS,
  prime_bits: each(whole(2, MAX_PRIME_BITS), 1),
  input_scale_bits: bits,
  answer_scale_bits: bits,
  answer_level: whole(1),
  logit_bits: whole(0, MAX_BITS),
  headroom_bits: real(0),
  error_bits: bits,
  worst_error_bits: bits,
  batch_size: whole(1),
  packing_kind: (value) => ["slots", "coefficients", "batch"].includes(value),
  packing: text,
  packing_shape: each(whole(1), 1, 3),
  answers: each(each(whole(0), 1)),
  rotation_levels: each(each(whole(1), 2, 2)),
  relin_level: whole(0),
  operations: (value) =>
    typeof value === "object" && value !== null && Object.values(value).every(whole(0)),
  predicted_ms: real(0),
  model_version: (value) => text(value) && /^[0-9a-fA-F]{32}$/.test(value),
  parties: each(text),
  blind_layers: each(() => true),
  blind_sources: each(() => true),
  multi_label: (value) => typeof value === "boolean",
  class_names: each(name(100)),
};
/** Names that a plan need not have. */
const OPTIONAL = { feature_names: each(name(300), 1) };

/**
 * Read a plan and refuse one that is none, or could harm.
 * @param {string} received @param {Contract} contract
 * @returns {Promise<Plan>}
 */
export async function acceptPlan(received, contract) {
  if (received.length > LONGEST_PLAN) throw new PlanError("the plan is longer than any needs to be");
  const plan = derived(parsed(received));
  plan.digest = await digestOf(received);
  agree(plan, contract);
  return plan;
}

/**
 * SHA-256 of the plan's text with 0.0 as its predicted time. The text is hashed as it came: a number
 * such as 1.0 is written otherwise here than in Python.
 * @param {string} received
 */
export async function digestOf(received) {
  const timeless = received.replace(/"predicted_ms":[-+.0-9eE]+/, '"predicted_ms":0.0');
  const bytes = new TextEncoder().encode(timeless);
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
}

/** @param {string} received @returns {PlanFields} */
function parsed(received) {
  let content;
  try {
    content = JSON.parse(received);
  } catch {
    throw new PlanError("the service did not send a plan");
  }
  if (content === null || typeof content !== "object" || content.format !== FORMAT) {
    throw new PlanError(`not a plan of format ${FORMAT}; use the same release on both sides`);
  }
  const { format: _, ...fields } = content;
  const checks = "feature_names" in fields ? { ...FIELDS, ...OPTIONAL } : FIELDS;
  const names = Object.keys(checks);
  if (Object.keys(fields).sort().join() !== names.sort().join()) {
    throw new PlanError("the plan has missing or unknown fields");
  }
  for (const name of names) {
    let fine = false;
    try {
      fine = checks[name](fields[name]);
    } catch {} // nested deeper than the stack
    if (!fine) throw new PlanError(`the plan's ${name} cannot be used`);
  }
  return fields;
}

/** @param {PlanFields} fields @returns {Plan} */
function derived(fields) {
  const { degree, prime_bits: primeBits, packing_kind: kind, packing_shape: shape } = fields;
  const levels = Math.max(1, primeBits.length - 1);
  const ciphertexts = shape[kind === "slots" ? 1 : 0];
  const size = (/** @type {number} */ primes) => 8 * degree * primes;
  const keys = fields.rotation_levels.map(([, level]) => level);
  if (fields.relin_level > 0) keys.push(fields.relin_level);
  const plan = {
    ...fields,
    digest: new Uint8Array(32),
    classes: fields.logits === 1 ? 2 : fields.logits,
    levels,
    ciphertexts,
    publicBytes: keys.reduce(
      (sum, level) => sum + level * (size(level + 1) + SEED_BYTES),
      OVERHEAD + SESSION_KEY_BYTES + size(primeBits.length) + SEED_BYTES,
    ),
    queryBytes: OVERHEAD + ciphertexts * (size(levels) + SEED_BYTES),
    answerBytes:
      OVERHEAD +
      (kind === "batch"
        ? fields.logits * 2 * size(fields.answer_level)
        : fields.answers.length * size(fields.answer_level) +
          8 * fields.answer_level * fields.logits),
  };
  consistent(plan);
  return plan;
}

/** @param {Plan} plan */
function consistent(plan) {
  const { degree, packing_kind: kind, packing_shape: shape, levels } = plan;
  const modulus = plan.prime_bits.reduce((sum, each) => sum + each, 0);
  const allowed = MAX_MODULUS_BITS[degree];
  refuse(modulus > allowed, `its primes have ${modulus} bits; 128 bits of security need ${allowed}`);
  refuse(plan.multi_label && plan.logits < 2, "it has several labels and one logit");
  const batch = kind === "batch";
  const room = plan.relin_level ? degree / 2 : degree;
  const elements = plan.input_shape.reduce((product, size) => product * size, 1);
  refuse(batch !== plan.batch_size > 1 || plan.batch_size > room, "its batch does not fit");
  const dimensions = { slots: 3, coefficients: 2, batch: 1 }[kind];
  const last = shape[shape.length - 1];
  const fits = {
    slots: shape[0] <= 2 && last === degree / 2,
    coefficients: last <= degree,
    batch: shape[0] === elements && plan.packing === "",
  }[kind];
  refuse(shape.length !== dimensions || !fits, "its packing does not fit");
  const places = shape.reduce((product, size) => product * size, 1);
  refuse(!batch && places > MAX_PLACES, "its packing is too large");
  const read = plan.answers.flat();
  refuse(read.length !== (batch ? 0 : plan.logits), "its answers do not hold all logits");
  refuse(read.some((position) => position >= degree), "its answers are read beyond their end");
  refuse(plan.answer_level > levels || plan.relin_level > levels, "it has a level too many");
  plan.rotation_levels.forEach(([element, level], n) => {
    const before = n === 0 ? 0 : plan.rotation_levels[n - 1][0];
    const fine = element % 2 === 1 && element < 2 * degree && element > before && level <= levels;
    refuse(!fine, "its rotations are none of this ring");
  });
  const switched = plan.relin_level > 0 || plan.rotation_levels.length > 0;
  refuse(switched && plan.prime_bits.length < 2, "it lacks the prime that its keys need");
  const names = plan.class_names;
  refuse(![0, plan.classes].includes(names.length), "it does not name all classes");
  refuse(new Set(names).size !== names.length, "it names two classes alike");
  const features = plan.feature_names ?? [];
  refuse(![0, elements].includes(features.length), "it does not name all features");
  refuse(new Set(features).size !== features.length, "it names two features alike");
}

/** @param {boolean} wrong @param {string} reason */
function refuse(wrong, reason) {
  if (wrong) throw new PlanError(`the plan is refused: ${reason}`);
}

/** @param {Plan} plan @param {Contract} contract */
function agree(plan, contract) {
  const { inputShape: shape, inputRange, classes, multiLabel = false } = contract;
  refuse(plan.input_shape.join() !== shape.join(), "it is for inputs of another shape");
  refuse(plan.classes !== classes, `it has ${plan.classes} classes, not ${classes}`);
  refuse(plan.multi_label !== multiLabel, "it decides about labels otherwise than expected");
  const theirs = bounds(plan.input_range, shape);
  const ours = bounds(inputRange, shape).map((ends, n) => ends.map((end) => single(end, n ? 1 : -1)));
  const alike = theirs.every((end, n) => end.every((value, at) => value === ours[n][at]));
  refuse(!alike, "it is for inputs in another range");
  const ourNames = contract.featureNames ?? [];
  const others = ourNames.length > 0 && plan.feature_names?.some((each, n) => each !== ourNames[n]);
  refuse(others === true, "its features have other names, or another order");
  for (let n = 0; n < theirs[0].length; n++) {
    refuse(theirs[0][n] >= theirs[1][n], "it has an empty range");
  }
  refuse(plan.parties.length > 0, "it is for encrypted weights, which this page does not ask");
  refuse(plan.input_scale_bits < 0, "its inputs keep no precision");
  const [centre, radius] = toUnit(plan.input_range, shape);
  const largest = theirs.reduce(
    (most, end) => end.reduce((m, x, n) => Math.max(m, Math.abs((x - centre[n]) / radius[n])), most),
    1,
  );
  const room = plan.prime_bits.slice(0, plan.levels).reduce((sum, each) => sum + each, 0);
  const needed = plan.input_scale_bits + Math.log2(largest) + MARGIN_BITS;
  refuse(needed > room, "large inputs could overflow under it");
  const bytes = plan.publicBytes + plan.queryBytes;
  const most = contract.maxBytes ?? MAX_ROUND_BYTES;
  refuse(bytes > most, `keys and one question take ${bytes} bytes, ${most} are allowed`);
}

/**
 * Lowest and highest value of each element of an input, flat.
 * @param {[Bound, Bound]} range @param {number[]} shape
 * @returns {Float64Array[]}
 */
export function bounds(range, shape) {
  return range.map((end) => {
    /** @type {number[]} */
    const flat = [];
    fill(end, shape, depth(end), flat);
    return Float64Array.from(flat);
  });
}

/**
 * The end of a range as plans have it: the nearest number of single precision that is not inside it,
 * or the end itself where there is none.
 * @param {number} end @param {-1 | 1} outward
 */
function single(end, outward) {
  const near = Math.fround(end);
  if (outward * near >= outward * end) return Number.isFinite(near) ? near : end;
  if (near === 0) return outward * 2 ** -149;
  const bits = new Int32Array(Float32Array.of(near).buffer);
  bits[0] += near > 0 === outward > 0 ? 1 : -1;
  return new Float32Array(bits.buffer)[0];
}

/** @param {Bound} end @returns {number} */
function depth(end) {
  return Array.isArray(end) ? 1 + depth(end[0]) : 0;
}

/** @param {Bound} end @param {number[]} shape @param {number} deep @param {number[]} flat */
function fill(end, shape, deep, flat) {
  if (shape.length === 0) {
    flat.push(/** @type {number} */ (end));
    return;
  }
  for (let n = 0; n < shape[0]; n++) {
    if (deep < shape.length || !Array.isArray(end)) fill(end, shape.slice(1), deep, flat);
    else fill(end[end.length === 1 ? 0 : n], shape.slice(1), deep - 1, flat);
  }
}

/**
 * Centre and radius of each element: (x - centre)/radius is encrypted where features have ranges of
 * their own, the input itself elsewhere.
 * @param {[Bound, Bound]} range @param {number[]} shape
 */
export function toUnit(range, shape) {
  const [low, high] = bounds(range, shape);
  if (!Array.isArray(range[0])) {
    return [new Float64Array(low.length), new Float64Array(low.length).fill(1)];
  }
  return [low.map((end, n) => end / 2 + high[n] / 2), low.map((end, n) => high[n] / 2 - end / 2)];
}

/**
 * Which input goes to which slot or coefficient, flat, in the order of `packing_shape`.
 * @param {Plan} plan
 */
export async function taps(plan) {
  const places = plan.packing_shape.reduce((product, size) => product * size, 1);
  const bytes = new Uint8Array(4 * places);
  let filled = 0;
  try {
    const packed = Uint8Array.from(atob(plan.packing), (each) => each.charCodeAt(0));
    const plain = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const reader = plain.getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      if (filled + part.value.length > bytes.length) throw new Error("too long");
      bytes.set(part.value, filled);
      filled += part.value.length;
    }
  } catch {
    filled = -1;
  }
  refuse(filled !== bytes.length, "its packing cannot be read");
  const result = new Int32Array(bytes.buffer);
  const elements = plan.input_shape.reduce((product, size) => product * size, 1);
  refuse(result.some((tap) => tap < EMPTY || tap >= elements), "its packing names other inputs");
  return result;
}
