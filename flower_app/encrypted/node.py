"""A node's side of the encrypted test-time round: its own test images, its own secrets."""

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message

from flower_app.data import ClientData
from flower_app.errors import SettingError
from flower_app.settings import Settings
from flower_app.training.node_policy import own_folder, simulated_place, wrong_key
from flower_app.training.work import dataset_of, inputs_of, own_examples, spec_of
from privacy.inference import InputContract
from strategies import answer_encrypted_round
from strategies.encrypted_round import NoisedAccuracy
from strategies.encrypted_round.errors import RoundError


def simulated_secrets(run_id: int) -> Path:
    """The folder of a simulation's nodes for secrets, each in a folder of its own.

    Ray hands a node's two messages to any of its processes, so memory does not last. A simulation
    protects nobody: all its nodes are one user on one machine.
    """
    return Path(tempfile.gettempdir()) / f"bloomseal-{run_id:x}"


def answer_query(message: Message, context: Context, settings: Settings) -> Message:
    """Answer one of the round's two messages.

    A deployed node's owner decides in ``node-config``: ``test-dir`` and ``state-dir``;
    ``report-epsilon`` and ``report-total-epsilon`` for the noise on its report, against a server
    that follows the protocol;
    ``publish-report``, whether the server may publish that without noise of the server's.
    """
    spec = spec_of(settings)
    config = context.node_config
    if settings.deployed:
        folder = _own_folder(context, "state-dir")
        report = _own_report(config)
        agrees = bool(config.get("publish-report", False))
    else:
        client = int(config["partition-id"])
        folder = simulated_secrets(context.run_id) / str(client)
        report = NoisedAccuracy(epsilon=3.0, total_epsilon=3.0)  # it lives for one report
        agrees = True
    return answer_encrypted_round(
        message,
        data=partial(_labelled, settings, context),
        contract=InputContract(
            spec.shape, (spec.low, spec.high), spec.classes, feature_names=spec.feature_names
        ),
        folder=folder,
        report=report,
        allow_public_release=agrees,
    )


def _labelled(settings: Settings, context: Context) -> tuple[np.ndarray, np.ndarray]:
    test = own_test_data(settings, context)
    return test.inputs, test.labels


def own_test_data(settings: Settings, context: Context) -> ClientData:
    """Images that this client never trains on.

    In a simulation the data set's test images are dealt out among all clients; a deployed node
    has a folder of its own, in the format of its training data.

    Raises
    ------
    RoundError
        If a deployed node names no folder.
    """
    if settings.deployed:
        return own_examples(settings, _own_folder(context, "test-dir"))
    clients, client = simulated_place(context)
    dataset = dataset_of(settings)
    mine = slice(client, None, clients)
    return ClientData(inputs_of(settings, dataset).test(mine), dataset.test.labels[mine])


def _own_report(config: Mapping[str, Any]) -> NoisedAccuracy:
    """The noise that this node's owner wants on its reports.

    Raises
    ------
    SettingError
        If one report costs more than all together may.
    """
    each, total = config.get("report-epsilon", 1.0), config.get("report-total-epsilon", 3.0)
    if each > total:
        raise wrong_key("report-epsilon", each, f"at most report-total-epsilon, which is {total}")
    return NoisedAccuracy(epsilon=float(each), total_epsilon=float(total))


def _own_folder(context: Context, name: str) -> Path:
    try:
        return own_folder(context.node_config, name, name)
    except SettingError as error:
        raise RoundError(
            f"this SuperNode has no {name}; its owner starts it with --node-config '{name}=\"...\"'"
        ) from error
