"""Encrypted inference with CKKS: compile a model, encrypt a question, evaluate, decrypt.

Three roles. Whoever holds the model compiles it (:func:`compile_model`); the plan is public. The
:class:`DataOwner` makes keys for that plan, encrypts and decrypts. The :class:`Evaluator` holds
the compiled model and the owner's public and evaluation keys, and learns nothing about the data.
"""

from privacy.inference._errors import CannotPlanError as CannotPlanError
from privacy.inference._errors import UnsupportedLayerError as UnsupportedLayerError
from privacy.inference._replays import AnsweredBeforeError as AnsweredBeforeError
from privacy.inference._secrets import SecretsError as SecretsError
from privacy.inference._wire import MessageError as MessageError
from privacy.inference.activations import Polynomial as Polynomial
from privacy.inference.activations import Square as Square
from privacy.inference.certificate import Certificate as Certificate
from privacy.inference.certificate import certify as certify
from privacy.inference.compiled import CompiledModel as CompiledModel
from privacy.inference.compiled import compile_model as compile_model
from privacy.inference.decision import decide as decide
from privacy.inference.evaluator import BlindEvaluator as BlindEvaluator
from privacy.inference.evaluator import Evaluator as Evaluator
from privacy.inference.owner import DataOwner as DataOwner
from privacy.inference.owner import OutOfRangeError as OutOfRangeError
from privacy.inference.owner import ThrowAwayOwner as ThrowAwayOwner
from privacy.inference.parties import ThreeParties as ThreeParties
from privacy.inference.plan import Plan as Plan
from privacy.inference.pool import EvaluatorPool as EvaluatorPool
from privacy.inference.pool import HeldKeys as HeldKeys
from privacy.inference.pool import KeysDroppedError as KeysDroppedError
from privacy.inference.process import EvaluatorFailed as EvaluatorFailed
from privacy.inference.process import EvaluatorProcess as EvaluatorProcess
from privacy.inference.process import EvaluatorTimedOut as EvaluatorTimedOut
from privacy.inference.process import serve_evaluations as serve_evaluations
from privacy.inference.range_training import logit_bound as logit_bound
from privacy.inference.release import Answer as Answer
from privacy.inference.release import ClassOnly as ClassOnly
from privacy.inference.release import FloodedLogits as FloodedLogits
from privacy.inference.release import ReleaseError as ReleaseError
from privacy.inference.release import ReleasePolicy as ReleasePolicy
from privacy.inference.release import RoundedLogits as RoundedLogits
from privacy.inference.release import TopClasses as TopClasses
from privacy.inference.report import AccuracyReport as AccuracyReport
from privacy.inference.report import ExactAccuracy as ExactAccuracy
from privacy.inference.report import NoisedAccuracy as NoisedAccuracy
from privacy.inference.report import ReportRefusedError as ReportRefusedError
from privacy.inference.round import MAX_ROUND_BYTES as MAX_ROUND_BYTES
from privacy.inference.round import Expectation as Expectation
from privacy.inference.round import PlanRefusedError as PlanRefusedError
from privacy.inference.round import Questions as Questions
from privacy.inference.round import RoundError as RoundError
from privacy.inference.round import accept_plan as accept_plan
from privacy.inference.round import begin_round as begin_round
from privacy.inference.round import finish_round as finish_round
from privacy.inference.round import private_folder as private_folder
