/** @param {Plan} plan @returns {Policy} */
export function usualPolicy(plan: Plan): Policy;
/** @param {Policy} policy @param {Plan} plan */
export function checkPolicy(policy: Policy, plan: Plan): void;
/**
 * The noise's standard deviation: Li, Micciancio, Schultz and Sorrell 2022, the Gaussian mechanism.
 * @param {Policy} policy @param {Plan} plan
 */
export function floodingNoise({ statisticalBits, queries }: Policy, plan: Plan): number;
/**
 * The answer from logits, after `released` earlier ones under the same key.
 * @param {Policy} policy @param {number[][]} exact (inputs, logits) @param {Plan} plan
 * @param {number} released @returns {Answer}
 */
export function release(policy: Policy, exact: number[][], plan: Plan, released: number): Answer;
export type Plan = import("./plan.js").Plan;
export type Policy = {
    kind: "class" | "top" | "labels" | "rounded" | "flooded";
    /**
     * where a single logit, or each label, decides
     */
    threshold?: number | undefined;
    /**
     * of "top"
     */
    count?: number | undefined;
    /**
     * of "rounded"
     */
    decimals?: number | undefined;
    /**
     * of "flooded"
     */
    statisticalBits?: number | undefined;
    /**
     * of "flooded", a key
     */
    queries?: number | undefined;
};
/**
 * one entry an input
 */
export type Answer = {
    labels: number[];
    names: string[] | null;
    top: number[][] | null;
    labelSets: number[][] | null;
    logits: number[][] | null;
};
