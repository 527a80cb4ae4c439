"""The evaluator's side: answers encrypted questions, in processes of their own."""

from privacy.inference.evaluator.evaluator import BlindEvaluator as BlindEvaluator
from privacy.inference.evaluator.evaluator import Evaluator as Evaluator
from privacy.inference.evaluator.pool import EvaluatorPool as EvaluatorPool
from privacy.inference.evaluator.pool import HeldKeys as HeldKeys
from privacy.inference.evaluator.process import EvaluatorProcess as EvaluatorProcess
from privacy.inference.evaluator.process import serve_evaluations as serve_evaluations
