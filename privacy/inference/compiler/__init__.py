"""The compiler: from a model and the range of its inputs to a plan and a program."""

from privacy.inference.compiler.activations import MAX_DEGREE as MAX_DEGREE
from privacy.inference.compiler.activations import Polynomial as Polynomial
from privacy.inference.compiler.activations import Square as Square
from privacy.inference.compiler.activations import significant as significant
from privacy.inference.compiler.logit_bound import logit_bound as logit_bound
from privacy.inference.compiler.lowering.tracing import TRACING as TRACING
