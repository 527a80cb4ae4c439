/**
 * Read a plan and refuse one that is none, or could harm.
 * @param {string} received @param {Contract} contract
 * @returns {Promise<Plan>}
 */
export function acceptPlan(received: string, contract: Contract): Promise<Plan>;
/**
 * SHA-256 of the plan's text with 0.0 as its predicted time. The text is hashed as it came: a number
 * such as 1.0 is written otherwise here than in Python.
 * @param {string} received
 */
export function digestOf(received: string): Promise<Uint8Array<ArrayBuffer>>;
/**
 * Lowest and highest value of each element of an input, flat.
 * @param {[Bound, Bound]} range @param {number[]} shape
 * @returns {Float64Array[]}
 */
export function bounds(range: [Bound, Bound], shape: number[]): Float64Array[];
/**
 * Centre and radius of each element: (x - centre)/radius is encrypted where features have ranges of
 * their own, the input itself elsewhere.
 * @param {[Bound, Bound]} range @param {number[]} shape
 */
export function toUnit(range: [Bound, Bound], shape: number[]): Float64Array<ArrayBuffer>[];
/**
 * Which input goes to which slot or coefficient, flat, in the order of `packing_shape`.
 * @param {Plan} plan
 */
export function taps(plan: Plan): Promise<Int32Array<ArrayBuffer>>;
export const MAX_ROUND_BYTES: 20000000;
export const EMPTY: -1;
/**
 * a number, or numbers in lists that broadcast to the input's shape
 */
export type Bound = number | any[];
/**
 * what the owner knows of its inputs and classes, not by the plan's word
 */
export type Contract = {
    inputShape: number[];
    /**
     * lowest and highest values
     */
    inputRange: [Bound, Bound];
    classes: number;
    multiLabel?: boolean | undefined;
    /**
     * of keys and one question
     */
    maxBytes?: number | undefined;
    /**
     * of an input's elements, in their order
     */
    featureNames?: string[] | undefined;
};
export type PlanFields = {
    input_shape: number[];
    input_range: [Bound, Bound];
    logits: number;
    degree: number;
    prime_bits: number[];
    input_scale_bits: number;
    answer_scale_bits: number;
    answer_level: number;
    logit_bits: number;
    headroom_bits: number;
    error_bits: number;
    worst_error_bits: number;
    batch_size: number;
    packing_kind: "slots" | "coefficients" | "batch";
    packing: string;
    packing_shape: number[];
    answers: number[][];
    rotation_levels: [number, number][];
    relin_level: number;
    operations: Record<string, number>;
    predicted_ms: number;
    model_version: string;
    parties: string[];
    blind_layers: any[];
    blind_sources: number[];
    multi_label: boolean;
    class_names: string[];
    /**
     * where the plan names any
     */
    feature_names?: string[] | undefined;
};
export type Derived = {
    digest: Uint8Array<ArrayBuffer>;
    classes: number;
    levels: number;
    ciphertexts: number;
    publicBytes: number;
    queryBytes: number;
    answerBytes: number;
};
export type Plan = PlanFields & Derived;
