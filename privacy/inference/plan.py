"""The plan: everything about an encrypted inference that is fixed before a key is made."""

import base64
import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from privacy.arguments import of_kind
from privacy.inference._plan_checks import check_plan
from privacy.inference.ckks import MAX_MODULUS_BITS, SEED_BYTES
from privacy.inference.input_range import InputRange, shown
from privacy.inference.rescaling import rescaled_before
from privacy.json_text import read_json

FORMAT = 4
SESSION_KEY_BYTES = 32
MESSAGE_OVERHEAD = 102
"""Bytes of a message beside its body: header and authentication code."""
Indices = NDArray[np.int32]
_OPTIONAL = "feature_names"
"""The field that a plan's text need not have."""
EMPTY = -1
"""Among the inputs that a packing names: none."""


@dataclass(frozen=True)
class ThreeParties:
    """Who holds the model, who the data, and who evaluates: three names, all different.

    Encrypted weights hide the model from a third party that evaluates. An evaluator that is the
    model owner has the weights, and one that is the data owner has the key to them: equal names
    are refused. The names are part of the plan and of its digest, which is in every message.

    **Guarantee.** None beyond the refusal: a name is a declaration, and who bears it is for the
    operator and TLS to establish.

    **Assumptions.** The evaluator and the data owner do not collude: together they decrypt the
    weights.

    **Not covered.** Two names for one party.

    Attributes
    ----------
    model_owner, data_owner, evaluator : str

    Raises
    ------
    ValueError
        If a name is empty or two are the same.
    """

    model_owner: str
    data_owner: str
    evaluator: str

    def __post_init__(self) -> None:
        taken: dict[str, str] = {}
        for entry in fields(self):
            name = getattr(self, entry.name)
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"{entry.name} is {name!r}; give the name of that party")
            key = name.strip().casefold()
            if key in taken:
                raise ValueError(
                    f"{entry.name} and {taken[key]} are both {name!r}; encrypted weights hide a "
                    "model from a third party only. Without one, compile without parties"
                )
            taken[key] = entry.name

    @property
    def names(self) -> tuple[str, str, str]:
        """The three names: model owner, data owner, evaluator."""
        return (self.model_owner, self.data_owner, self.evaluator)


class BlindMap(NamedTuple):
    """One map of a layer, as the plan tells it to the evaluator of encrypted weights.

    ``source`` is 0 for the query, k for the value of layer k - 1. ``products`` are ciphertexts of
    the query, or rotations of the value, of which multiples of ``window`` are giant steps.
    ``sums`` holds groups of rotations, each of which is added up with what it rotates, after the
    products.
    """

    source: int
    window: int
    products: tuple[int, ...]
    sums: tuple[tuple[int, ...], ...]


class BlindLayer(NamedTuple):
    """A layer before the last: the level of its products, and maps whose sums add up.

    ``rescale`` is that of its square, as named in :mod:`privacy.inference.rescaling`. A
    layer without maps hands on the next ciphertext of the query.
    """

    level: int
    rescale: int
    maps: tuple[BlindMap, ...]

    @property
    def entry_level(self) -> int:
        """The level of its bias, and of the sum that is squared."""
        return self.level - rescaled_before(self.rescale)


