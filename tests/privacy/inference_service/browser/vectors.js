// Computes every entry of docs/reference/wire-vectors.json again, with the page's own modules.

import { Packer, readLogits } from "/browser/owner/codec.js";
import { SecretKey } from "/browser/owner/keys.js";
import { fromHex, HEADER_BYTES, openAnswer, OVERHEAD, sealMessage, sessionKey, TAGS, toHex } from "/browser/owner/messages.js";
import { acceptPlan, taps } from "/browser/owner/plan.js";
import { writeResidues } from "/browser/owner/residues.js";
import { Ring } from "/browser/owner/ring.js";
import { expand } from "/browser/owner/seeds.js";

const whole = (size, rule) => Float64Array.from({ length: size }, (_, n) => rule(n));
export const secretOf = (size) => whole(size, (n) => ((31 * n * n + 17 * n + 5) % 97) % 3 - 1);
const errorOf = (size) => whole(size, (n) => ((37 * n + 11) % 43) - 21);
const valuesOf = (size) => whole(size, (n) => (((29 * n + 13) % 101) - 50) / 64);
const residuesOf = (size, prime) => whole(size, (n) => (n * n * 12345 + n) % prime);

async function sha256(bytes) {
  return toHex(await crypto.subtle.digest("SHA-256", bytes));
}

async function hashed(rows) {
  const bytes = new Uint8Array(rows.reduce((sum, row) => sum + 8 * row.length, 0));
  let offset = 0;
  for (const row of rows) {
    writeResidues(row, bytes, offset);
    offset += 8 * row.length;
  }
  return sha256(bytes);
}

function contract(text) {
  const plan = JSON.parse(text);
  return { inputShape: plan.input_shape, inputRange: plan.input_range, classes: plan.logits === 1 ? 2 : plan.logits, multiLabel: plan.multi_label };
}

/** What the modules compute, in the shape of the vectors. */
export async function computed(given) {
  const seed = fromHex(given.seed);
  const key = await sessionKey(fromHex(given.session_key));
  const result = { ...given };
  result.rings = [];
  for (const { degree, prime_bits } of given.rings) {
    const ring = new Ring(degree, prime_bits);
    const secret = new SecretKey(ring, secretOf(degree));
    const transformed = [];
    for (const row of secret.residues) transformed.push(await hashed([row]));
    const roots = ring.transforms.map((each) => each.root);
    result.rings.push({ degree, prime_bits, primes: ring.primes, roots, transformed_secret: transformed });
  }
  result.expansion = [];
  for (const { degree, primes } of given.expansion) {
    const rows = await expand(seed, primes, degree);
    const first = rows.map((row) => row[0]);
    const last = rows.map((row) => row[degree - 1]);
    result.expansion.push({ degree, primes, first, last, sha256: await hashed(rows) });
  }
  {
    const { degree, places } = given.embedding;
    const real = valuesOf(degree / 2);
    const { embedding } = new Ring(degree, [27]);
    const coefficients = embedding.coefficients({ real, imaginary: real.slice().reverse() });
    result.embedding = { degree, places, coefficients: places.map((n) => coefficients[n]) };
  }
  const plans = {};
  result.plans = {};
  for (const [kind, { text }] of Object.entries(given.plans)) {
    const plan = (plans[kind] = await acceptPlan(text, contract(text)));
    result.plans[kind] = {
      text,
      digest: toHex(plan.digest),
      public_bytes: plan.publicBytes,
      query_bytes: plan.queryBytes,
      answer_bytes: plan.answerBytes,
      taps: kind === "batch" ? null : await sha256((await taps(plan)).buffer),
    };
  }
  {
    const sealed = async (tag, id, binding) => {
      const message = new Uint8Array(OVERHEAD + 4);
      message.set(new TextEncoder().encode("body"), HEADER_BYTES);
      return toHex(await sealMessage(message, tag, plans.slots, id, key, binding));
    };
    result.message = {
      plan: "slots",
      body: given.message.body,
      query_258: await sealed(TAGS.query, 258),
      material: await sealed(TAGS.material, 0, fromHex(given.binding)),
    };
  }
  {
    const { degree, prime_bits, scale_bits } = given.encryption;
    const ring = new Ring(degree, prime_bits);
    const secret = new SecretKey(ring, secretOf(degree));
    const error = errorOf(degree);
    const uniform = (places) => expand(seed, places.map((place) => ring.primes[place]), degree);
    const masked = async (places, begun) => hashed(secret.encrypted(begun, await uniform(places), places));
    const part = async (level, index, other) => {
      const places = ring.extended(level);
      return hashed(secret.switching(other, index, error, await uniform(places), places));
    };
    const values = valuesOf(degree);
    result.encryption = {
      degree,
      prime_bits,
      scale_bits,
      query: await masked([0, 1], [0, 1].map((n) => ring.encoded(values, scale_bits, error, n))),
      public: await masked([0, 1, 2], [0, 1, 2].map((n) => ring.transformed(error, n))),
      relinearisation_level_2_part_1: await part(2, 1, secret.squared(1)),
      rotation_5_level_1_part_0: await part(1, 0, secret.rotated(5, 0)),
    };
  }
  result.answers = {};
  for (const [kind, plan] of Object.entries(plans)) {
    const ring = new Ring(plan.degree, plan.prime_bits);
    const secret = new SecretKey(ring, secretOf(plan.degree));
    const primes = ring.primes.slice(0, plan.answer_level);
    const message = new Uint8Array(plan.answerBytes);
    let offset = HEADER_BYTES;
    const put = (row) => {
      writeResidues(row, message, offset);
      offset += 8 * row.length;
    };
    const polynomial = () => primes.forEach((prime) => put(residuesOf(plan.degree, prime)));
    if (kind === "batch") for (let n = 0; n < 2 * plan.logits; n++) polynomial();
    for (const positions of plan.answers) {
      polynomial();
      for (const position of positions) {
        for (const prime of primes) put(Float64Array.of((997 * position) % prime));
      }
    }
    await sealMessage(message, TAGS.answer, plan, 0, key);
    const { body } = await openAnswer(message, plan, key);
    const logits = readLogits(plan, secret, body).slice(0, kind === "batch" ? 2 : 1);
    result.answers[kind] = { sha256: await sha256(message), logits };
  }
  return result;
}

/** "accepted", or why a plan is refused under a contract. */
export async function accepted(text, contract) {
  return acceptPlan(text, contract).then(
    () => "accepted",
    (error) => error.message,
  );
}

/** Public material and a query under the vectors' secret key, as hexadecimal digits. */
export async function messages(text, secretKey, inputs, binding) {
  const { DataOwner } = await import("/browser/owner/owner.js");
  const plan = await acceptPlan(text, contract(text));
  const ring = new Ring(plan.degree, plan.prime_bits);
  const session = fromHex(secretKey);
  const secret = new SecretKey(ring, secretOf(plan.degree));
  const packer = await Packer.of(plan, ring);
  const policy = { kind: "class" };
  const owner = new DataOwner(plan, policy, secret, packer, session, await sessionKey(session));
  globalThis.owner = owner;
  return [await owner.publicMaterial(fromHex(binding)), await owner.encrypt(inputs)].map(toHex);
}
