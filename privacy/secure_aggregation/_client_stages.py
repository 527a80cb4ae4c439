"""What a client does at each stage of a round."""

import logging
from typing import Any

import numpy as np
import numpy.typing as npt

from privacy.mechanisms import Randomness
from privacy.secure_aggregation import _crypto as keys
from privacy.secure_aggregation._client_state import (
    INDEX_BYTES,
    SEALED_BYTES,
    ClientStage,
    RoundState,
)
from privacy.secure_aggregation._graph import Ring
from privacy.secure_aggregation._masking import element_type, pack, ring_bits
from privacy.secure_aggregation._masks import add_mask
from privacy.secure_aggregation._messages import (
    Announcement,
    Kind,
    box_statement,
    complaint_statement,
    participants_statement,
    pieces,
    read,
    read_set,
    session_of,
    survivors_statement,
    write,
    write_set,
)
from privacy.secure_aggregation._shamir import SHARE_BYTES, draw_elements, write_element
from privacy.secure_aggregation._sharing import (
    EVIDENCE_BYTES,
    Evidence,
    deal,
    mask_private,
    sharing_context,
)
from privacy.secure_aggregation.errors import (
    CohortTooSmallError,
    DifferentRequestsError,
    ForgedSignatureError,
    InconsistentRosterError,
    SplitViewError,
    StaleMessageError,
    TamperedSharesError,
    TooFewNeighboursError,
    UnacceptableTermsError,
    UnknownIdentityError,
    WrongStageError,
)
from privacy.secure_aggregation.neighbours import RoundPlan
from privacy.secure_aggregation.terms import ClientPolicy, Identity, RoundTerms

NEIGHBOUR_BYTES = INDEX_BYTES + 2 * keys.KEY_BYTES
Vector = npt.NDArray[np.integer[Any]]
_log = logging.getLogger(__name__)


def announce(
    terms: RoundTerms, asked: bytes, identity: Identity, randomness: Randomness
) -> tuple[RoundState, bytes]:
    """Draw the keys of a round and announce them, signed."""
    mask_root, channel_private = (randomness.bytes(keys.KEY_BYTES) for _ in range(2))
    mask_key = keys.public_key(mask_private(mask_root))
    channel_key = keys.public_key(channel_private)
    statement = Announcement.statement_of(asked, mask_key, channel_key)
    announcement = Announcement(
        identity.public, mask_key, channel_key, asked, keys.sign(identity.private, statement)
    )
    state = RoundState(ClientStage.SHARING, terms, mask_root, channel_private, asked)
    return state, write(Kind.ADVERTISEMENT, terms.digest, announcement.to_bytes())


def share(
    this: RoundState,
    kind: Kind,
    message: bytes,
    policy: ClientPolicy,
    identity: Identity,
    randomness: Randomness,
) -> bytes:
    """Check who takes part, and share the two secrets among the neighbours."""
    if (kind is Kind.ROSTER) != this.terms.malicious:
        raise WrongStageError(f"{kind.name} does not belong to a {this.terms.server.value} server")
    encoded, listed = read(message, kind, [None, None])
    plan = RoundPlan.from_bytes(encoded)
    if plan.survivors < this.terms.min_clients:
        raise CohortTooSmallError(
            f"the plan opens the sum of {plan.survivors} clients; the terms said at least "
            f"{this.terms.min_clients}"
        )
    size = Announcement.SIZE * plan.clients
    if kind is Kind.NEIGHBOURHOOD:
        size = INDEX_BYTES + NEIGHBOUR_BYTES * plan.neighbours
    if len(listed) != size:
        raise InconsistentRosterError(
            f"{len(listed)} bytes list those whom the plan needs {size} for"
        )
    plan.check(policy.adversary)
    try:
        ring_bits(plan.clients, this.terms.bound)
    except ValueError as error:  # found here, and not when it has trained
        raise UnacceptableTermsError(f"the sum of this round fits no ring: {error}") from error
    this.plan = plan
    if kind is Kind.ROSTER:
        _read_roster(this, plan, listed, policy, identity)
    else:
        _read_neighbourhood(this, plan, listed)
        this.session = session_of(this.terms.digest, encoded, b"")

    seed = draw_elements(randomness, 1)[0]
    this.seed = write_element(seed)
    dealing = deal(
        this.mask_root,
        seed,
        threshold=plan.threshold,
        holders=plan.neighbours,
        context=sharing_context(this.session, this.own),
        randomness=randomness,
    )
    this.given = dealing.shares
    boxes = [
        keys.seal(_channel(this, label, sending=True), shares, this.session, randomness)
        for label, shares in enumerate(dealing.shares)
    ]
    signatures = b""
    if this.terms.malicious:
        signatures = b"".join(
            keys.sign(
                identity.private,
                box_statement(this.session, this.own, receiver, box, evidence.to_bytes()),
            )
            for receiver, box, evidence in zip(
                this.neighbours, boxes, dealing.evidence, strict=True
            )
        )
    this.stage = ClientStage.CHECKING
    return write(
        Kind.SHARES,
        this.session,
        dealing.proof + signatures,
        *(b"".join(commitments) for commitments in dealing.commitments),
        b"".join(boxes),
    )


