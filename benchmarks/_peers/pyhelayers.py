"""pyhelayers (IBM HElayers): CKKS, compiled from ONNX."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyhelayers
from onnx import TensorProto, helper, numpy_helper

from benchmarks._peers.serving import Array, Case, Layer, Prepared, serve

SECURITY_BITS = 128
# Enough for logits below 2^8, and for the smaller ring, which is quicker.
INTEGER_BITS, FRACTIONAL_BITS = 8, 24


def prepare(case: Case) -> Prepared:
    """Compile for one image at a time, and make the keys."""
    plain = pyhelayers.NeuralNetPlain()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        onnx.save(_exported(case), str(file))
        plain.init_from_files(pyhelayers.PlainModelHyperParams(), [str(file)])
    wanted = pyhelayers.HeRunRequirements()
    wanted.set_he_context_options([pyhelayers.DefaultContext()])
    wanted.set_security_level(SECURITY_BITS)
    wanted.set_model_encrypted(False)
    wanted.optimize_for_batch_size(1)
    wanted.set_integer_part_precision(INTEGER_BITS)
    wanted.set_fractional_part_precision(FRACTIONAL_BITS)
    profile = pyhelayers.NeuralNet.compile(plain, wanted)
    context = pyhelayers.NeuralNet.create_context(profile)
    network = pyhelayers.NeuralNet(context)
    network.encode(plain, profile)
    coder = network.create_model_io_encoder()

    def encrypt(image: Array) -> Any:
        query = pyhelayers.EncryptedData(context)
        coder.encode_encrypt(query, [image[None].astype(np.float64)])
        return query

    def evaluate(query: Any) -> Any:
        answer = pyhelayers.EncryptedData(context)
        network.predict(answer, query)
        return answer

    def decrypt(answer: Any) -> list[float]:
        return list(np.ravel(coder.decrypt_decode_output(answer)))

    return Prepared(
        encrypt,
        evaluate,
        decrypt,
        f"ring degree {2 * context.slot_count()}, data primes of "
        f"{[int(prime).bit_length() for prime in context.get_modulus_chain()]} bits",
        {
            "keys": len(context.save_to_buffer()),
            "query": len(encrypt(case.images[0]).save_to_buffer()),
        },
    )


def _exported(case: Case) -> onnx.ModelProto:
    nodes, weights = [], []
    name = "images"
    for place, layer in enumerate(_channels_last(case)):
        if layer.kind == "flatten" and case.images.ndim == 2:
            continue  # it takes images only
        after = f"after {place}"
        if layer.weight is None or layer.bias is None:
            if layer.kind == "square":
                nodes.append(helper.make_node("Mul", [name, name], [after]))
            else:
                nodes.append(helper.make_node("Flatten", [name], [after]))
        else:
            for part, values in (("weight", layer.weight), ("bias", layer.bias)):
                weights.append(
                    numpy_helper.from_array(values.astype(np.float32), f"{part} {place}")
                )
            inputs = [name, f"weight {place}", f"bias {place}"]
            if layer.kind == "conv":
                strides = [layer.stride, layer.stride]
                nodes.append(
                    helper.make_node(
                        "Conv",
                        inputs,
                        [after],
                        strides=strides,
                        kernel_shape=layer.weight.shape[2:],
                    )
                )
            else:
                nodes.append(helper.make_node("Gemm", inputs, [after], transB=1))
        name = after
    shape = [1, *case.images.shape[1:]]
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 10])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def _channels_last(case: Case) -> list[Layer]:
    """The layers, with the columns of the first linear one after convolutions in another order.

    Compiled with convolutions as matrix products ("image to column"), a network flattens with
    channels last. ONNX, and the peer's own model in the clear, flatten with channels first: with
    the columns as they are, encrypted logits are wrong.
    """
    layers = list(case.layers)
    for place, layer in enumerate(layers):
        channels = 1
        for before in layers[:place]:
            if before.kind == "conv" and before.weight is not None:
                channels = len(before.weight)
        if layer.kind == "linear" and layer.weight is not None:
            outputs = len(layer.weight)
            moved = layer.weight.reshape(outputs, channels, -1).swapaxes(1, 2)
            layers[place] = replace(layer, weight=moved.reshape(outputs, -1))
            break
    return layers


if __name__ == "__main__":
    serve(prepare)
