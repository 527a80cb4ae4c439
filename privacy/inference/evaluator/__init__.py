"""The evaluator's side: answers to encrypted questions, in this process or in others."""

from privacy.inference.evaluator.evaluator import BlindEvaluator as BlindEvaluator
from privacy.inference.evaluator.evaluator import Evaluator as Evaluator
from privacy.inference.evaluator.pool import EvaluatorPool as EvaluatorPool
from privacy.inference.evaluator.process import EvaluatorProcess as EvaluatorProcess
from privacy.inference.evaluator.process import serve_evaluations as serve_evaluations