def _read_neighbourhood(this: RoundState, plan: RoundPlan, listed: bytes) -> None:
    """Take the neighbours from a server that follows the protocol."""
    own, entries = listed[:INDEX_BYTES], pieces(listed[INDEX_BYTES:], NEIGHBOUR_BYTES)
    this.own = int.from_bytes(own, "little")
    this.neighbours = [int.from_bytes(entry[:INDEX_BYTES], "little") for entry in entries]
    this.mask_keys = [entry[INDEX_BYTES:][: keys.KEY_BYTES] for entry in entries]
    _agree(this, [entry[INDEX_BYTES + keys.KEY_BYTES :] for entry in entries])
    everybody = {this.own, *this.neighbours}
    if len(everybody) != plan.neighbours + 1:
        raise InconsistentRosterError("the neighbours are not as many different ones as planned")
    if max(everybody) >= plan.clients:
        raise InconsistentRosterError("a neighbour lies outside the cohort")
    _check_own_keys(this, this.mask_keys)


def _read_roster(
    this: RoundState, plan: RoundPlan, listed: bytes, policy: ClientPolicy, identity: Identity
) -> None:
    """Verify the whole roster, signature by signature."""
    roster = [Announcement.from_bytes(entry) for entry in pieces(listed, Announcement.SIZE)]
    this.identities = [entry.identity for entry in roster]
    if sorted(set(this.identities)) != this.identities:
        raise InconsistentRosterError("identities are listed twice or out of order")
    for entry in roster:
        if entry.identity not in policy.identities:
            raise UnknownIdentityError(f"{entry.identity.hex()} is not among the pinned identities")
        statement = Announcement.statement_of(entry.asked, entry.mask_key, entry.channel_key)
        keys.verify(entry.identity, entry.signature, statement, "an announcement of keys")
        if entry.asked != this.asked:
            raise DifferentRequestsError(
                f"client {entry.identity.hex()} was asked for something else than this one, in "
                "other terms or with another configuration"
            )
    if identity.public not in this.identities:
        raise InconsistentRosterError("the client itself is not listed")
    this.own = this.identities.index(identity.public)
    mask_keys = [entry.mask_key for entry in roster]
    if mask_keys[this.own] != keys.public_key(this.mask_private):
        raise InconsistentRosterError("the client is listed with keys that it did not announce")
    _check_own_keys(this, mask_keys[: this.own] + mask_keys[this.own + 1 :])
    this.session = session_of(this.terms.digest, plan.to_bytes(), listed)
    # The digest of the roster lays out the ring, so that no one chooses it.
    this.neighbours = Ring(plan, this.session).neighbours(this.own)
    this.mask_keys = [mask_keys[index] for index in this.neighbours]
    _agree(this, [roster[index].channel_key for index in this.neighbours])


def _check_own_keys(this: RoundState, others: list[bytes]) -> None:
    if keys.public_key(this.mask_private) in others:
        raise InconsistentRosterError("somebody else is listed with the client's own key")


def _agree(this: RoundState, channel_keys: list[bytes]) -> None:
    """Agree on the channels' secrets, and find now whether masks can be agreed on later.

    Where only the vector's masks showed that a key is weak, the client would have trained for
    nothing, and would leave the round afterwards.
    """
    keys.agree(this.mask_private, this.mask_keys)
    this.channel_secrets = keys.agree(this.channel_private, channel_keys)


def _channel(this: RoundState, label: int, *, sending: bool) -> bytes:
    """The key of one direction between this client and a neighbour."""
    pair = (this.own, this.neighbours[label])
    sender, receiver = pair if sending else pair[::-1]
    secret = this.channel_secrets[label]
    return keys.derive(secret, b"channel %d to %d" % (sender, receiver), this.session)


def check(this: RoundState, message: bytes, identity: Identity) -> bytes:
    """Keep the neighbours' shares that are right, and complain of those that are not.

    A client stays whatever a neighbour sent it, and holds nothing of that one: if it left, two
    neighbours who cheat could cut others out of the round.
    """
    sharers, boxes, evidence = read(message, Kind.DELIVERIES, [None, None, None])
    present = _present(this, sharers)
    signed = keys.SIGNATURE_BYTES if this.terms.malicious else 0
    sealed = pieces(boxes, SEALED_BYTES)
    about = pieces(evidence, EVIDENCE_BYTES + signed)
    if not len(sealed) == len(about) == len(present):
        raise TamperedSharesError(f"{len(sealed)} shares came of {len(present)} neighbours")
    complaints, signatures = [], []
    for label, box, said in zip(present, sealed, about, strict=True):
        shares = keys.unseal(_channel(this, label, sending=False), box, this.session)
        if shares is not None and Evidence.from_bytes(said[:EVIDENCE_BYTES]).fit(shares):
            this.held[label] = shares
            continue
        complaints.append(label)
        if this.terms.malicious:
            signatures.append(_complaint(this, label, box, said, identity))
    this.stage = ClientStage.MASKING
    return write(
        Kind.COMPLAINTS,
        this.session,
        write_set(complaints, len(this.neighbours)),
        b"".join(signatures),
    )


