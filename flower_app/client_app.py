"""What a client does: train on its own data, and reply with its update and weight alone."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from torch import nn

from flower_app.data import (
    ClientData,
    InputKind,
    encode,
    load_dataset,
    load_inputs,
    load_node_folder,
    load_partitions,
    simulated_client,
)
from flower_app.model_specs import MODELS
from flower_app.models import build_model
from flower_app.secure import take_part
from flower_app.settings import SettingError, Settings
from privacy.accounting import Budget
from privacy.training import (
    Charge,
    ClientLedger,
    ClipAndNoise,
    ClipOnly,
    FullBatch,
    GradientDescent,
    LocalBudgetSpent,
    NoisyCount,
    NominalCount,
    calibrate_noise,
    fingerprint,
    train,
)

app = ClientApp(mods=[take_part])

_LEDGER = "privacy-ledger"
_COUNT_NOISE = 10.0  # records; the noise on a count that is sent beside record-level noise


@app.train()
def train_on_own_data(message: Message, context: Context) -> Message:
    """Take the round's local steps from the model that was sent, and send the result back."""
    settings = Settings.of_client(context.run_config)
    data = own_data(settings, context)
    (arrays,) = message.content.array_records.values()
    if not len(data):  # a skewed partition can leave a client with nothing to add
        return _reply(message, settings, arrays, 0.0)
    model = build_model(settings.model)
    model.load_state_dict(arrays.to_torch_state_dict())
    inputs, labels = torch.from_numpy(data.inputs), torch.from_numpy(data.labels)

    protection: ClipOnly | ClipAndNoise = ClipOnly(clipping_norm=settings.example_clipping_norm)
    ledger = None
    if settings.record_epsilon:
        protection = _record_level(settings)
        ledger = _own_ledger(settings, context, fingerprint(inputs, labels))
    try:
        result = train(
            model,
            (inputs, labels),
            loss=nn.functional.cross_entropy,
            optimizer=GradientDescent(
                model.parameters(), learning_rate=settings.local_learning_rate
            ),
            protection=protection,
            batches=FullBatch(steps=settings.local_steps),
            ledger=ledger,
        )
    except LocalBudgetSpent as spent:
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(spent)), reply_to=message)
    if ledger is not None and not settings.deployed:
        context.state[_LEDGER] = ConfigRecord(ledger.as_record())

    return _reply(message, settings, ArrayRecord(model.state_dict()), result.weight)


@app.query("encrypted_round")
def test_encrypted(message: Message, context: Context) -> Message:
    """Take part in the encrypted test-time round."""
    # Loaded where it is asked for: a deployed node starts a process for every message.
    from flower_app import encrypted_node

    return encrypted_node.take_part(message, context, Settings.of_client(context.run_config))


def _reply(message: Message, settings: Settings, arrays: ArrayRecord, weight: float) -> Message:
    reply = RecordDict({"arrays": arrays})
    if settings.weighting == "capped":  # with uniform weights nobody says how much it holds
        reply["metrics"] = MetricRecord({"num-examples": weight})
    return Message(reply, reply_to=message)


def own_data(settings: Settings, context: Context) -> ClientData:
    """What this client holds: its share in a simulation, its own folder when deployed.

    Raises
    ------
    SettingError
        If a deployed node does not say where its data lies.
    """
    kind = MODELS[settings.model].kind
    if settings.deployed:
        folder = str(context.node_config.get("data-dir", ""))
        if not folder:
            raise SettingError(
                "data-dir = '' is wrong; start this SuperNode with "
                "--node-config 'data-dir=\"/path/to/its/data\"'"
            )
        return _folder(folder, kind)
    clients = int(context.node_config["num-partitions"])
    client = int(context.node_config["partition-id"])
    dataset = load_dataset(settings.dataset, data_dir=_path(settings.data_dir))
    partitions = load_partitions(settings.partition_spec(clients), dataset)
    return simulated_client(load_inputs(dataset, kind), partitions, client)


@cache
def _folder(folder: str, kind: InputKind) -> ClientData:
    split = load_node_folder(Path(folder))
    return ClientData(encode(split.images, kind), np.asarray(split.labels))


def _path(text: str) -> Path | None:
    return Path(text) if text else None


def _record_level(settings: Settings) -> ClipAndNoise:
    return ClipAndNoise(
        clipping_norm=settings.example_clipping_norm,
        noise_multiplier=_record_noise(
            settings.record_epsilon,
            settings.record_delta,
            settings.local_steps,
            settings.planned_participations,
            counts=settings.weighting == "capped",
        ),
        delta=settings.record_delta,
        count=(
            NoisyCount(noise_multiplier=_COUNT_NOISE)
            if settings.weighting == "capped"
            else NominalCount(records=settings.nominal_records)
        ),
    )


@cache
def _record_noise(
    epsilon: float, delta: float, steps: int, participations: int, *, counts: bool
) -> float:
    """What all participations ask for, beside the one noised count that is released."""
    count = Charge(noise_multiplier=_COUNT_NOISE, sampling_rate=1.0, steps=1)
    return calibrate_noise(
        target_epsilon=epsilon,
        target_delta=delta,
        batches=FullBatch(steps=steps),
        participations=participations,
        spent=(count,) if counts else (),
    )


def _own_ledger(settings: Settings, context: Context, dataset: str) -> ClientLedger:
    """The client's ledger: in the node's state in a simulation, on the node's disk when deployed.

    Raises
    ------
    SettingError
        If a deployed node has no folder for it.
    """
    budget = Budget(epsilon=settings.record_epsilon, delta=settings.record_delta)
    if settings.deployed:
        folder = str(context.node_config.get("state-dir", ""))
        if not folder:
            raise SettingError(
                "state-dir = '' is wrong; record-level privacy needs a ledger on the node's disk: "
                "start this SuperNode with --node-config 'state-dir=\"/path/of/its/own\"'"
            )
        return ClientLedger(
            dataset=dataset, budget=budget, path=Path(folder) / "record-ledger.json"
        )
    if _LEDGER in context.state:
        kept = dict(context.state.config_records[_LEDGER])
        return ClientLedger.from_record(kept, budget=budget)
    return ClientLedger(dataset=dataset, budget=budget)
