"""A compiled model: the plan for others, and the weights for the model owner."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import psutil
import torch
from torch import nn

from privacy.inference.arithmetic.batch_model import BatchModel
from privacy.inference.arithmetic.encrypted_weights import encrypt_program
from privacy.inference.arithmetic.network import Network
from privacy.inference.arithmetic.program import BatchProgram, Program, SlotProgram
from privacy.inference.arithmetic.slot_model import OneImageModel, ProductModel, SlotModel
from privacy.inference.ckks import Ring
from privacy.inference.errors import CannotPlanError
from privacy.inference.input_range import inputs_of
from privacy.inference.messages import Tag, seal_message
from privacy.inference.plan import Plan
from privacy.inference.public_keys import public_key


@dataclass(frozen=True)
class CompiledModel:
    """A model made ready for encrypted questions; made by :func:`compile_model`.

    It holds the model's weights, and no key. It is the model owner's; others may see the plan.

    Attributes
    ----------
    plan : Plan
    network : Network
        The model in the clear, as it was compiled: affine maps and polynomials in double precision.
    program : SlotProgram, ProductProgram or BatchProgram
        The packed weights.
    model : nn.Module
        The model itself as PyTorch runs it, in evaluation mode and double precision; encrypted
        answers are compared with it.
    """

    plan: Plan
    network: Network = field(repr=False)
    program: Program = field(repr=False)
    model: nn.Module = field(repr=False)

    @property
    def evaluator_bytes(self) -> int:
        """Bytes of memory that the encoded weights take at an evaluator, beside keys."""
        plan, program = self.plan, self.program
        if plan.parties:
            return plan.weights_bytes
        polynomial = 8 * plan.degree
        if isinstance(program, SlotProgram):
            return polynomial * program.encoded_rows(plan.answer_level)
        if isinstance(program, BatchProgram):
            maps = (affine for layer in program.network.layers for affine in layer.affines)
            return sum(int(affine.matrix.data.nbytes) for affine in maps)
        return polynomial * plan.answer_level * len(program.products.weights)

    @cached_property
    def encoded(self) -> OneImageModel | BatchModel:
        """The weights encoded for the ring: made at first use, shared by all evaluators.

        Raises
        ------
        CannotPlanError
            If all weights of a layer round to zero, or if they take more memory than is free.
        """
        needed, free = self.evaluator_bytes, psutil.virtual_memory().available
        if needed > free:
            raise CannotPlanError(
                f"the encoded weights take {needed / 1e6:,.0f} MB of memory, and "
                f"{free / 1e6:,.0f} MB are free; make the model smaller, or evaluate it on a "
                "machine with more"
            )
        if isinstance(self.program, BatchProgram):
            return BatchModel(self.plan, self.program)
        if isinstance(self.program, SlotProgram):
            return SlotModel(self.plan, self.program)
        return ProductModel(self.plan, self.program)

    def encrypt_weights(self, public_material: bytes) -> bytes:
        """The weights, encrypted under a data owner's public key, for a third party.

        Parameters
        ----------
        public_material : bytes
            From :meth:`DataOwner.public_material`. Of its keys the public one is used.

        Returns
        -------
        bytes
            For :class:`BlindEvaluator`, with the same public material. Do not send it to the data
            owner, who could decrypt it.

        Raises
        ------
        ValueError
            If the model was compiled without ``parties``.
        MessageError
            If the material is not of this plan.
        """
        plan = self.plan
        if not plan.parties or isinstance(self.program, BatchProgram):
            raise ValueError(
                "the model was compiled without parties: whoever evaluates it holds its weights. "
                "Compile with parties=ThreeParties(...) if a third party evaluates"
            )
        ring = Ring(plan.degree, plan.prime_bits)
        session_key, public = public_key(public_material, ring, plan)
        body = b"".join(encrypt_program(plan, self.program, ring, public))
        return seal_message(Tag.WEIGHTS, plan, plan.digest, 0, body, session_key)

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """The model's own logits, in double precision, of inputs (images, ...): (images, logits).

        PyTorch computes them, from :attr:`model`.

        Raises
        ------
        TypeError, ValueError
            If an input has another shape than the plan's.
        """
        values = inputs_of("inputs", inputs, self.plan.input_shape)
        with torch.no_grad():
            logits = self.model(torch.from_numpy(values))
        return np.asarray(logits.numpy()).reshape(len(values), -1)
