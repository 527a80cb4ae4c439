"""An evaluator's process for the tests: compiles ``small_model`` and answers."""

import sys

import torch
from torch import nn

from privacy.inference import CompiledModel, Square, compile_model, serve_evaluations


def small_model() -> CompiledModel:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Square(), nn.Linear(4, 2))
    return compile_model(model, input_shape=(4,), input_range=(0.0, 1.0), tolerance=0.001)


def noisily() -> CompiledModel:
    print("a library that prints")
    if "die" in sys.argv:
        sys.exit("its last words")
    return small_model()


if __name__ == "__main__":
    serve_evaluations(noisily)
