/** What the owner refuses, each with a sentence for people. */

/** The service's plan is refused: nothing is made of it. */
export class PlanError extends Error {
  name = "PlanError";
}

/** A message is refused: truncated, altered, of other keys, or answered before. */
export class MessageError extends Error {
  name = "MessageError";
}

/** An input does not fit the plan. */
export class InputError extends Error {
  name = "InputError";
}

/** The plan cannot carry a release policy, or a key has released all that it may. */
export class ReleaseError extends Error {
  name = "ReleaseError";
}

/** Kept keys cannot be used. */
export class SecretsError extends Error {
  name = "SecretsError";
}
