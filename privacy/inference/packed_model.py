"""A packed model: what an evaluator needs, in memory or in a file."""

import os
from dataclasses import dataclass, field
from functools import cached_property

import psutil

from privacy.inference.arithmetic.batch_model import BatchModel
from privacy.inference.arithmetic.encrypted_weights import encrypt_program
from privacy.inference.arithmetic.program import BatchProgram, Program, SlotProgram
from privacy.inference.arithmetic.slot_model import OneImageModel, ProductModel, SlotModel
from privacy.inference.ckks import Ring
from privacy.inference.errors import CannotPlanError
from privacy.inference.messages import Tag, seal_message
from privacy.inference.model_file import read_model, write_model
from privacy.inference.plan import Plan
from privacy.inference.public_keys import public_key


@dataclass(frozen=True)
class PackedModel:
    """A plan and the weights, ready for an evaluator.

    It holds the model's weights, and no key. It is the model owner's; others may see the plan.
    Neither it nor an evaluator needs PyTorch.

    Attributes
    ----------
    plan : Plan
    program : SlotProgram, ProductProgram or BatchProgram
        The packed weights.
    """

    plan: Plan
    program: Program = field(repr=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write plan and weights to a file that its owner alone may read, whole or not at all.

        The file has no PyTorch model: compare encrypted answers with the model's own
        (:func:`certify`) before.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        write_model(path, self.plan, self.program)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "PackedModel":
        """Read what :meth:`save` wrote; nothing in the file is executed.

        Parameters
        ----------
        path : path-like
            A stranger may have made the file: its weights are then a stranger's weights.

        Raises
        ------
        ModelFileError
            If it is missing, damaged, altered, of another version, larger than any or than the
            free memory, or if its weights do not fit its plan.
        """
        return PackedModel(*read_model(path))

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
