"""One encrypted question to an evaluator before anybody else asks."""

import numpy as np

from privacy.inference.errors import CannotPlanError, MessageError
from privacy.inference.evaluator.process import EvaluatorProcess
from privacy.inference.owner.owner import ThrowAwayOwner


def check_evaluation(process: EvaluatorProcess) -> None:
    """Ask a process a question under keys that are thrown away.

    What only shows when a query is evaluated shows here, and not to the first owner who asks.
    Whether the answer is right is for a certificate: nobody here knows the model.

    Raises
    ------
    CannotPlanError
        If the answer is none that the plan allows.
    EvaluatorFailedError
        If the process ended over it, with its last words.
    """
    plan = process.plan
    owner = ThrowAwayOwner(plan)
    middle = np.full(plan.input_shape, sum(plan.input_range) / 2)
    try:
        process.use_keys(owner.public_material())
        answer, _ = process.evaluate(owner.encrypt(middle if plan.batch_size == 1 else [middle]))
        logits = owner.logits(answer)
        process.forget(0)
    except MessageError as error:
        raise CannotPlanError(
            f"the model does not answer a question of its plan: {error}"
        ) from error
    bound = 2.0**plan.logit_bits + 2.0**plan.worst_error_bits
    if not bool((np.abs(logits) <= bound).all()):
        raise CannotPlanError(
            f"asked about the middle of its range the model answers {np.abs(logits).max():.3g}, "
            f"the plan allows {bound:.3g}; compile it again"
        )
