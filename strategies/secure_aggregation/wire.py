"""What crosses the grid: protocol bytes, and beside the model how an update is bounded."""

from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, RecordDict

from privacy.mechanisms import ClippingGeometry, MaskedGaussian
from privacy.secure_aggregation import Malformed
from strategies._replies import RejectedReply
from strategies.weighting import CappedWeights, UniformWeights

KEY = "secure-aggregation"
_BYTES = "message"


def protocol_record(message: bytes) -> ConfigRecord:
    """The record that carries one message of the protocol."""
    return ConfigRecord({_BYTES: message})


def protocol_bytes(record: ConfigRecord) -> bytes:
    """The message of the protocol in a record.

    Raises
    ------
    Malformed
        If there is none.
    """
    message = record.get(_BYTES)
    if not isinstance(message, bytes):
        raise Malformed("the record carries no message of the protocol")
    return message


def reply_bytes(reply: Message) -> bytes:
    """What a client's reply carries: protocol bytes and nothing else.

    Raises
    ------
    RejectedReply
        If it is an error, or anything else is in it.
    """
    if reply.has_error():
        raise RejectedReply(f"the client answered with an error: {reply.error.reason}")
    if not reply.has_content() or list(reply.content) != [KEY]:
        raise RejectedReply("the reply is not one message of the protocol")
    record = reply.content[KEY]
    if not isinstance(record, ConfigRecord) or list(record) != [_BYTES]:
        raise RejectedReply("the reply carries something beside a message of the protocol")
    return protocol_bytes(record)


def content_of(message: bytes) -> RecordDict:
    """The content of a message or reply that carries protocol bytes only."""
    return RecordDict({KEY: protocol_record(message)})


@dataclass(frozen=True)
class Bounding:
    """How a client bounds its update before it masks it; sent with the model, public.

    Attributes
    ----------
    geometry : ClippingGeometry
        How updates are clipped.
    weight_cap : float
        ŵ of capped weights; 0: every client counts the same.
    weighted_by : str
        The metric that says how many examples a client has.
    radius : int
        The clipping norm in lattice cells.
    """

    geometry: ClippingGeometry
    weight_cap: float
    weighted_by: str
    radius: int

    @property
    def weighting(self) -> UniformWeights | CappedWeights:
        """The rule of weights; its total is the server's business."""
        if not self.weight_cap:
            return UniformWeights()
        return CappedWeights(cap=self.weight_cap, total_weight=1.0)

    @property
    def mechanism(self) -> MaskedGaussian:
        """What rounds the update to integers."""
        return MaskedGaussian(self.radius)

    def write_into(self, record: ConfigRecord) -> None:
        """Put it beside a message of the protocol."""
        record["clipping-norms"] = list(self.geometry.norms)
        record["clipping-groups"] = list(self.geometry.group_of)
        record["weight-cap"] = self.weight_cap
        record["weighted-by"] = self.weighted_by
        record["radius"] = self.radius

    @classmethod
    def read(cls, record: ConfigRecord) -> "Bounding":
        """Read what ``write_into`` wrote.

        Raises
        ------
        Malformed
            If it is not that.
        """
        try:
            norms, groups = record["clipping-norms"], record["clipping-groups"]
            cap, key, radius = record["weight-cap"], record["weighted-by"], record["radius"]
            if not (isinstance(norms, list) and isinstance(groups, list) and isinstance(key, str)):
                raise ValueError("a field has the wrong type")
            bounding = cls(
                ClippingGeometry(tuple(map(float, norms)), tuple(map(int, groups))),
                float(cap),  # type: ignore[arg-type]
                key,
                int(radius),  # type: ignore[arg-type]
            )
            _ = bounding.weighting, bounding.mechanism  # both check what they are given
        except (KeyError, TypeError, ValueError) as error:
            raise Malformed(f"how to bound an update is not said: {error}") from error
        return bounding
