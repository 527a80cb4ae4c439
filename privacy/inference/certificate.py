"""The fidelity certificate: how far encrypted answers are from the model's own."""

import json
import time
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privacy.arguments import double_array, of_kind
from privacy.inference.compiled_model import CompiledModel
from privacy.inference.decision import decide, decide_each
from privacy.inference.evaluator import BlindEvaluator, Evaluator
from privacy.inference.owner import ClassOnly, EachLabel, MeasurementOwner


@dataclass(frozen=True)
class Certificate:
    """Encrypted answers beside the model's own on labelled inputs that are not secret.

    *Plain* is the model as PyTorch runs it, in evaluation mode and double precision. The keys are
    thrown away, since errors in full precision are published.

    Attributes
    ----------
    model_version : str
    images : int
    plain_accuracy, encrypted_accuracy : float
        Shares of right classes; of a multi-label model, of right labels.
    agreement : float
        Share of images of which both give the same class; of a multi-label model, of labels.
    worst_error : float
        Largest absolute error of a logit.
    predicted_error, predicted_worst_error : float
        The plan's: for inputs like those that it was compiled with, and for any in the range.
    beyond_prediction, beyond_worst_prediction : int
        Images with a larger error than predicted. Where the first is not 0, compile with a
        ``sample`` that is like these inputs.
    public_bytes, query_bytes, answer_bytes : int
    encrypt_ms, evaluate_ms, decrypt_ms : float
        Medians a query.
    """

    model_version: str
    images: int
    plain_accuracy: float
    encrypted_accuracy: float
    agreement: float
    worst_error: float
    predicted_error: float
    predicted_worst_error: float
    beyond_prediction: int
    beyond_worst_prediction: int
    public_bytes: int
    query_bytes: int
    answer_bytes: int
    encrypt_ms: float
    evaluate_ms: float
    decrypt_ms: float

    def to_json(self) -> str:
        """The certificate as JSON."""
        return json.dumps(asdict(self), indent=2)


def certify(
    compiled: CompiledModel, inputs: ArrayLike, labels: ArrayLike, *, threshold: float = 0.0
) -> Certificate:
    """Ask a compiled model encrypted questions and compare the answers with PyTorch's.

    Parameters
    ----------
    compiled : CompiledModel
    inputs : array_like
        Of shape (images, ...), in the plan's range, and not secret.
    labels : array_like of int
        The right classes, shape (images,), from 0 to ``classes - 1``; of a multi-label model 0 or
        1 for each label, shape (images, labels).
    threshold : float
        Where a model with a single logit decides, as :func:`decide`, or each label.

    Raises
    ------
    ValueError
        If there is no image, or not one label an image, or a label is none of the classes, or
        the threshold is beyond the plan's bound of every logit.
    """
    of_kind(
        "compiled",
        compiled,
        CompiledModel,
        "what compile_model returned (a model from a file has no PyTorch model to compare with)",
    )
    x = double_array("inputs", inputs, "shape (images, ...)")
    plan = compiled.plan
    wanted = (plan.logits,) if plan.multi_label else ()
    shape = "(images, labels)" if plan.multi_label else "(images,)"
    right = double_array("labels", labels, f"shape {shape}")
    if x.ndim == 0:
        raise ValueError("inputs is one number; give shape (images, ...)")
    if len(x) == 0 or right.shape != (len(x), *wanted):
        raise ValueError(
            f"inputs have shape {x.shape} and labels {right.shape}; give one each, labels of shape "
            f"{shape}"
        )
    policy = EachLabel(threshold) if plan.multi_label else ClassOnly(threshold)
    policy.check(plan)  # an owner could not ask with it either
    if plan.multi_label and not bool(np.isin(right, (0, 1)).all()):
        raise ValueError("labels hold other numbers than 0 and 1; give 1 where a label holds")
    if not plan.multi_label and not bool(np.isin(right, np.arange(plan.classes)).all()):
        raise ValueError(
            f"labels hold {np.unique(right)[:5].tolist()} and the like; the model decides "
            f"between {plan.classes} classes, which are the whole numbers from 0"
        )
    owner = MeasurementOwner(plan)
    material = owner.public_material()
    if plan.parties:
        weights = compiled.encrypt_weights(material)
        evaluator: Evaluator = BlindEvaluator(plan, material, weights, name=plan.parties[2])
    else:
        evaluator = Evaluator(compiled, material)
    answers: list[NDArray[np.float64]] = []
    spent: list[tuple[float, float, float]] = []
    for start in range(0, len(x), plan.batch_size):
        images = x[start] if plan.batch_size == 1 else x[start : start + plan.batch_size]
        times = [time.perf_counter()]
        query = owner.encrypt(images)
        times.append(time.perf_counter())
        answer = evaluator.evaluate(query)
        times.append(time.perf_counter())
        answers.append(owner.logits(answer))
        times.append(time.perf_counter())
        spent.append((times[1] - times[0], times[2] - times[1], times[3] - times[2]))
    encrypted, clear = np.concatenate(answers), compiled.predict(x)
    errors = np.abs(encrypted - clear).max(axis=1)
    decided = decide_each if plan.multi_label else decide
    plain, decrypted = (decided(logits, threshold=threshold) for logits in (clear, encrypted))
    encrypt, evaluate, decrypt = np.median(np.array(spent) * 1e3, axis=0).tolist()
    return Certificate(
        model_version=plan.model_version,
        images=len(x),
        plain_accuracy=float(np.mean(plain == right)),
        encrypted_accuracy=float(np.mean(decrypted == right)),
        agreement=float(np.mean(decrypted == plain)),
        worst_error=float(errors.max()),
        predicted_error=2.0**plan.error_bits,
        predicted_worst_error=2.0**plan.worst_error_bits,
        beyond_prediction=int((errors > 2.0**plan.error_bits).sum()),
        beyond_worst_prediction=int((errors > 2.0**plan.worst_error_bits).sum()),
        public_bytes=len(material),
        query_bytes=plan.query_bytes,
        answer_bytes=plan.answer_bytes,
        encrypt_ms=encrypt,
        evaluate_ms=evaluate,
        decrypt_ms=decrypt,
    )
