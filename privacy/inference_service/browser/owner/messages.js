/**
 * Messages: a header, a body whose length the plan fixes, and an HMAC-SHA256 over both and over what
 * the message is bound to.
 *
 *     magic 4 | version 1 | tag 1 | plan digest 32 | model version 16 | query id 8 | length 8
 */

import { MessageError } from "./errors.js";

/** @typedef {import("./plan.js").Plan} Plan */

export const HEADER_BYTES = 70;
export const MAC_BYTES = 32;
export const OVERHEAD = HEADER_BYTES + MAC_BYTES;
const MAGIC = "BSHE";
const VERSION = 3;
export const TAGS = { material: 1, query: 2, answer: 3 };
const HMAC = { name: "HMAC", hash: "SHA-256" };

/** @param {Uint8Array<ArrayBuffer>} key @returns {Promise<CryptoKey>} */
export function sessionKey(key) {
  return crypto.subtle.importKey("raw", key, HMAC, false, ["sign", "verify"]);
}

/** @param {string} digits */
export function fromHex(digits) {
  return Uint8Array.from(digits.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}

/** @param {ArrayBuffer | Uint8Array<ArrayBuffer>} bytes */
export function toHex(bytes) {
  return Array.from(new Uint8Array(bytes), (each) => each.toString(16).padStart(2, "0")).join("");
}

/**
 * Frame and authenticate a body, which fills `message` from HEADER_BYTES on but for MAC_BYTES.
 * @param {Uint8Array<ArrayBuffer>} message changed
 * @param {number} tag @param {Plan} plan @param {number} queryId
 * @param {CryptoKey} key @param {Uint8Array<ArrayBuffer>} [binding]
 */
export async function sealMessage(message, tag, plan, queryId, key, binding = new Uint8Array()) {
  const view = new DataView(message.buffer, message.byteOffset);
  const length = message.length - OVERHEAD;
  for (let n = 0; n < 4; n++) message[n] = MAGIC.charCodeAt(n);
  message[4] = VERSION;
  message[5] = tag;
  message.set(plan.digest, 6);
  message.set(fromHex(plan.model_version), 38);
  view.setBigUint64(54, BigInt(queryId), true);
  view.setBigUint64(62, BigInt(length), true);
  const signed = new Uint8Array(HEADER_BYTES + length + binding.length);
  signed.set(message.subarray(0, HEADER_BYTES + length));
  signed.set(binding, HEADER_BYTES + length);
  message.set(new Uint8Array(await crypto.subtle.sign("HMAC", key, signed)), HEADER_BYTES + length);
  return message;
}

/**
 * Check an answer; its query's id and its body.
 * @param {Uint8Array<ArrayBuffer>} message @param {Plan} plan @param {CryptoKey} key
 * @returns {Promise<{queryId: number, body: Uint8Array<ArrayBuffer>}>}
 */
export async function openAnswer(message, plan, key) {
  const size = plan.answerBytes;
  if (message.length !== size) {
    throw new MessageError(
      `an answer of this plan has ${size} bytes, this one ${message.length}; it was cut or changed`,
    );
  }
  const view = new DataView(message.buffer, message.byteOffset, message.length);
  const magic = String.fromCharCode(...message.subarray(0, 4));
  if (magic !== MAGIC || message[4] !== VERSION) {
    throw new MessageError("not a message of this release's format");
  }
  if (message[5] !== TAGS.answer) throw new MessageError("the message is not an answer");
  if (!equal(message.subarray(6, 38), plan.digest)) {
    throw new MessageError("the answer belongs to another plan");
  }
  if (!equal(message.subarray(38, 54), fromHex(plan.model_version))) {
    throw new MessageError("the answer belongs to another version of the model");
  }
  if (view.getBigUint64(62, true) !== BigInt(size - OVERHEAD)) {
    throw new MessageError("the answer declares another length than the plan");
  }
  const end = size - MAC_BYTES;
  const mac = message.slice(end);
  if (!(await crypto.subtle.verify("HMAC", key, mac, message.slice(0, end)))) {
    throw new MessageError("the answer was altered: its authentication code does not match");
  }
  const queryId = Number(view.getBigUint64(54, true));
  return { queryId, body: message.subarray(HEADER_BYTES, end) };
}

/** @param {Uint8Array<ArrayBuffer>} one @param {Uint8Array<ArrayBuffer>} other */
function equal(one, other) {
  return one.length === other.length && one.every((each, n) => each === other[n]);
}
