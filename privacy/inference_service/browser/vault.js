/**
 * Keys that last over a reload: in IndexedDB, encrypted under a passphrase.
 *
 * AES-256-GCM under a key from PBKDF2-HMAC-SHA-256 of 600,000 iterations (OWASP 2023: the strongest
 * that WebCrypto has). *Guarantee.* Whoever gets the stored bytes learns nothing of the keys without
 * the passphrase, and cannot alter them unnoticed. *Assumptions.* The passphrase is hard to guess;
 * code of this origin is honest. *Not covered.* An older copy put back in its place: limits of
 * release then count from there, while the service refuses questions whose numbers it has seen.
 */

import { SecretsError } from "./owner/errors.js";
import { randomBytes } from "./owner/randomness.js";

/** @typedef {import("./owner/owner.js").Secrets} Secrets */
/** @typedef {import("./owner/owner.js").Counts} Counts */
/**
 * @typedef {object} Stored
 * @property {Uint8Array<ArrayBuffer>} digest of the plan
 * @property {string} name of the public keys at the service
 * @property {Uint8Array<ArrayBuffer>} salt @property {Uint8Array<ArrayBuffer>} nonce
 * @property {ArrayBuffer} sealed counts and secrets
 */

const DATABASE = "bloomseal";
const STORE = "keys of release 1";
const ITERATIONS = 600_000;
const SALT_BYTES = 16;
const NONCE_BYTES = 12;
const COUNTS_BYTES = 16;
const SESSION_BYTES = 32;
const NO_STORE = "this browser stores nothing for this page";
/** A tab that is being reloaded needs a moment until it lets go. */
const PATIENCE_MILLISECONDS = 1000;

export class Vault {
  #database;
  #service;
  /** @type {CryptoKey | undefined} */
  #key;
  #salt = randomBytes(SALT_BYTES);
  /** @type {Promise<boolean> | undefined} */
  #mine;

  /** @param {IDBDatabase} database @param {string} service */
  constructor(database, service) {
    this.#database = database;
    this.#service = service;
  }

  /**
   * The place for one service's keys, which one tab uses at a time.
   * @param {string} service its address
   */
  static async of(service) {
    try {
      const request = indexedDB.open(DATABASE, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(STORE);
      return new Vault(await done(request), service);
    } catch {
      throw new SecretsError(NO_STORE);
    }
  }

  /** Whether keys are stored. */
  async full() {
    return (await this.#stored()) !== undefined;
  }

  /** Whether this tab may use the place; from then on no other may. */
  mine() {
    this.#mine ??= new Promise((resolve) => {
      const signal = AbortSignal.timeout(PATIENCE_MILLISECONDS);
      const holding = () => new Promise(() => resolve(true));
      navigator.locks
        .request(`${DATABASE} ${this.#service}`, { signal }, holding)
        .catch(() => {
          this.#mine = undefined;
          resolve(false);
        });
    });
    return this.#mine;
  }

  /** Whether keys are kept here from now on. */
  get open() {
    return this.#key !== undefined;
  }

  /**
   * Store keys and counts in the place of those before; under the passphrase given, or given before.
   * @param {{name: string, digest: Uint8Array<ArrayBuffer>, secrets: Secrets, counts: Counts}} keys
   * @param {string} [passphrase]
   */
  async keep({ name, digest, secrets, counts }, passphrase) {
    if (passphrase) {
      this.#salt = randomBytes(SALT_BYTES);
      this.#key = await derived(passphrase, this.#salt);
    }
    if (!this.#key) throw new SecretsError("no keys are kept here");
    const bytes = new Uint8Array(COUNTS_BYTES + SESSION_BYTES + secrets.coefficients.length);
    new Float64Array(bytes.buffer, 0, 2).set([counts.nextId, counts.released]);
    bytes.set(secrets.session, COUNTS_BYTES);
    new Int8Array(bytes.buffer).set(secrets.coefficients, COUNTS_BYTES + SESSION_BYTES);
    const nonce = randomBytes(NONCE_BYTES);
    const how = { name: "AES-GCM", iv: nonce, additionalData: digest };
    const sealed = await crypto.subtle.encrypt(how, this.#key, bytes);
    const stored = { digest, name, salt: this.#salt, nonce, sealed };
    await this.#changed((store) => store.put(stored, this.#service));
  }

  /**
   * The stored keys. Those of another plan are of no use, and are deleted.
   * @param {string} passphrase @param {Uint8Array<ArrayBuffer>} digest
   * @returns {Promise<{name: string, secrets: Secrets, counts: Counts}>}
   */
  async unlock(passphrase, digest) {
    const stored = await this.#stored();
    if (!stored) throw new SecretsError("no keys are kept here");
    const { name, salt, nonce, sealed } = stored;
    if (!stored.digest.every((each, n) => each === digest[n])) {
      await this.forget();
      throw new SecretsError(
        "the model has changed since these keys were made, and they were deleted; make new ones",
      );
    }
    const key = await derived(passphrase, salt);
    const how = { name: "AES-GCM", iv: nonce, additionalData: digest };
    const bytes = await crypto.subtle.decrypt(how, key, sealed).catch(() => {
      throw new SecretsError("the kept keys do not open: another passphrase, or damaged keys");
    });
    this.#key = key;
    this.#salt = salt;
    const [nextId, released] = new Float64Array(bytes, 0, 2);
    const end = COUNTS_BYTES + SESSION_BYTES;
    const session = new Uint8Array(bytes.slice(COUNTS_BYTES, end));
    const coefficients = new Int8Array(bytes.slice(end));
    return { name, secrets: { session, coefficients }, counts: { nextId, released } };
  }

  /** Delete the stored keys, and keep none from now on. */
  async forget() {
    this.#key = undefined;
    await this.#changed((store) => store.delete(this.#service));
  }

  /** @returns {Promise<Stored | undefined>} */
  #stored() {
    return done(this.#database.transaction(STORE).objectStore(STORE).get(this.#service));
  }

  /** On the disk when it is fulfilled. @param {(store: IDBObjectStore) => void} change */
  #changed(change) {
    const transaction = this.#database.transaction(STORE, "readwrite", { durability: "strict" });
    change(transaction.objectStore(STORE));
    return new Promise((resolve, reject) => {
      transaction.oncomplete = () => resolve(undefined);
      transaction.onabort = () => reject(new SecretsError(NO_STORE));
    });
  }
}

/** @template T @param {IDBRequest<T>} request @returns {Promise<T>} */
function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(new SecretsError(NO_STORE));
  });
}

/** @param {string} passphrase @param {Uint8Array<ArrayBuffer>} salt */
async function derived(passphrase, salt) {
  const text = new TextEncoder().encode(passphrase);
  const from = await crypto.subtle.importKey("raw", text, "PBKDF2", false, ["deriveKey"]);
  const how = { name: "PBKDF2", hash: "SHA-256", salt, iterations: ITERATIONS };
  const kind = { name: "AES-GCM", length: 256 };
  return crypto.subtle.deriveKey(how, from, kind, false, ["encrypt", "decrypt"]);
}
