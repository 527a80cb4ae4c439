/** A request that was refused or failed. */
export class ServiceError extends Error {
    /** @param {string} code @param {number} status @param {string} message @param {number} [wait] */
    constructor(code: string, status: number, message: string, wait?: number);
    code: string;
    status: number;
    wait: number;
}
export class OwnerSession {
    /**
     * @param {object} options
     * @param {string} [options.service] its address; "" where it serves the page
     * @param {string} [options.token]
     * @param {import("./owner/plan.js").Contract} options.contract what its plan must agree with
     * @param {import("./owner/release.js").Policy} [options.release]
     * @param {Worker} [options.worker] that runs `worker.js`, where that is not beside this module
     * @param {(step: Step) => void} [options.onStep]
     * @param {(seconds: number) => void} [options.onWait] where the service is busy
     */
    constructor({ service, token, contract, release, worker, onStep, onWait, }: {
        service?: string | undefined;
        token?: string | undefined;
        contract: import("./owner/plan.js").Contract;
        release?: import("./owner/release.js").Policy | undefined;
        worker?: Worker | undefined;
        onStep?: ((step: Step) => void) | undefined;
        onWait?: ((seconds: number) => void) | undefined;
    });
    /** The plan, checked. @returns {Promise<Plan>} */
    plan(): Promise<Plan>;
    /** Make keys and send the public ones, unless that is done. */
    prepare(): Promise<import("./owner/plan.js").Plan>;
    /**
     * Ask about one input.
     * @param {ArrayLike<number>} input flat, in the contract's range
     * @returns {Promise<{answer: Answer, query: Uint8Array<ArrayBuffer>}>} the query as the service received it
     */
    ask(input: ArrayLike<number>): Promise<{
        answer: Answer;
        query: Uint8Array<ArrayBuffer>;
    }>;
    /**
     * Whether keys of this service are stored in this browser: for this tab, or in use by another.
     * @returns {Promise<"none" | "here" | "elsewhere">}
     */
    kept(): Promise<"none" | "here" | "elsewhere">;
    /** Use the stored keys, and store what becomes of them. @param {string} passphrase */
    unlock(passphrase: string): Promise<void>;
    /**
     * Store the keys, and those after them, in IndexedDB under a passphrase; with their counts, so
     * that a reload resets no limit of release.
     * @param {string} passphrase
     */
    keep(passphrase: string): Promise<void>;
    /** Delete the stored keys; those in use last until `end`. */
    forget(): Promise<void>;
    /** Forget the secret key, and have the service forget the public ones, unless they are kept. */
    end(): void;
    #private;
}
export type Plan = import("./owner/plan.js").Plan;
export type Answer = import("./owner/release.js").Answer;
export type Step = {
    name: string;
    milliseconds: number;
    bytes: number;
    evaluation?: number;
};
