"""What an encrypted round releases, attacked: nodes' noised counts, and the server's noised mean.

One release is a number or two, from which one coin can be guessed. So each canary has a release of
its own: an image of one node, or a node of one round. The encryption hides the rest, and is tested
elsewhere; here are the two numbers that leave it on purpose.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from privacy.accounting import Event, Full, epsilon, read_ledger
from privacy.audit import AuditResult, PrivacyCurve, audit, little_noise_p_value
from privacy.audit.experiment import LESS_NOISE
from privacy.mechanisms import LatticeGaussian, SystemRandomness, add_rounded_gaussian
from strategies import noised_accuracy
from strategies.encrypted_round import NoisedAccuracy, report
from strategies.encrypted_round.report import node_report, release_noised

CANARIES, RIGHT, IMAGES, NODES, DELTA = 200, 20, 40, 50, 1e-5
Z = 3.74  # ε = 1 at this δ, about
Numbers = npt.NDArray[np.float64]
Coins = npt.NDArray[np.bool_]


def audited(run: Any, events: Any, lacks: list[float]) -> AuditResult:
    return audit(
        run,
        canaries=CANARIES,
        claimed_epsilon=lambda: epsilon(events(), delta=DELTA),
        delta=DELTA,
        curve=lambda: PrivacyCurve.of_events(events(), delta=DELTA),
        p_values=lambda: {LESS_NOISE: lacks[0]},
    )


def audited_nodes(folder: Path) -> AuditResult:
    """Whether an image of each node was answered rightly, guessed from the node's report."""
    policy = NoisedAccuracy(epsilon=1.0, total_epsilon=1.0, delta=DELTA)
    lacks: list[float] = []
    folders = [folder / str(number) for number in range(CANARIES)]

    def run(included: Coins) -> dict[str, Numbers]:
        counts = np.empty(CANARIES)
        for number, (node, there) in enumerate(zip(folders, included, strict=True)):
            node.mkdir(parents=True)
            counts[number] = IMAGES * policy.release(RIGHT + there, IMAGES, node, name="run")
        lacks.append(little_noise_p_value(counts - RIGHT - included, sigma=policy.noise))
        return {"the report": counts}

    def events() -> Sequence[Event]:
        return read_ledger(folders[0] / "report-ledger.jsonl").events

    return audited(run, events, lacks)


def audited_server(mechanism: LatticeGaussian) -> AuditResult:
    """Whether a node reported, guessed from how many reports are said to have come."""
    metrics, lacks = noised_accuracy(Z), list[float]()

    def run(included: Coins) -> dict[str, Numbers]:
        answered = np.empty(CANARIES)
        for number, there in enumerate(included):
            reports = [node_report(0.9, images=IMAGES)] * (RIGHT + there)
            answered[number] = release_noised(
                metrics,
                reports,
                population=NODES,
                mechanism=mechanism,
                randomness=SystemRandomness(),
            ).answered
        sigma = Z * 2**0.5
        lacks.append(little_noise_p_value(answered - RIGHT - included, sigma=sigma))
        return {"reports": answered}

    paid = LatticeGaussian().account(noise_multiplier=Z, sampling=Full())
    return audited(run, lambda: [paid], lacks)


def test_nodes_reports_and_the_servers_mean_are_as_private_as_their_ledgers_say(
    tmp_path: Path,
) -> None:
    """At 95 % confidence an audit in 20 says otherwise; four in a row hardly ever."""
    results = [audited_nodes(tmp_path / str(turn)) for turn in range(4)]
    assert all(0.9 < result.claimed_epsilon <= 1.0 for result in results)
    assert any(result.passed for result in results)
    results = [audited_server(LatticeGaussian()) for _ in range(4)]
    assert all(0.9 < result.claimed_epsilon <= 1.01 for result in results)
    assert any(result.passed for result in results)


@dataclass(frozen=True)
class Quieter(LatticeGaussian):
    """Adds a part of the noise that is paid for."""

    part: float = 0.5

    def open(self, *given: Any, noise_multiplier: float, **rest: Any) -> Any:
        return super().open(*given, noise_multiplier=self.part * noise_multiplier, **rest)


@pytest.mark.parametrize("part", [0.0, 0.5])
def test_too_little_noise_is_caught(
    part: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quieter(integers: Any, *, sigma: float, randomness: Any) -> None:
        add_rounded_gaussian(integers, sigma=part * sigma, randomness=randomness)

    monkeypatch.setattr(report, "add_rounded_gaussian", quieter)
    for result in (audited_nodes(tmp_path), audited_server(Quieter(part=part))):
        assert any(finding.startswith("noise:") for finding in result.findings), result
        if not part:
            assert any("guesses are right" in finding for finding in result.findings), result