@dataclass(frozen=True)
class Plan:
    """Parameters, packing, bounds and predictions; public, immutable, the same for both sides.

    A plan tells the data owner the architecture's shape and, in whole bits or as predictions
    that depend on whole bits, how large the model's values can get. It does not hold weights.

    Attributes
    ----------
    input_shape : tuple of int
    input_range : tuple of float, or of nested tuples
        Lowest and highest value of an input element, numbers of single precision; the owner's
        client refuses others. Where features have ranges of their own, nested tuples that broadcast
        to ``input_shape`` (:mod:`privacy.inference.input_range`), and each feature is scaled to
        [-1, 1] before it is encrypted.
    logits : int
        Of an image. One logit decides between two classes.
    degree : int
        N, the ring degree (``poly_modulus_degree``).
    prime_bits : tuple of int
        Bits of the primes: the last one to be left first, the special one last.
    input_scale_bits, answer_scale_bits : int
        A query holds x·2^input_scale_bits, an answer logit·2^answer_scale_bits.
    answer_level : int
        Primes, from the first one on, modulo whose product an answer is.
    logit_bits : int
        |logit| < 2^logit_bits for every input in the range (proved by interval arithmetic).
    headroom_bits : float
        Bits between the largest possible answer and half of the answer's modulus;
        proved, never negative.
    error_bits : int
        The predicted error of a logit is below 2^error_bits (six standard deviations, for the
        worst of typical inputs: a public sample, or noise and patterns drawn from the range).
    worst_error_bits : int
        The same for the worst input in the range.
    batch_size : int
        Images in a query, at most.
    packing_kind : str
        "slots" or "coefficients" for one image, "batch" for one image a slot (or, for a model
        that is one affine map, a coefficient).
    packing : str
        For the data owner: which input goes to which slot or coefficient (compressed).
    packing_shape : tuple of int
        (parts, ciphertexts, slots), (ciphertexts, share), or (ciphertexts,) for a batch.
    answers : tuple of tuple of int
        The coefficients that are read of each answer polynomial; of a batch (empty), all are.
    rotation_levels : tuple of (int, int)
        Galois elements for which keys are made, and the highest level each is used at.
    relin_level : int
        The highest level of a relinearisation; 0 if there is none.
    operations : mapping of str to int
        Counts of each homomorphic operation.
    predicted_ms : float
        Of one evaluation, masking included, on one core of the reference machine.
    model_version : str
        32 hexadecimal digits, a digest of the model's weights; random where these are encrypted.
    parties : tuple of str
        Model owner, data owner and evaluator where the weights are encrypted; else empty.
    blind_layers : tuple of BlindLayer
        For the evaluator of encrypted weights: the layers before the last.
    blind_sources : tuple of int
        The layers that the last one reads, counted from 1.
    multi_label : bool
        Whether each logit decides about a label of its own, of which several may hold.
    class_names : tuple of str
        What the classes are called, in their order; empty where nobody named them.
    feature_names : tuple of str
        What the elements of an input are called, in their order; empty where nobody named them, as
        in plans of earlier releases, whose text has no such field.
    """

    input_shape: tuple[int, ...]
    input_range: InputRange
    logits: int
    degree: int
    prime_bits: tuple[int, ...]
    input_scale_bits: int
    answer_scale_bits: int
    answer_level: int
    logit_bits: int
    headroom_bits: float
    error_bits: int
    worst_error_bits: int
    batch_size: int
    packing_kind: str
    packing: str = field(repr=False)
    packing_shape: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    rotation_levels: tuple[tuple[int, int], ...]
    relin_level: int
    operations: Mapping[str, int]
    predicted_ms: float
    model_version: str
    parties: tuple[str, ...] = ()
    blind_layers: tuple[BlindLayer, ...] = ()
    blind_sources: tuple[int, ...] = ()
    multi_label: bool = False
    class_names: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = ()

    @property
    def security_bits(self) -> int:
        """128: a plan whose modulus is too large for that is refused when it is made."""
        return 128

    def __post_init__(self) -> None:
        check_plan(self)
        if self.parties:
            ThreeParties(*self.parties)

    @property
    def classes(self) -> int:
        """How many classes the logits decide between: one logit, at a threshold, between two.

        Of a multi-label model, how many labels there are.
        """
        return 2 if self.logits == 1 else self.logits

    @property
    def levels(self) -> int:
        """Number of data primes."""
        return max(1, len(self.prime_bits) - 1)

    @property
    def ciphertexts(self) -> int:
        """Ciphertexts in a query."""
        return self.packing_shape[1 if self.packing_kind == "slots" else 0]

    @property
    def taps(self) -> Indices:
        """Which input goes where, shape ``packing_shape``; -1 where none does."""
        places = math.prod(self.packing_shape)
        try:
            compressed = base64.b64decode(self.packing, validate=True)
            # One byte more than there should be, and no more: it may have been made to fill memory.
            plain = zlib.decompressobj().decompress(compressed, 4 * places + 1)
        except (ValueError, zlib.error) as error:
            raise ValueError(f"packing cannot be read: {error}") from error
        if len(plain) != 4 * places:
            raise ValueError(f"packing does not hold {places} places, as packing_shape says")
        taps = np.frombuffer(plain, dtype="<i4").reshape(self.packing_shape)
        size = math.prod(self.input_shape)
        if taps.min(initial=-1) < -1 or taps.max(initial=-1) >= size:
            raise ValueError(f"packing names inputs outside 0..{size - 1}")
        return taps

    def _polynomial(self, primes: int) -> int:
        return 8 * self.degree * primes

    def key_bytes(self, level: int) -> int:
        """Bytes of one switching key that is used up to ``level``: one part a data prime."""
        return level * (self._polynomial(level + 1) + SEED_BYTES)

    @property
    def public_bytes(self) -> int:
        """Bytes of the message with the public and evaluation keys."""
        levels = [level for _, level in self.rotation_levels]
        if self.relin_level:
            levels.append(self.relin_level)
        public_key = self._polynomial(len(self.prime_bits)) + SEED_BYTES
        return MESSAGE_OVERHEAD + SESSION_KEY_BYTES + public_key + sum(map(self.key_bytes, levels))

    @property
    def query_bytes(self) -> int:
        """Bytes of the message with one query."""
        return MESSAGE_OVERHEAD + self.ciphertexts * (self._polynomial(self.levels) + SEED_BYTES)

    @property
    def weights_bytes(self) -> int:
        """Bytes of the message with encrypted weights; 0 where the evaluator has the weights."""
        if not self.parties:
            return 0
        polynomials = sum(
            self._polynomial(layer.level) * sum(len(each.products) for each in layer.maps)
            + self._polynomial(layer.entry_level)
            for layer in self.blind_layers
            if layer.maps
        )
        last = len(self.blind_sources) if self.blind_layers else self.ciphertexts
        polynomials += self._polynomial(self.answer_level) * (last + 1) * len(self.answers)
        return MESSAGE_OVERHEAD + 2 * polynomials

    @property
    def answer_bytes(self) -> int:
        """Bytes of the message with one answer."""
        polynomial = self._polynomial(self.answer_level)
        if self.packing_kind == "batch":
            return MESSAGE_OVERHEAD + self.logits * 2 * polynomial
        read = 8 * self.answer_level * self.logits
        return MESSAGE_OVERHEAD + len(self.answers) * polynomial + read

    @property
    def digest(self) -> bytes:
        """SHA-256 of the plan without its predicted time, 32 bytes; it is in every message."""
        return hashlib.sha256(replace(self, predicted_ms=0.0).to_json().encode()).digest()

    def to_json(self) -> str:
        """The plan as canonical JSON; ``feature_names`` stand there only where there are some."""
        content = {"format": FORMAT, **asdict(self)}
        if not self.feature_names:
            del content[_OPTIONAL]
        return json.dumps(content, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read a plan; a ``ValueError`` where it is none of this format, or not consistent."""
        of_kind("text", text, str, "what Plan.to_json() returned")
        try:
            content = read_json(text)
            values = {key: _freeze(value) for key, value in dict(content).items()}
        except json.JSONDecodeError as error:
            raise ValueError(f"text is not JSON, and so no plan ({error})") from error
        except TypeError as error:
            raise ValueError(f"not a plan of format {FORMAT}: {error}") from error
        written = values.pop("format", None)
        if written != FORMAT:
            older = isinstance(written, int) and written < FORMAT
            raise ValueError(
                f"not a plan of format {FORMAT}"
                + (f" but of {written}, of an older release" if older else "")
                + "; compile the model again"
            )
        if values.get(_OPTIONAL) == ():
            raise ValueError(f"{_OPTIONAL} is empty; leave it out")
        if set(values) | {_OPTIONAL} != {entry.name for entry in fields(cls)}:
            raise ValueError("the plan has missing or unknown fields; compile the model again")
        try:
            values["blind_layers"] = tuple(
                BlindLayer(level, rescale, tuple(BlindMap(*each) for each in maps))
                for level, rescale, maps in values["blind_layers"]
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"blind_layers are no layers: {error}") from error
        return cls(**values)

    def _classes_in_words(self) -> str:
        if self.multi_label:
            return f"{self.logits}, each by itself: it holds above the threshold (0 by default)"
        if self.logits == 1:
            return "2, decided by one logit: 1 above the threshold (0 by default)"
        return str(self.classes)

    def __str__(self) -> str:
        allowed = MAX_MODULUS_BITS[self.degree]
        counts = ", ".join(f"{count} {name}" for name, count in self.operations.items())
        rows: dict[str, Any] = {
            "input": f"{self.input_shape} in {shown(self.input_range)}",
            "labels" if self.multi_label else "classes": self._classes_in_words(),
            "ring degree": self.degree,
            "primes": f"{list(self.prime_bits)}: {sum(self.prime_bits)} of {allowed} bits",
            "levels": f"{self.levels}, of which an answer has {self.answer_level}",
            "logits": f"below 2^{self.logit_bits} for every input in range (proved)",
            "headroom": f"{self.headroom_bits:.1f} bits (proved)",
            "predicted error": f"2^{self.error_bits}, any input 2^{self.worst_error_bits}",
            "ciphertexts": f"{self.ciphertexts} in a query, "
            f"{len(self.answers) or self.logits} in an answer",
            "images": f"{self.batch_size} in a query",
            "bytes": f"keys {self.public_bytes:,}, query {self.query_bytes:,}, "
            f"answer {self.answer_bytes:,}",
            "weights": f"encrypted, {self.weights_bytes:,} bytes; evaluated by {self.parties[2]}"
            if self.parties
            else "in the clear, at the evaluator",
            "rotation keys": len(self.rotation_levels),
            "operations": counts,
            "predicted time": f"{self.predicted_ms:.1f} ms",
            "model version": self.model_version,
        }
        if self.class_names:
            rows["class names"] = ", ".join(self.class_names)
        if self.feature_names:
            rows["feature names"] = ", ".join(self.feature_names)
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def pack_taps(taps: Indices) -> str:
    """Compress the data owner's packing for a plan."""
    return base64.b64encode(zlib.compress(taps.astype("<i4").tobytes(), 9)).decode()


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, list) else value
