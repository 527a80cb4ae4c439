"""The audit of a strategy whose server sees masked sums only, and servers and clients that cheat.

The mutants are broken here and nowhere else; each claims what the honest strategy claims.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord

from privacy.audit import AuditResult
from privacy.mechanisms import DistributedGaussian, MaskedGaussian, MaskedMechanism
from privacy.mechanisms.masked_sums import Integers
from privacy.secure_aggregation import Adversary
from strategies import Budget, DPFedAvg, Full, SecureAggregation, audit_strategy
from strategies.secure_aggregation import update_encoding
from tests.strategies.secure_aggregation.federation import (
    IDENTITIES,
    MALICIOUS,
    PINNED,
    secure_app,
)

CLIENTS, CANARIES = 4, 40
NODES = CLIENTS + CANARIES
CURIOUS = Adversary(max_corrupt_fraction=0.0)
SHARED: dict[str, Any] = {"noise_placement": "distributed", "max_clients": NODES}


def settings(**changed: Any) -> dict[str, Any]:
    usual = {
        "min_clients": 10,
        "adversary": CURIOUS,
        "max_dropout_fraction": 0.1,
        "dropout_probability": 0.0,
    }
    return usual | changed


def audited(
    secure: SecureAggregation, *, canaries: int = CANARIES, epsilon: float = 1.0, **given: Any
) -> AuditResult:
    def make(folder: Path) -> DPFedAvg:
        return DPFedAvg(
            population=CLIENTS + canaries,
            sampling=Full(),
            clipping=0.5,
            budget=Budget(epsilon, 1e-5),
            ledger=folder / "ledger.jsonl",
            secure_aggregation=secure,
        )

    return audit_strategy(
        make,
        secure_app(lambda _, __, arrays: [a + np.float32(0.01) for a in arrays], secure.adversary),
        ArrayRecord([np.zeros(canaries, np.float32)]),
        clients=CLIENTS,
        canaries=canaries,
        **given,
    )


@pytest.mark.parametrize("noise", [{}, SHARED], ids=["central", "distributed"])
def test_honest_masked_sums_are_not_contradicted(noise: dict[str, Any]) -> None:
    """At 95 % confidence one audit in 20 is; four in a row hardly ever."""
    assert any(audited(SecureAggregation(**settings(**noise))).passed for _ in range(4))


def test_canaries_are_seen_through_the_masks_of_a_server_that_may_be_malicious() -> None:
    """With ε of a hundred every coin is guessed right."""
    secure = SecureAggregation(**settings(adversary=MALICIOUS, client_public_keys=PINNED))
    result = audited(secure, canaries=12, epsilon=100.0, identities=IDENTITIES[: CLIENTS + 12])
    assert result.passed
    assert [attack.correct for attack in result.attacks] == [6, 6]


@dataclass(frozen=True)
class Quieter(MaskedGaussian):
    """The server adds less noise to the opened sum than it pays for."""

    share = 0.5

    def decode(self, *given: Any, noise_multiplier: float, **rest: Any) -> Any:
        return super().decode(*given, noise_multiplier=self.share * noise_multiplier, **rest)


@dataclass(frozen=True)
class Silent(Quieter):
    share = 0.0


@dataclass(frozen=True, kw_only=True)
class Cheats(SecureAggregation):
    """A server with another mechanism than it says."""

    instead: type[MaskedGaussian]

    def mechanism(self, parameters: int) -> MaskedMechanism:
        return self.instead(super().mechanism(parameters).radius)


@pytest.mark.parametrize(("instead", "guessed"), [(Silent, True), (Quieter, False)])
def test_a_server_that_adds_too_little_noise_is_caught(
    instead: type[MaskedGaussian], guessed: bool
) -> None:
    result = audited(Cheats(**settings(), instead=instead))
    assert result.claimed_epsilon <= 1.0
    assert any(finding.startswith("noise:") for finding in result.findings), result
    if guessed:
        assert any(finding.startswith("last model:") for finding in result.findings), result


@dataclass(frozen=True)
class HalfShares(DistributedGaussian):
    """A client adds half of the noise of its share."""

    def _add_share(self, integers: Integers, noise_multiplier: float, randomness: Any) -> None:
        super()._add_share(integers, noise_multiplier / 2, randomness)


def test_clients_that_add_half_of_their_shares_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(update_encoding._MECHANISMS, DistributedGaussian.name, HalfShares)
    monkeypatch.setattr(update_encoding.UpdateEncoding, "check", lambda *_: None)
    result = audited(SecureAggregation(**settings(**SHARED)))
    assert any(finding.startswith("noise:") for finding in result.findings), result


def test_against_a_malicious_server_each_node_needs_an_identity() -> None:
    secure = SecureAggregation(**settings(adversary=MALICIOUS, client_public_keys=PINNED))
    with pytest.raises(ValueError, match="one Identity for each of 44 nodes"):
        audited(secure)
