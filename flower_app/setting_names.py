"""Names of settings: those of each mode, former ones, and those that people bring along."""

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from flower_app.errors import SettingError

FORMER_NAMES: Mapping[str, str] = {
    "weighting": "weight-cap",
    "minimum-cohort": "min-clients",
    "largest-cohort": "max-clients",
    "corrupt": "max-corrupt-fraction",
    "dropout": "max-dropout-fraction",
    "client-dropout": "dropout-probability",
    "noise": "noise-placement",
    "identities": "client-public-keys",
    "nominal-records": "records-per-client",
    "encrypted-images": "encrypted-test-images",
    "encrypted-round": "encrypted-round-images",
    "encrypted-round-noise": "encrypted-round-noise-multiplier",
}
"""Former names of settings, and the names of today.

``pyproject.toml`` lists them too, since ``flwr run`` itself refuses unlisted names.
"""

_USUAL_NAMES: Mapping[str, str] = {
    "num-server-rounds": "rounds",
    "num-rounds": "rounds",
    "steps": "rounds",
    "num-steps": "rounds",
    "fraction-train": "sampling-rate record-sampling-rate",
    "fraction-fit": "sampling-rate record-sampling-rate",
    "client-fraction": "sampling-rate record-sampling-rate",
    "sample-rate": "sampling-rate record-sampling-rate",
    "min-available-clients": "min-available-nodes silos",
    "min-train-nodes": "min-available-nodes silos",
    "min-fit-clients": "min-available-nodes silos",
    "num-clients": "population silos",
    "num-supernodes": "population silos",
    "num-silos": "silos population",
    "hospitals": "silos population",
    "lr": "local-learning-rate server-learning-rate",
    "learning-rate": "local-learning-rate server-learning-rate",
    "local-epochs": "local-steps rounds",
    "num-epochs": "local-steps rounds",
    "epochs": "local-steps rounds",
    "batch-size": "local-steps record-sampling-rate",
    "server-lr": "server-learning-rate",
    "momentum": "server-momentum",
    "max-grad-norm": "example-clipping-norm clipping-norm",
    "max-norm": "clipping-norm",
    "noise-scale": "noise-multiplier",
    "sigma": "noise-multiplier",
    "target-epsilon": "epsilon",
    "target-delta": "delta",
    "seed": "partition-seed",
    "timeout": "round-timeout",
    "output-dir": "results-dir",
}
"""Names of Flower, Opacus and the literature, and the settings here: the first that a run takes."""

_WITH = {
    ("batch-size", "local-steps"): " (each step takes all of a client's examples)",
    ("batch-size", "record-sampling-rate"): " (a step draws each record with it)",
}

_OF_MODE: Mapping[str, str] = {
    "clients": "population min_available_nodes local_learning_rate local_steps device "
    "example_clipping_norm sampling_rate mechanism weight_cap total_weight secure_aggregation "
    "min_clients max_clients max_corrupt_fraction max_dropout_fraction dropout_probability "
    "noise_placement client_public_keys record_epsilon record_delta records_per_client "
    "encrypted_round_images encrypted_round_release encrypted_round_noise_multiplier",
    "silos": "silos colluders records record_sampling_rate evaluate_every "
    "evaluation_noise_multiplier test_records",
}
"""Settings that one mode alone has; the others are of both."""

_OF_DATA_SETS = "data_dir partition partition_seed dirichlet_alpha lognormal_sigma"
_OF_DEPLOYMENTS = "client_public_keys population_file"

_INSTEAD: Mapping[str, str] = {
    "population": "silos says how many there are",
    "sampling_rate": "record-sampling-rate says with which probability a step draws a record",
    "secure_aggregation": "every step is under it, against an honest-but-curious server",
    "record_epsilon": "epsilon is of a record already",
    "max_corrupt_fraction": "colluders says how many silos may collude",
    "silos": "population says how many clients there are",
    "record_sampling_rate": "sampling-rate says with which probability a round draws a client",
}

_NOW_MEANS = {
    "weighting": " (above 0: capped weights; 0: uniform ones)",
    "encrypted-round": " (above 0: with an encrypted test-time round; 0: without)",
}


def kebab(name: str) -> str:
    """The name of a field as configurations write it."""
    return name.replace("_", "-")


def refusals(*, mode: str, task: bool, deployed: bool) -> dict[str, str]:
    """The fields that a run does not take, and why.

    Parameters
    ----------
    mode : str
    task, deployed : bool
        Whether it is of a user's own data, and whether it is no simulation.
    """
    refused: dict[str, str] = {}
    if not deployed:
        refused |= dict.fromkeys(_OF_DEPLOYMENTS.split(), "it must be left out in a simulation")
    if task:
        divided = "it divides a data set, and the task says who holds what: leave it out"
        refused |= dict.fromkeys(_OF_DATA_SETS.split(), divided)
    for other, names in _OF_MODE.items():
        if other == mode:
            continue
        for name in names.split():
            instead = f" ({_INSTEAD[name]})" if name in _INSTEAD else ""
            refused[name] = (
                f"it belongs to mode = {other!r}, and this run's mode is {mode!r}: leave it "
                f"out{instead}"
            )
    return refused


def without_former_names(
    config: Mapping[str, Any],
    former: Mapping[str, str] = FORMER_NAMES,
    *,
    refused: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A configuration without the renamed settings that ``pyproject.toml`` lists.

    Raises
    ------
    SettingError
        If one was given a value; the message has the new name, and where that is ``refused`` why.
    """
    given = {name: v for name, v in config.items() if name in former and v != former[name]}
    if given:
        raise SettingError(
            "; ".join(
                f"{name} = {value!r} is refused; {_renamed(name, former[name], refused or {})}"
                for name, value in given.items()
            )
        )
    return {name: value for name, value in config.items() if name not in former}


def nearest(name: str, known: Collection[str], refused: Mapping[str, str]) -> str:
    """What may have been meant by a name that is no setting's: of those that the run takes.

    Parameters
    ----------
    name : str
        As it was written.
    known : collection of str
        All settings, with dashes.
    refused : mapping of str to str
        Of ``refusals``.
    """
    taken = [setting for setting in known if setting.replace("-", "_") not in refused]
    written = kebab("-".join(name.lower().split()))
    if written in taken:
        return f"here it is {written}"
    if written in known:
        return f"{written} is, but {refused[written.replace('-', '_')]}"
    if today := FORMER_NAMES.get(written):
        return _renamed(written, today, refused)
    usual = [setting for setting in _USUAL_NAMES.get(written, "").split() if setting in taken]
    if usual:
        return f"here it is {usual[0]}{_WITH.get((written, usual[0]), '')}"
    if near := get_close_matches(written, taken, n=2, cutoff=0.75):
        return f"did you mean {' or '.join(near)}?"
    return f"the settings are {', '.join(taken)}"


def _renamed(name: str, today: str, refused: Mapping[str, str]) -> str:
    why = refused.get(today.replace("-", "_"))
    means = _NOW_MEANS.get(name, "") if why is None else f", but {why}"
    return f"{name} was renamed to {today}{means}"
