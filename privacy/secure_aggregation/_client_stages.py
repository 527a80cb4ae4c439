"""The client's part in the stages of a round, named as in Bonawitz et al. (CCS 2017), figure 4."""

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
from privacy.secure_aggregation._masking import add_mask, element_type, pack, ring_bits
from privacy.secure_aggregation._messages import (
    AdvertisedKeys,
    Kind,
    box_statement,
    complaint_statement,
    decode,
    decode_set,
    encode,
    encode_set,
    participants_statement,
    pieces,
    session_of,
    survivors_statement,
)
from privacy.secure_aggregation._shamir import SHARE_BYTES, draw_elements, encode_element
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
from privacy.secure_aggregation.neighbours import Ring, RoundPlan
from privacy.secure_aggregation.terms import ClientPolicy, Identity, RoundTerms

NEIGHBOUR_BYTES = INDEX_BYTES + 2 * keys.KEY_BYTES
Vector = npt.NDArray[np.integer[Any]]
_log = logging.getLogger(__name__)


# --- Round 0: AdvertiseKeys


def advertise(
    terms: RoundTerms, asked: bytes, identity: Identity, randomness: Randomness
) -> tuple[RoundState, bytes]:
    """Draw the keys of a round and advertise them, signed."""
    mask_root, channel_private = (randomness.bytes(keys.KEY_BYTES) for _ in range(2))
    mask_key = keys.public_key(mask_private(mask_root))
    channel_key = keys.public_key(channel_private)
    statement = AdvertisedKeys.statement_of(asked, mask_key, channel_key)
    advertised = AdvertisedKeys(
        identity.public, mask_key, channel_key, asked, keys.sign(identity.private, statement)
    )
    state = RoundState(ClientStage.SHARING, terms, mask_root, channel_private, asked)
    return state, encode(Kind.ADVERTISEMENT, terms.digest, advertised.to_bytes())


# --- Round 1: ShareKeys


def share(
    state: RoundState,
    kind: Kind,
    message: bytes,
    policy: ClientPolicy,
    identity: Identity,
    randomness: Randomness,
) -> bytes:
    """Check who takes part, and share the two secrets among the neighbours."""
    if (kind is Kind.ROSTER) != state.terms.malicious:
        raise WrongStageError(f"{kind.name} does not belong to a {state.terms.server.value} server")
    encoded, listed = decode(message, kind, [None, None])
    plan = RoundPlan.from_bytes(encoded)
    if plan.min_survivors < state.terms.min_clients:
        raise CohortTooSmallError(
            f"the plan opens the sum of {plan.min_survivors} clients; the terms said at least "
            f"{state.terms.min_clients}"
        )
    size = AdvertisedKeys.SIZE * plan.clients
    if kind is Kind.NEIGHBOURHOOD:
        size = INDEX_BYTES + NEIGHBOUR_BYTES * plan.neighbours
    if len(listed) != size:
        raise InconsistentRosterError(
            f"{len(listed)} bytes list those whom the plan needs {size} for"
        )
    plan.check(policy.adversary)
    try:
        ring_bits(plan.clients, state.terms.bound)
    except ValueError as error:  # before it trains
        raise UnacceptableTermsError(f"the sum of this round fits no ring: {error}") from error
    state.plan = plan
    if kind is Kind.ROSTER:
        _read_roster(state, plan, listed, policy, identity)
    else:
        _read_neighbourhood(state, plan, listed)
        state.session = session_of(state.terms.digest, encoded, b"")

    seed = draw_elements(randomness, 1)[0]
    state.seed = encode_element(seed)
    dealing = deal(
        state.mask_root,
        seed,
        threshold=plan.threshold,
        holders=plan.neighbours,
        context=sharing_context(state.session, state.own),
        randomness=randomness,
    )
    state.dealt_shares = dealing.shares
    boxes = [
        keys.seal(_channel(state, label, sending=True), shares, state.session, randomness)
        for label, shares in enumerate(dealing.shares)
    ]
    signatures = b""
    if state.terms.malicious:
        signatures = b"".join(
            keys.sign(
                identity.private,
                box_statement(state.session, state.own, receiver, box, evidence.to_bytes()),
            )
            for receiver, box, evidence in zip(
                state.neighbours, boxes, dealing.evidence, strict=True
            )
        )
    state.stage = ClientStage.CHECKING
    return encode(
        Kind.SHARES,
        state.session,
        dealing.proof + signatures,
        *(b"".join(commitments) for commitments in dealing.commitments),
        b"".join(boxes),
    )