def _complaint(this: RoundState, label: int, box: bytes, said: bytes, identity: Identity) -> bytes:
    """A signed complaint of a box, or zeros if it may be the server that spoilt it.

    The sender answers a complaint with its shares for this client. So a malicious server must not
    be able to bring one about: only what the sender has signed is complained of.
    """
    sender = this.neighbours[label]
    evidence, signature = said[:EVIDENCE_BYTES], said[EVIDENCE_BYTES:]
    statement = box_statement(this.session, sender, this.own, box, evidence)
    try:
        keys.verify(this.identities[sender], signature, statement, "a box of shares")
    except ForgedSignatureError:
        return bytes(keys.SIGNATURE_BYTES)
    return keys.sign(identity.private, complaint_statement(this.session, sender, this.own))


def settle(this: RoundState, message: bytes) -> bytes:
    """Show the server the shares of those neighbours who complained of theirs.

    That gives nothing away: only corrupt neighbours complain of an honest client's shares, and
    the adversary knows these already.
    """
    accusers, signatures = read(message, Kind.DISPUTES, [None, None])
    labels = sorted(read_set(accusers, len(this.neighbours)))
    if len(labels) >= this.planned.threshold:
        raise TooFewNeighboursError(
            f"{len(labels)} neighbours dispute their shares; so many are not corrupt, and "
            f"{this.planned.threshold} shares are the whole secret"
        )
    if not this.given:
        raise StaleMessageError("the disputed shares of this round were shown before")
    if this.terms.malicious:
        signed = pieces(signatures, keys.SIGNATURE_BYTES)
        if len(signed) != len(labels):
            raise ForgedSignatureError("not every complaint is signed")
        for label, signature in zip(labels, signed, strict=True):
            accuser = this.neighbours[label]
            statement = complaint_statement(this.session, this.own, accuser)
            keys.verify(this.identities[accuser], signature, statement, "a complaint")
    shown = b"".join(this.given[label] for label in labels)
    this.given = []
    return write(Kind.DISPUTED_SHARES, this.session, shown)


def prepare(this: RoundState, message: bytes) -> None:
    """Note whose masks the vector carries: all of the stage that does not depend on it."""
    plan = this.planned
    (participants,) = read(message, Kind.PARTICIPANTS, [None])
    present = _present(this, participants)
    if len(present) < plan.threshold:
        raise TooFewNeighboursError(
            f"{len(present)} neighbours take part; {plan.threshold} are needed"
        )
    if this.terms.malicious and this.own not in read_set(participants, plan.clients):
        raise SplitViewError("the client is not among those who take part, although it does")
    this.participants, this.given = participants, []
    this.held = {label: this.held[label] for label in present if label in this.held}
    this.stage = ClientStage.TRAINING


def mask(this: RoundState, vector: Vector, identity: Identity) -> bytes:
    """The vector under all masks. It always succeeds: to fail would tell of the vector."""
    plan = this.planned
    bits = ring_bits(plan.clients, this.terms.bound)
    values = _fitting(vector, this.terms, plan.clients)
    masked = values.astype(element_type(bits))  # modulo a power of two: negative ones wrap
    add_mask(masked, keys.self_mask_key(this.seed, this.session))
    present = _present(this, this.participants)
    secrets = keys.agree(this.mask_private, [this.mask_keys[label] for label in present])
    for label, secret in zip(present, secrets, strict=True):
        other = this.neighbours[label]
        key = keys.pair_mask_key(secret, this.own, other, this.session)
        add_mask(masked, key, subtract=this.own > other)
    signature = b""
    if this.terms.malicious:
        statement = participants_statement(this.session, this.participants)
        signature = keys.sign(identity.private, statement)
    this.stage = ClientStage.ENDORSING if this.terms.malicious else ClientStage.OPENING
    return write(Kind.MASKED_UPDATE, this.session, pack(masked, bits), signature)


