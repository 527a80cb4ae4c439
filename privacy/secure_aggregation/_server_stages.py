"""The server's part in the stages of a round, named as in Bonawitz et al. (CCS 2017), figure 4.

``take_…`` reads one client's answer; ``MalformedMessageError`` or ``RefusedError`` if it cannot be
used. ``begin_…`` ends a stage and returns what the next one sends to each node.
"""

from collections import Counter

import numpy as np
import numpy.typing as npt

from privacy.secure_aggregation import _crypto as keys
from privacy.secure_aggregation._client_state import INDEX_BYTES, SEALED_BYTES
from privacy.secure_aggregation._masking import (
    add_mask,
    add_packed,
    centred,
    element_type,
    ring_bits,
)
from privacy.secure_aggregation._messages import (
    AdvertisedKeys,
    Kind,
    bound_to,
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
from privacy.secure_aggregation._server_state import ClientRecord, ServerRound, ServerStage
from privacy.secure_aggregation._shamir import SHARE_BYTES, combine, decode_element, encode_element
from privacy.secure_aggregation._sharing import (
    KEY,
    SEED,
    SHARES_BYTES,
    agree_with,
    check_proof,
    proof_size,
    sharing_context,
)
from privacy.secure_aggregation.errors import (
    ForgedSignatureError,
    MalformedMessageError,
    RejectedMessageError,
    TooFewClientsError,
)
from privacy.secure_aggregation.neighbours import Ring, plan_round

Messages = dict[int, bytes]


# --- Round 0: AdvertiseKeys


def take_advertised_keys(state: ServerRound, node: int, message: bytes) -> None:
    """A client's keys, if neither they nor its identity are another client's."""
    if bound_to(message) != state.terms.digest:
        raise RejectedMessageError(f"node {node} answered another round")
    (content,) = decode(message, Kind.ADVERTISEMENT, [AdvertisedKeys.SIZE])
    advertised = AdvertisedKeys.from_bytes(content)
    if node in state.index:
        raise RejectedMessageError(f"node {node} advertised its keys twice")
    if len(state.clients) >= state.cohort:
        raise RejectedMessageError(
            f"node {node} advertised its keys, but as many as were drawn already did"
        )
    if any(advertised.identity == other.advertised.identity for other in state.clients):
        raise RejectedMessageError(f"node {node} has the identity of another")
    if state.client_public_keys and advertised.identity not in state.client_public_keys:
        raise RejectedMessageError(f"node {node} has an unknown identity")
    advertised.check_signature()
    own = {advertised.mask_key, advertised.channel_key}
    for other in state.clients:
        if own & {other.advertised.mask_key, other.advertised.channel_key}:
            raise RejectedMessageError(f"node {node} advertised a key of another")
    # A key of small order would make its neighbours refuse.
    keys.agree(bytes(keys.KEY_BYTES), [advertised.mask_key, advertised.channel_key])
    state.index[node] = len(state.clients)
    state.clients.append(ClientRecord(node, advertised))


def begin_sharing(state: ServerRound) -> Messages:
    """Plan the round for the clients that advertised keys, and show each its neighbours' keys."""
    if state.terms.malicious:
        _leave_out_misconfigured(state)
    count = len(state.clients)
    if count < state.terms.min_clients:
        raise TooFewClientsError(
            f"{count} clients advertised keys; {state.terms.min_clients} are needed"
        )
    try:
        state.plan = plan_round(
            count,
            adversary=state.adversary,
            max_dropout_fraction=state.max_dropout_fraction,
            min_clients=state.terms.min_clients,
            cohort=state.cohort,
        )
        state.bits = ring_bits(count, state.terms.bound)
    except ValueError as error:
        raise TooFewClientsError(str(error)) from error
    state.clients.sort(key=lambda client: client.advertised.identity)
    state.index = {client.node: index for index, client in enumerate(state.clients)}
    state.total = np.zeros(state.terms.size, dtype=element_type(state.bits))
    state.stage = ServerStage.SHARING
    digest, plan = state.terms.digest, state.plan.to_bytes()
    if state.terms.malicious:
        listed = b"".join(client.advertised.to_bytes() for client in state.clients)
        state.session = session_of(digest, plan, listed)
        state.ring = Ring(state.plan, state.session)
        return dict.fromkeys(state.index, encode(Kind.ROSTER, digest, plan, listed))
    state.session = session_of(digest, plan, b"")
    state.ring = Ring(state.plan, state.randomness.bytes(keys.KEY_BYTES))
    return {
        node: encode(Kind.NEIGHBOURHOOD, digest, plan, _neighbourhood(state, index))
        for node, index in state.index.items()
    }


def _leave_out_misconfigured(state: ServerRound) -> None:
    """Leave out clients with another configuration than most: who sees them would refuse."""
    asked = Counter(client.advertised.asked for client in state.clients)
    for most, _ in asked.most_common(1):
        others = [client for client in state.clients if client.advertised.asked != most]
        state.misconfigured = [client.node for client in others]
        state.clients = [client for client in state.clients if client not in others]


def _neighbourhood(state: ServerRound, index: int) -> bytes:
    parts = [index.to_bytes(INDEX_BYTES, "little")]
    for neighbour in state.ring.neighbours(index):
        advertised = state.clients[neighbour].advertised
        parts.append(neighbour.to_bytes(INDEX_BYTES, "little"))
        parts += [advertised.mask_key, advertised.channel_key]
    return b"".join(parts)


# --- Round 1: ShareKeys


def take_shares(state: ServerRound, index: int, message: bytes) -> None:
    """A client's encrypted shares, if its proof holds that they are of its mask key."""
    client, k, size = state.clients[index], state.plan.neighbours, keys.COMMITMENT_BYTES
    proof_bytes = proof_size(state.plan.threshold)
    signed = keys.SIGNATURE_BYTES * k if state.terms.malicious else 0
    proof, seeds, private, boxes = decode(
        message, Kind.SHARES, [proof_bytes + signed, size * k, size * k, SEALED_BYTES * k]
    )
    try:
        client.evidence = check_proof(
            proof[:proof_bytes],
            pieces(seeds, size),
            pieces(private, size),
            mask_key=client.advertised.mask_key,
            context=sharing_context(state.session, index),
        )
    except (MalformedMessageError, ForgedSignatureError) as error:
        state.blame(index, "shared something else than its own secrets")
        raise MalformedMessageError("it shared something else than its own secrets") from error
    client.boxes = pieces(boxes, SEALED_BYTES)
    client.box_signatures = pieces(proof[proof_bytes:], keys.SIGNATURE_BYTES)


def begin_checking(state: ServerRound) -> Messages:
    """Deliver to each client the shares addressed to it, with the evidence to check them by."""
    state.sharers = state.enough(state.answered, "shared their secrets")
    sharers = set(state.sharers)
    state.check_openable(state.sharers, sharers)
    whole = encode_set(state.sharers, state.plan.clients)
    state.stage = ServerStage.CHECKING
    messages = {}
    for index in state.sharers:
        senders = [other for other in state.ring.neighbours(index) if other in sharers]
        places = [(state.clients[other], state.ring.label(other, index)) for other in senders]
        messages[state.clients[index].node] = encode(
            Kind.DELIVERIES,
            state.session,
            state.members(index, sharers, whole),
            b"".join(sender.boxes[label] for sender, label in places),
            b"".join(
                sender.evidence[label].to_bytes()
                + (sender.box_signatures[label] if state.terms.malicious else b"")
                for sender, label in places
            ),
        )
    return messages


# --- Between: shares are checked, and disputes settled


def take_complaints(state: ServerRound, index: int, message: bytes) -> None:
    """Note of whose shares a client complains."""
    malicious, around = state.terms.malicious, state.ring.neighbours(index)
    complaints, signatures = decode(message, Kind.COMPLAINTS, [-(-len(around) // 8), None])
    accused = [around[label] for label in sorted(decode_set(complaints, len(around)))]
    signed = pieces(signatures, keys.SIGNATURE_BYTES) if malicious else []
    if not set(accused) <= set(state.sharers) or (
        len(signed) != len(accused) if malicious else signatures
    ):
        raise MalformedMessageError("complaints of others than those whose shares were delivered")
    for place, owner in enumerate(accused):
        signature = signed[place] if signed else b""
        if signature == bytes(keys.SIGNATURE_BYTES):
            _judge(state, owner, index)
            continue
        if signature:
            statement = complaint_statement(state.session, owner, index)
            identity = state.clients[index].advertised.identity
            keys.verify(identity, signature, statement, "a complaint")
        state.clients[owner].accusers[state.ring.label(owner, index)] = signature


def _judge(state: ServerRound, owner: int, accuser: int) -> None:
    """Blame the accuser or the owner of a box for its sender's signature."""
    client, label = state.clients[owner], state.ring.label(owner, accuser)
    statement = box_statement(
        state.session, owner, accuser, client.boxes[label], client.evidence[label].to_bytes()
    )
    signature = client.box_signatures[label]
    try:
        keys.verify(client.advertised.identity, signature, statement, "a box of shares")
    except ForgedSignatureError:
        state.blame(owner, "sent a neighbour shares that it had not signed")
        state.excluded.add(owner)
    else:
        state.blame(accuser, "complained of a signature that is right")


def begin_disputing(state: ServerRound) -> Messages:
    """Ask clients whose shares are disputed to show these; go on if there are none."""
    for client in state.clients:
        client.boxes, client.box_signatures = [], []
    state.checked = state.answered - state.excluded
    state.enough(state.checked, "checked the shares that they hold")
    accused = [index for index in sorted(state.checked) if state.clients[index].accusers]
    state.stage = ServerStage.DISPUTING
    if not accused:
        state.answered = set()
        return begin_masking(state)
    messages = {}
    for client in (state.clients[index] for index in accused):
        labels = sorted(client.accusers)
        messages[client.node] = encode(
            Kind.DISPUTES,
            state.session,
            encode_set(labels, state.plan.neighbours),
            b"".join(client.accusers[label] for label in labels),
        )
    return messages


def take_disputed_shares(state: ServerRound, index: int, message: bytes) -> None:
    """The shares that an owner shows, if they are those that it committed to."""
    client = state.clients[index]
    labels = sorted(client.accusers)
    (content,) = decode(message, Kind.DISPUTED_SHARES, [SHARES_BYTES * len(labels)])
    shown = dict(zip(labels, pieces(content, SHARES_BYTES), strict=True))
    if not all(client.evidence[label].fit(shares) for label, shares in shown.items()):
        raise MalformedMessageError("the shares that it shows are not those it committed to")
    client.shown = shown
    for label in labels:
        accuser = state.ring.neighbours(index)[label]
        between = f"{client.node} and {state.clients[accuser].node}"
        for one in (index, accuser):
            state.blame(one, f"disputed shares, which are right: one of nodes {between} lies")


# --- Round 2: MaskedInputCollection


def begin_masking(state: ServerRound) -> Messages:
    """Leave out who shared wrongly, and tell the others who takes part: they train now."""
    for index in state.checked - state.answered:
        if state.clients[index].accusers:
            state.blame(index, "did not show the shares that its neighbours dispute")
            state.excluded.add(index)
    taking_part = state.checked - state.excluded
    state.participants = state.enough(taking_part, "shared their secrets as they should")
    state.check_openable(state.participants, taking_part)
    state.participant_set = encode_set(state.participants, state.plan.clients)
    state.stage = ServerStage.MASKING
    return {
        state.clients[index].node: encode(
            Kind.PARTICIPANTS,
            state.session,
            state.members(index, taking_part, state.participant_set),
        )
        for index in state.participants
    }


def take_masked(state: ServerRound, index: int, message: bytes) -> None:
    """A masked vector, added to the sum."""
    client = state.clients[index]
    signed = keys.SIGNATURE_BYTES if state.terms.malicious else 0
    packed, client.signature = decode(message, Kind.MASKED_UPDATE, [None, signed])
    if state.terms.malicious:
        statement = participants_statement(state.session, state.participant_set)
        keys.verify(client.advertised.identity, client.signature, statement, "a masked update")
    try:
        add_packed(state.total, packed, state.bits)
    except ValueError as error:
        raise MalformedMessageError(str(error)) from error


def begin_endorsing(state: ServerRound) -> Messages:
    """Name the survivors: to be endorsed (malicious), or with the request to open shares."""
    state.survivors = state.enough(state.answered, "sent their masked vectors")
    survivors = set(state.survivors)
    state.check_openable(state.participants, survivors)
    state.survivor_set = encode_set(state.survivors, state.plan.clients)
    if not state.terms.malicious:
        state.stage = ServerStage.OPENING
        return {
            state.clients[index].node: encode(
                Kind.OPENING_REQUEST,
                state.session,
                state.members(index, survivors, state.survivor_set),
                b"",
                b"",
            )
            for index in state.survivors
        }
    state.stage = ServerStage.ENDORSING
    return {
        state.clients[index].node: encode(
            Kind.SURVIVORS,
            state.session,
            state.survivor_set,
            b"".join(
                state.clients[other].signature
                for other in state.ring.neighbours(index)
                if other in survivors
            ),
        )
        for index in state.survivors
    }


# --- Round 3: ConsistencyCheck (malicious server)


def take_endorsement(state: ServerRound, index: int, message: bytes) -> None:
    """A client's signature of the survivors."""
    client = state.clients[index]
    (signature,) = decode(message, Kind.ENDORSEMENT, [keys.SIGNATURE_BYTES])
    statement = survivors_statement(state.session, state.participant_set, state.survivor_set)
    keys.verify(client.advertised.identity, signature, statement, "an endorsement")
    client.signature = signature


def begin_opening(state: ServerRound) -> Messages:
    """Ask the endorsers for shares, with a quorum of their signatures."""
    endorsers = sorted(state.answered)
    needed = state.plan.quorum(state.adversary)
    if len(endorsers) < needed:
        raise TooFewClientsError(f"{len(endorsers)} endorsed the survivors; {needed} are needed")
    state.check_openable(state.participants, state.answered)
    state.stage = ServerStage.OPENING
    request = encode(
        Kind.OPENING_REQUEST,
        state.session,
        state.survivor_set,
        encode_set(endorsers, state.plan.clients),
        b"".join(state.clients[index].signature for index in endorsers),
    )
    return {state.clients[index].node: request for index in endorsers}


# --- Round 4: Unmasking


def take_openings(state: ServerRound, index: int, message: bytes) -> None:
    """The shares that a client opens, each that its owner committed to."""
    participants, survivors = set(state.participants), set(state.survivors)
    around = state.ring.neighbours(index)
    members, content = decode(message, Kind.OPENINGS, [-(-len(around) // 8), None])
    owners = [around[label] for label in sorted(decode_set(members, len(around)))]
    opened = pieces(content, SHARE_BYTES)
    if len(opened) != len(owners) or not set(owners) <= participants:
        raise MalformedMessageError("shares are opened of others than those who take part")
    if any(
        owner in participants - set(owners)
        and state.ring.label(owner, index) not in state.clients[owner].accusers
        for owner in around
    ):
        state.blame(index, "did not open every share that it holds")
    for owner, share in zip(owners, opened, strict=True):
        label = state.ring.label(owner, index)
        client = state.clients[owner]
        # It is what its owner committed to, and the holder had not complained of it.
        if client.evidence[label].fits(SEED if owner in survivors else KEY, share):
            client.opened[label + 1] = decode_element(share)
        elif label not in client.accusers:
            state.blame(index, "opened a share that is not the one that it holds")


def unmask(state: ServerRound) -> npt.NDArray[np.int64]:
    """Take all masks off the sum: survivors' own, and the pairwise ones of who dropped out."""
    survivors = set(state.survivors)
    secrets = {
        owner: reconstruct(state, state.clients[owner], survived=owner in survivors)
        for owner in state.participants
    }
    for owner, secret in secrets.items():
        if owner in survivors:
            key = keys.self_mask_key(encode_element(secret), state.session)
            add_mask(state.total, key, subtract=True)
            continue
        others = [other for other in state.ring.neighbours(owner) if other in survivors]
        publics = [state.clients[other].advertised.mask_key for other in others]
        for other, agreed in zip(others, agree_with(secret, publics), strict=True):
            key = keys.pair_mask_key(agreed, owner, other, state.session)
            add_mask(state.total, key, subtract=other < owner)
    total = centred(state.total, state.bits)
    state.total = np.zeros(0, np.uint32)
    return total


def reconstruct(state: ServerRound, client: ClientRecord, *, survived: bool) -> int:
    """The seed of a survivor, or the mask key of who dropped out.

    All shares that fit their commitments are of one polynomial: any of them will do.
    """
    which = SEED if survived else KEY
    for label, shares in client.shown.items():
        client.opened[label + 1] = decode_element(pieces(shares, SHARE_BYTES)[which])
    needed = state.plan.threshold
    points = sorted(client.opened)[:needed]
    if len(points) < needed:
        raise TooFewClientsError(
            f"{len(points)} neighbours of node {client.node} opened their share of its secret; "
            f"{needed} are needed"
        )
    return combine({point: client.opened[point] for point in points})
