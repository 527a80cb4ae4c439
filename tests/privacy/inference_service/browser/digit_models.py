"""Models of the app with random weights, compiled."""

import torch
from torch import nn

from flower_app.encrypted.model import compile_app_model
from flower_app.models.build import build_model
from flower_app.models.specs import MODELS
from privacy.inference import CompiledModel


def _random(name: str) -> CompiledModel:
    torch.manual_seed(0)
    model = build_model(name)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return compile_app_model(model, MODELS[name])


def hog_model() -> CompiledModel:
    return _random("hog-linear")


def cnn_model() -> CompiledModel:
    return _random("cnn")
