"""Orion (``orion-v2``): CKKS through Lattigo, compiled from PyTorch."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from lattigo.ckks import Encoder, Parameters
from lattigo.rlwe import Ciphertext, Decryptor, Encryptor, KeyGenerator, MemEvaluationKeySet
from orion_compiler import CKKSParams, Compiler
from orion_compiler import nn as on
from orion_evaluator import Evaluator, Model

from benchmarks._peers.serving import Array, Case, Prepared, serve

# The smallest ring that holds each depth at 128 bits (109 and 218 of them at 2^12 and 2^13), with
# the largest scale that leaves room for logits below 2^8. Two special primes halve the digits of
# a key switch, and with them keys and time, where there are bits for two.
PARAMETERS = {
    1: CKKSParams(logn=12, logq=(39, 30), logp=(40,), log_default_scale=30),
    3: CKKSParams(logn=13, logq=(40, 32, 32, 32), logp=(41, 41), log_default_scale=32),
    5: CKKSParams(logn=13, logq=(34, 25, 25, 25, 25, 25), logp=(29, 29), log_default_scale=25),
}


class Network(on.Module):
    """The case's layers as Orion's."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList()
        for layer in case.layers:
            made = _layer(layer.kind, layer.weight, layer.stride)
            if layer.weight is not None and layer.bias is not None:
                made.weight.data = torch.from_numpy(layer.weight).float()
                made.bias.data = torch.from_numpy(layer.bias).float()
            self.layers.append(made)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Apply the layers in turn."""
        for layer in self.layers:
            values = layer(values)
        return values


def _layer(kind: str, weight: Array | None, stride: int) -> Any:
    if weight is None:
        return on.Quad() if kind == "square" else on.Flatten()
    if kind == "conv":
        outputs, inputs, size, _ = weight.shape
        return on.Conv2d(inputs, outputs, kernel_size=size, stride=stride)
    return on.Linear(weight.shape[1], weight.shape[0])


def prepare(case: Case) -> Prepared:
    """Compile, and make the keys that the compiled model asks for."""
    chosen = PARAMETERS[case.depth]
    compiler = Compiler(Network(case).eval(), chosen)
    compiler.fit(torch.from_numpy(case.images[:1]).float())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.orion"
        compiler.compile_to_file(str(file))
        model = Model.load(file.read_bytes())
    client_parameters, manifest, level = model.client_params()
    parameters = Parameters.from_dict(client_parameters)
    generator = KeyGenerator(parameters)
    secret = generator.gen_secret_key()
    encoder = Encoder(parameters)
    encryptor = Encryptor(parameters, generator.gen_public_key(secret))
    decryptor = Decryptor(parameters, secret)
    keys = MemEvaluationKeySet(
        rlk=generator.gen_relin_key(secret) if manifest["needs_rlk"] else None,
        galois_keys=[
            generator.gen_galois_key(secret, int(element))
            for element in manifest["galois_elements"]
        ],
    ).marshal_binary()
    evaluator = Evaluator(client_parameters, keys)
    slots = parameters.max_slots()

    def encrypt(image: Array) -> list[bytes]:
        values = [*image.ravel().tolist(), *[0.0] * (slots - image.size)]
        plain = encoder.encode(values, level, parameters.default_scale())
        return [encryptor.encrypt_new(plain).marshal_binary()]

    def decrypt(answer: list[bytes]) -> list[float]:
        plain = decryptor.decrypt_new(Ciphertext.unmarshal_binary(answer[0]))
        return list(encoder.decode(plain, slots)[:10])

    return Prepared(
        encrypt,
        lambda query: evaluator.forward(model, query),
        decrypt,
        f"ring degree {chosen.ring_degree}, primes of {[*chosen.logq, *chosen.logp]} bits, "
        f"secret of weight {chosen.h}",
        {"keys": len(keys), "query": len(encrypt(case.images[0])[0])},
    )


if __name__ == "__main__":
    serve(prepare)
