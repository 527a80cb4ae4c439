"""Encrypted inference with CKKS: compile a model, encrypt a question, evaluate, decrypt.

Three roles. Whoever holds the model compiles it (:func:`compile_model`); the plan is public. The
:class:`DataOwner` makes keys for that plan, encrypts and decrypts. The :class:`Evaluator` holds
the compiled model and the owner's public and evaluation keys, and learns nothing about the data.
"""

from typing import TYPE_CHECKING

import privacy.imports

# A data owner has what it needs by the extra of that name.
with privacy.imports.needing(__name__, extra="owner"):
    from privacy.inference.decision import decide as decide
    from privacy.inference.decision import decide_each as decide_each
    from privacy.inference.owner import Answer as Answer
    from privacy.inference.owner import ClassOnly as ClassOnly
    from privacy.inference.owner import DataOwner as DataOwner
    from privacy.inference.owner import EachLabel as EachLabel
    from privacy.inference.owner import FloodedLogits as FloodedLogits
    from privacy.inference.owner import MeasurementOwner as MeasurementOwner
    from privacy.inference.owner import ReleasePolicy as ReleasePolicy
    from privacy.inference.owner import RoundedLogits as RoundedLogits
    from privacy.inference.owner import TopClasses as TopClasses
    from privacy.inference.plan import Plan as Plan
    from privacy.inference.plan import ThreeParties as ThreeParties
    from privacy.inference.plan_check import InputContract as InputContract
    from privacy.inference.plan_check import accept_plan as accept_plan

# Loaded when they are first asked for. A data owner needs no model: neither PyTorch, which takes
# seconds to load, nor SciPy. No node asks for the last of them, and `flwr run` does not send them.
if TYPE_CHECKING:
    from privacy.inference.certificate import Certificate as Certificate
    from privacy.inference.certificate import certify as certify
    from privacy.inference.compile import compile_model as compile_model
    from privacy.inference.compiled_model import CompiledModel as CompiledModel
    from privacy.inference.compiler import Polynomial as Polynomial
    from privacy.inference.compiler import Square as Square
    from privacy.inference.compiler import logit_bound as logit_bound
    from privacy.inference.evaluator import BlindEvaluator as BlindEvaluator
    from privacy.inference.evaluator import Evaluator as Evaluator
    from privacy.inference.evaluator import EvaluatorPool as EvaluatorPool
    from privacy.inference.evaluator import EvaluatorProcess as EvaluatorProcess
    from privacy.inference.evaluator import serve_evaluations as serve_evaluations
    from privacy.inference.importers import from_onnx as from_onnx
    from privacy.inference.importers import from_sklearn as from_sklearn
    from privacy.inference.packed_model import PackedModel as PackedModel
    from privacy.inference.replacement import PrivateData as PrivateData
    from privacy.inference.replacement import PublicData as PublicData
    from privacy.inference.replacement import Replacement as Replacement
    from privacy.inference.replacement import ReplacementReport as ReplacementReport
    from privacy.inference.replacement import replace_activations as replace_activations

_LATER = {
    "compile_model": "privacy.inference.compile",
    "CompiledModel": "privacy.inference.compiled_model",
    "Polynomial": "privacy.inference.compiler",
    "Square": "privacy.inference.compiler",
    "logit_bound": "privacy.inference.compiler",
    "BlindEvaluator": "privacy.inference.evaluator",
    "Evaluator": "privacy.inference.evaluator",
    "EvaluatorPool": "privacy.inference.evaluator",
    "EvaluatorProcess": "privacy.inference.evaluator",
    "serve_evaluations": "privacy.inference.evaluator",
    "Certificate": "privacy.inference.certificate",
    "certify": "privacy.inference.certificate",
    "from_onnx": "privacy.inference.importers",
    "from_sklearn": "privacy.inference.importers",
    "PackedModel": "privacy.inference.packed_model",
    "PrivateData": "privacy.inference.replacement",
    "PublicData": "privacy.inference.replacement",
    "Replacement": "privacy.inference.replacement",
    "ReplacementReport": "privacy.inference.replacement",
    "replace_activations": "privacy.inference.replacement",
}

if not TYPE_CHECKING:
    __getattr__ = privacy.imports.loaded_later(__name__, _LATER, extra="inference")
    __all__ = privacy.imports.public_names(globals(), _LATER)
