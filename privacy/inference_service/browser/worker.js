/**
 * The worker: it alone holds the secret key. Answers, questions and public material leave it; keys
 * that are kept go to the vault, before a question or an answer that they count does.
 */

import { SecretsError } from "./owner/errors.js";
import { DataOwner } from "./owner/owner.js";
import { acceptPlan } from "./owner/plan.js";
import { Vault } from "./vault.js";

/** @type {DataOwner | undefined} */
let owner;
/** @type {import("./owner/plan.js").Plan | undefined} */
let plan;
/** @type {import("./owner/release.js").Policy | undefined} */
let policy;
/** @type {Vault | undefined} */
let vault;
/** Of the public keys at the service. */
let keyName = "";

/** @template T @param {T | undefined} value @param {string} name @returns {T} */
function present(value, name) {
  if (!value) throw new Error(`there is no ${name}`);
  return value;
}

/** The place where keys are kept, which this tab alone uses from now on. @param {string} service */
async function ours(service) {
  vault ??= await Vault.of(service);
  if (await vault.mine()) return vault;
  throw new SecretsError("another tab uses the keys that are kept here; close it first");
}

/** Keep what has changed, where keys are kept. @param {string} [passphrase] to begin so */
async function keep(passphrase) {
  if (!vault || (!vault.open && !passphrase)) return;
  const { plan: { digest }, secrets, counts } = present(owner, "key");
  await vault.keep({ name: keyName, digest, secrets, counts }, passphrase);
}

/** @type {Record<string, (argument: any) => Promise<any>>} */
const CALLS = {
  async open({ text, contract, release }) {
    plan = await acceptPlan(text, contract);
    policy = release;
    const { packing: _, ...shown } = plan;
    return shown;
  },
  async kept({ service }) {
    vault ??= await Vault.of(service);
    if (!(await vault.full())) return "none";
    return (await vault.mine()) ? "here" : "elsewhere";
  },
  async unlock({ service, passphrase }) {
    const now = present(plan, "plan");
    const { name, secrets, counts } = await (await ours(service)).unlock(passphrase, now.digest);
    owner = await DataOwner.restore(now, policy, secrets, counts);
    keyName = name;
    return name;
  },
  async keep({ service, passphrase }) {
    if (!passphrase) throw new SecretsError("give a passphrase, under which keys are kept");
    await ours(service);
    await keep(passphrase);
  },
  async forget({ service }) {
    await (await ours(service)).forget();
  },
  async material({ binding }) {
    const fresh = await DataOwner.create(present(plan, "plan"), policy);
    const material = await fresh.publicMaterial(binding);
    owner = fresh;
    return material;
  },
  async named({ name }) {
    keyName = name;
    await keep();
  },
  async encrypt({ inputs }) {
    const query = await present(owner, "key").encrypt(inputs);
    await keep();
    return query;
  },
  async decrypt({ answer }) {
    const now = present(owner, "key");
    try {
      return await now.decrypt(answer);
    } finally {
      await keep();
    }
  },
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