def _read_neighbourhood(state: RoundState, plan: RoundPlan, listed: bytes) -> None:
    """Take the neighbours from a server that follows the protocol."""
    own, entries = listed[:INDEX_BYTES], pieces(listed[INDEX_BYTES:], NEIGHBOUR_BYTES)
    state.own = int.from_bytes(own, "little")
    state.neighbours = [int.from_bytes(entry[:INDEX_BYTES], "little") for entry in entries]
    state.mask_keys = [entry[INDEX_BYTES:][: keys.KEY_BYTES] for entry in entries]
    _agree(state, [entry[INDEX_BYTES + keys.KEY_BYTES :] for entry in entries])
    everybody = {state.own, *state.neighbours}
    if len(everybody) != plan.neighbours + 1:
        raise InconsistentRosterError("the neighbours are not as many different ones as planned")
    if max(everybody) >= plan.clients:
        raise InconsistentRosterError("a neighbour lies outside the cohort")
    _check_own_keys(state, state.mask_keys)


def _read_roster(
    state: RoundState, plan: RoundPlan, listed: bytes, policy: ClientPolicy, identity: Identity
) -> None:
    """Verify the whole roster, signature by signature."""
    roster = [AdvertisedKeys.from_bytes(entry) for entry in pieces(listed, AdvertisedKeys.SIZE)]
    state.identities = [entry.identity for entry in roster]
    if sorted(set(state.identities)) != state.identities:
        raise InconsistentRosterError("identities are listed twice or out of order")
    for entry in roster:
        if entry.identity not in policy.client_public_keys:
            raise UnknownIdentityError(f"{entry.identity.hex()} is not among the pinned identities")
        entry.check_signature()
        if entry.asked != state.asked:
            raise DifferentRequestsError(
                f"client {entry.identity.hex()} was asked for something else than this one, in "
                "other terms or with another configuration"
            )
    if identity.public not in state.identities:
        raise InconsistentRosterError("the client itself is not listed")
    state.own = state.identities.index(identity.public)
    mask_keys = [entry.mask_key for entry in roster]
    if mask_keys[state.own] != keys.public_key(state.mask_private):
        raise InconsistentRosterError("the client is listed with keys that it did not advertise")
    _check_own_keys(state, mask_keys[: state.own] + mask_keys[state.own + 1 :])
    state.session = session_of(state.terms.digest, plan.to_bytes(), listed)
    # The digest of the roster lays out the ring, so that no one chooses it.
    state.neighbours = Ring(plan, state.session).neighbours(state.own)
    state.mask_keys = [mask_keys[index] for index in state.neighbours]
    _agree(state, [roster[index].channel_key for index in state.neighbours])


def _check_own_keys(state: RoundState, others: list[bytes]) -> None:
    if keys.public_key(state.mask_private) in others:
        raise InconsistentRosterError("somebody else is listed with the client's own key")


def _agree(state: RoundState, channel_keys: list[bytes]) -> None:
    """Agree on the channels' secrets, and find weak keys of masks before anybody trains."""
    keys.agree(state.mask_private, state.mask_keys)
    state.channel_secrets = keys.agree(state.channel_private, channel_keys)


def _channel(state: RoundState, label: int, *, sending: bool) -> bytes:
    """The key of one direction between this client and a neighbour."""
    pair = (state.own, state.neighbours[label])
    sender, receiver = pair if sending else pair[::-1]
    secret = state.channel_secrets[label]
    return keys.derive(secret, b"channel %d to %d" % (sender, receiver), state.session)


# --- Between: shares are checked, and disputes settled


def check(state: RoundState, message: bytes, identity: Identity) -> bytes:
    """Keep the neighbours' shares that are right, and complain of those that are not.

    A client stays whatever a neighbour sent it, and holds nothing of that one: if it left, two
    cheats could cut others out of the round.
    """
    sharers, boxes, evidence = decode(message, Kind.DELIVERIES, [None, None, None])
    present = _present(state, sharers)
    signed = keys.SIGNATURE_BYTES if state.terms.malicious else 0
    sealed = pieces(boxes, SEALED_BYTES)
    about = pieces(evidence, EVIDENCE_BYTES + signed)
    if not len(sealed) == len(about) == len(present):
        raise TamperedSharesError(f"{len(sealed)} shares came of {len(present)} neighbours")
    complaints, signatures = [], []
    for label, box, proof in zip(present, sealed, about, strict=True):
        shares = keys.unseal(_channel(state, label, sending=False), box, state.session)
        if shares is not None and Evidence.from_bytes(proof[:EVIDENCE_BYTES]).fit(shares):
            state.held_shares[label] = shares
            continue
        complaints.append(label)
        if state.terms.malicious:
            signatures.append(_complaint(state, label, box, proof, identity))
    state.stage = ClientStage.MASKING
    return encode(
        Kind.COMPLAINTS,
        state.session,
        encode_set(complaints, len(state.neighbours)),
        b"".join(signatures),
    )