def _fitting(vector: object, terms: RoundTerms, clients: int) -> Vector:
    """The vector, or zeros where it is not as the terms say."""
    if not isinstance(vector, np.ndarray):
        wrong = f"it must be an array, and is of type {type(vector).__qualname__}"
    elif vector.shape != (terms.size,) or vector.dtype.kind not in "iu":
        wrong = f"it must be {terms.size} integers, not {vector.dtype} of shape {vector.shape}"
    else:
        low, high = int(vector.min()), int(vector.max())
        # Noise may take one client past its own bound, but none past what the ring holds.
        if max(-low, high) <= clients * terms.bound:
            return vector
        wrong = f"its entries must lie within ±{clients * terms.bound}, not in [{low}, {high}]"
    _log.error("This client adds zeros to the round; its vector does not fit: %s.", wrong)
    return np.zeros(terms.size, dtype=np.int64)


def _present(this: RoundState, members: bytes) -> list[int]:
    """The labels of the neighbours in a set.

    Against a malicious server sets are of the whole roster, so that they can be compared;
    otherwise of the neighbours alone, so that messages do not grow with the cohort.
    """
    if not this.terms.malicious:
        return sorted(read_set(members, len(this.neighbours)))
    found = read_set(members, this.planned.clients)
    return [label for label, index in enumerate(this.neighbours) if index in found]


def endorse(this: RoundState, message: bytes, identity: Identity) -> bytes:
    """Check the survivors, and sign the one set that this client stands by."""
    plan = this.planned
    survivors, signatures = read(message, Kind.SURVIVORS, [None, None])
    found = read_set(survivors, plan.clients)
    if len(found) < plan.survivors:
        raise CohortTooSmallError(f"{len(found)} clients survived; {plan.survivors} are needed")
    if not found <= read_set(this.participants, plan.clients) or this.own not in found:
        raise SplitViewError(
            "the survivors are not among those who take part, or the client is not one"
        )
    alive = _present(this, survivors)
    _check_alive(this, alive)
    signed = pieces(signatures, keys.SIGNATURE_BYTES)
    if len(signed) != len(alive):
        raise SplitViewError("not every surviving neighbour has signed whose masks it carries")
    statement = participants_statement(this.session, this.participants)
    for label, signature in zip(alive, signed, strict=True):
        try:
            keys.verify(
                this.identities[this.neighbours[label]], signature, statement, "a masked update"
            )
        except ForgedSignatureError as error:
            raise SplitViewError(
                "a neighbour was shown other participants than this client"
            ) from error
    this.survivors = survivors
    this.stage = ClientStage.OPENING
    endorsed = survivors_statement(this.session, this.participants, survivors)
    return write(Kind.ENDORSEMENT, this.session, keys.sign(identity.private, endorsed))


def open_shares(this: RoundState, message: bytes, policy: ClientPolicy) -> bytes:
    """Open one share for each neighbour: of its seed if it survived, else of its mask key."""
    survivors, endorsers, signatures = read(message, Kind.OPENING_REQUEST, [None, None, None])
    if this.terms.malicious:
        _check_endorsements(this, survivors, endorsers, signatures, policy)
    alive = _present(this, survivors)
    if not set(alive) <= set(_present(this, this.participants)):
        raise SplitViewError("a neighbour is said to survive that does not take part")
    _check_alive(this, alive)
    return write(
        Kind.OPENINGS,
        this.session,
        write_set(this.held, len(this.neighbours)),
        b"".join(
            this.held[label][:SHARE_BYTES] if label in alive else this.held[label][SHARE_BYTES:]
            for label in sorted(this.held)
        ),
    )


def group_of(this: RoundState, members: bytes) -> bytes:
    """A digest of who is in a set of the roster: the same in every round."""
    return keys.digest(
        b"group",
        *(this.identities[index] for index in sorted(read_set(members, this.planned.clients))),
    )


def _check_alive(this: RoundState, alive: list[int]) -> None:
    if len(alive) < this.planned.threshold:
        raise TooFewNeighboursError(
            f"{len(alive)} neighbours survived; {this.planned.threshold} are needed"
        )


def _check_endorsements(
    this: RoundState, survivors: bytes, endorsers: bytes, signatures: bytes, policy: ClientPolicy
) -> None:
    """Make sure that so many stand by these survivors that no other set can have as many."""
    plan = this.planned
    if survivors != this.survivors:
        raise SplitViewError("shares are asked for other survivors than this client endorsed")
    who = sorted(read_set(endorsers, plan.clients))
    signed = pieces(signatures, keys.SIGNATURE_BYTES)
    if len(signed) != len(who) or not set(who) <= read_set(survivors, plan.clients):
        raise SplitViewError("the endorsements are not of the survivors")
    needed = plan.quorum(policy.adversary)
    if len(who) < needed:
        raise SplitViewError(f"{len(who)} clients endorse the survivors; {needed} are needed")
    statement = survivors_statement(this.session, this.participants, survivors)
    for index, signature in zip(who, signed, strict=True):
        keys.verify(this.identities[index], signature, statement, "an endorsement")
