/** The worker: it alone holds the secret key. Answers, questions and public material leave it. */

import { DataOwner } from "./owner/owner.js";
import { acceptPlan } from "./owner/plan.js";

/** @type {DataOwner | undefined} */
let owner;
/** @type {import("./owner/plan.js").Plan | undefined} */
let plan;
/** @type {import("./owner/release.js").Policy | undefined} */
let policy;

function present() {
  if (!owner) throw new Error("there are no keys");
  return owner;
}

/** @type {Record<string, (argument: any) => Promise<any>>} */
const CALLS = {
  async open({ text, contract, release }) {
    plan = await acceptPlan(text, contract);
    policy = release;
    const { packing: _, ...shown } = plan;
    return shown;
  },
  async material({ binding }) {
    if (!plan) throw new Error("there is no plan");
    owner = await DataOwner.create(plan, policy);
    return owner.publicMaterial(binding);
  },
  encrypt: ({ inputs }) => present().encrypt(inputs),
  decrypt: ({ answer }) => present().decrypt(answer),
};

addEventListener("message", async ({ data: { id, call, argument } }) => {
  const began = performance.now();
  try {
    const value = await CALLS[call](argument);
    const moved = value instanceof Uint8Array ? [value.buffer] : [];
    const milliseconds = performance.now() - began;
    postMessage({ id, value, milliseconds }, { transfer: moved });
  } catch (error) {
    const { name, message } = /** @type {Error} */ (error);
    postMessage({ id, refusal: { name, message } });
  }
});