def _complaint(
    state: RoundState, label: int, box: bytes, proof: bytes, identity: Identity
) -> bytes:
    """A signed complaint of a box, or zeros if it may be the server that spoilt it.

    The sender answers a complaint with its shares for this client, and a malicious server must not
    bring that about: only a box that the sender has signed is complained of.
    """
    sender = state.neighbours[label]
    evidence, signature = proof[:EVIDENCE_BYTES], proof[EVIDENCE_BYTES:]
    statement = box_statement(state.session, sender, state.own, box, evidence)
    try:
        keys.verify(state.identities[sender], signature, statement, "a box of shares")
    except ForgedSignatureError:
        return bytes(keys.SIGNATURE_BYTES)
    return keys.sign(identity.private, complaint_statement(state.session, sender, state.own))


def answer_disputes(state: RoundState, message: bytes) -> bytes:
    """Show the server the shares of those neighbours who complained of theirs.

    That gives nothing away: only corrupt neighbours complain of an honest client's shares, which
    the adversary has already.
    """
    accusers, signatures = decode(message, Kind.DISPUTES, [None, None])
    labels = sorted(decode_set(accusers, len(state.neighbours)))
    if len(labels) >= state.planned.threshold:
        raise TooFewNeighboursError(
            f"{len(labels)} neighbours dispute their shares; so many are not corrupt, and "
            f"{state.planned.threshold} shares are the whole secret"
        )
    if not state.dealt_shares:
        raise StaleMessageError("the disputed shares of this round were shown before")
    if state.terms.malicious:
        signed = pieces(signatures, keys.SIGNATURE_BYTES)
        if len(signed) != len(labels):
            raise ForgedSignatureError("not every complaint is signed")
        for label, signature in zip(labels, signed, strict=True):
            accuser = state.neighbours[label]
            statement = complaint_statement(state.session, state.own, accuser)
            keys.verify(state.identities[accuser], signature, statement, "a complaint")
    shown = b"".join(state.dealt_shares[label] for label in labels)
    state.dealt_shares = []
    return encode(Kind.DISPUTED_SHARES, state.session, shown)


# --- Round 2: MaskedInputCollection


def prepare(state: RoundState, message: bytes) -> None:
    """Note whose masks the vector carries: all of the stage that does not depend on it."""
    plan = state.planned
    (participants,) = decode(message, Kind.PARTICIPANTS, [None])
    present = _present(state, participants)
    if len(present) < plan.threshold:
        raise TooFewNeighboursError(
            f"{len(present)} neighbours take part; {plan.threshold} are needed"
        )
    if state.terms.malicious and state.own not in decode_set(participants, plan.clients):
        raise SplitViewError("the client is not among those who take part, although it does")
    state.participants, state.dealt_shares = participants, []
    state.held_shares = {
        label: state.held_shares[label] for label in present if label in state.held_shares
    }
    state.stage = ClientStage.TRAINING


def mask(state: RoundState, vector: Vector, identity: Identity) -> bytes:
    """The vector under all masks. It always succeeds: to fail would tell of the vector."""
    plan = state.planned
    bits = ring_bits(plan.clients, state.terms.bound)
    values = _fitting(vector, state.terms, plan.clients)
    masked = values.astype(element_type(bits))  # modulo a power of two: negative ones wrap
    add_mask(masked, keys.self_mask_key(state.seed, state.session))
    present = _present(state, state.participants)
    secrets = keys.agree(state.mask_private, [state.mask_keys[label] for label in present])
    for label, secret in zip(present, secrets, strict=True):
        other = state.neighbours[label]
        key = keys.pair_mask_key(secret, state.own, other, state.session)
        add_mask(masked, key, subtract=state.own > other)
    signature = b""
    if state.terms.malicious:
        statement = participants_statement(state.session, state.participants)
        signature = keys.sign(identity.private, statement)
    state.stage = ClientStage.ENDORSING if state.terms.malicious else ClientStage.OPENING
    return encode(Kind.MASKED_UPDATE, state.session, pack(masked, bits), signature)


def _fitting(vector: object, terms: RoundTerms, clients: int) -> Vector:
    """The vector, or zeros where it does not fit the terms."""
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


# --- Round 3: ConsistencyCheck (malicious server)


def endorse(state: RoundState, message: bytes, identity: Identity) -> bytes:
    """Check the survivors, and sign the one set that this client stands by."""
    plan = state.planned
    survivors, signatures = decode(message, Kind.SURVIVORS, [None, None])
    alive_set = decode_set(survivors, plan.clients)
    if len(alive_set) < plan.min_survivors:
        raise CohortTooSmallError(
            f"{len(alive_set)} clients survived; {plan.min_survivors} are needed"
        )
    if not alive_set <= decode_set(state.participants, plan.clients) or state.own not in alive_set:
        raise SplitViewError(
            "the survivors are not among those who take part, or the client is not one"
        )
    alive = _present(state, survivors)
    _check_alive(state, alive)
    signed = pieces(signatures, keys.SIGNATURE_BYTES)
    if len(signed) != len(alive):
        raise SplitViewError("not every surviving neighbour has signed whose masks it carries")
    statement = participants_statement(state.session, state.participants)
    for label, signature in zip(alive, signed, strict=True):
        try:
            keys.verify(
                state.identities[state.neighbours[label]], signature, statement, "a masked update"
            )
        except ForgedSignatureError as error:
            raise SplitViewError(
                "a neighbour was shown other participants than this client"
            ) from error
    state.survivors = survivors
    state.stage = ClientStage.OPENING
    endorsed = survivors_statement(state.session, state.participants, survivors)
    return encode(Kind.ENDORSEMENT, state.session, keys.sign(identity.private, endorsed))


# --- Round 4: Unmasking


def open_shares(state: RoundState, message: bytes, policy: ClientPolicy) -> bytes:
    """Open one share for each neighbour: of its seed if it survived, else of its mask key."""
    survivors, endorsers, signatures = decode(message, Kind.OPENING_REQUEST, [None, None, None])
    if state.terms.malicious:
        _check_endorsements(state, survivors, endorsers, signatures, policy)
    alive = _present(state, survivors)
    if not set(alive) <= set(_present(state, state.participants)):
        raise SplitViewError("a surviving neighbour does not take part")
    _check_alive(state, alive)
    return encode(
        Kind.OPENINGS,
        state.session,
        encode_set(state.held_shares, len(state.neighbours)),
        b"".join(
            state.held_shares[label][:SHARE_BYTES]
            if label in alive
            else state.held_shares[label][SHARE_BYTES:]
            for label in sorted(state.held_shares)
        ),
    )


def _check_endorsements(
    state: RoundState, survivors: bytes, endorsers: bytes, signatures: bytes, policy: ClientPolicy
) -> None:
    """Make sure that so many endorse these survivors that no other set can have as many."""
    plan = state.planned
    if survivors != state.survivors:
        raise SplitViewError("shares are asked for other survivors than this client endorsed")
    who = sorted(decode_set(endorsers, plan.clients))
    signed = pieces(signatures, keys.SIGNATURE_BYTES)
    if len(signed) != len(who) or not set(who) <= decode_set(survivors, plan.clients):
        raise SplitViewError("the endorsements are not of the survivors")
    needed = plan.quorum(policy.adversary)
    if len(who) < needed:
        raise SplitViewError(f"{len(who)} clients endorse the survivors; {needed} are needed")
    statement = survivors_statement(state.session, state.participants, survivors)
    for index, signature in zip(who, signed, strict=True):
        keys.verify(state.identities[index], signature, statement, "an endorsement")


# --- Sets of clients


def _present(state: RoundState, members: bytes) -> list[int]:
    """The labels of the neighbours in a set.

    Against a malicious server sets are of the whole roster, to be compared; else of the neighbours
    alone, so that messages do not grow with the cohort.
    """
    if not state.terms.malicious:
        return sorted(decode_set(members, len(state.neighbours)))
    present = decode_set(members, state.planned.clients)
    return [label for label, index in enumerate(state.neighbours) if index in present]


def _check_alive(state: RoundState, alive: list[int]) -> None:
    if len(alive) < state.planned.threshold:
        raise TooFewNeighboursError(
            f"{len(alive)} neighbours survived; {state.planned.threshold} are needed"
        )


def group_of(state: RoundState, members: bytes) -> bytes:
    """A digest of who is in a set of the roster: the same in every round."""
    return keys.digest(
        b"group",
        *(state.identities[index] for index in sorted(decode_set(members, state.planned.clients))),
    )
