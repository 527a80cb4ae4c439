"""All targets by name. What one needs is loaded and made when it is first asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

from fuzz.target import Target


@dataclass(frozen=True)
class Group:
    """Targets of one module of this package.

    Attributes
    ----------
    names : tuple of str
    code : tuple of str
        The modules and packages whose coverage guides them; none that numba compiles.
    """

    names: tuple[str, ...]
    code: tuple[str, ...]


GROUPS: Mapping[str, Group] = {
    "encrypted": Group(
        (
            *("plan", "material", "query", "answer", "evaluator_replies", "secret_state"),
            "model_file",
        ),
        (
            *("privacy.json_text", "privacy.array_files", "privacy.inference.messages"),
            *("privacy.inference.plan", "privacy.inference.plan_check"),
            *("privacy.inference._plan_checks", "privacy.inference._blind_plan_checks"),
            *("privacy.inference.public_keys", "privacy.inference.owner"),
            *("privacy.inference.evaluator", "privacy.inference.input_range"),
            *("privacy.inference.model_file", "privacy.inference.stored"),
        ),
    ),
    "shared": Group(
        ("shared_plan", "letter", "frames", "link", "shared_material", "worker", "shares"),
        (
            *("privacy.json_text", "privacy.shared_inference.plan"),
            *("privacy.shared_inference.messages", "privacy.shared_inference.frames"),
            *("privacy.shared_inference.link", "privacy.shared_inference.material_files"),
            *("privacy.shared_inference.worker", "privacy.shared_inference.data_owner"),
        ),
    ),
    "aggregation": Group(
        ("secure_client", "secure_server", "secure_state", "records"),
        (
            *("privacy.secure_aggregation", "privacy.statistics"),
            *("strategies.secure_aggregation", "strategies.distributed_dpsgd"),
            "strategies.encrypted_round",
        ),
    ),
    "messages": Group(
        ("replies", "requests", "encrypted_requests"),
        (
            *("strategies.model_schema", "strategies.replies", "strategies.metrics"),
            *("strategies.train_round", "strategies.weighting", "strategies.lost_clients"),
            *("strategies.secure_aggregation", "strategies.distributed_dpsgd.silo"),
            *("strategies.distributed_dpsgd.requests", "strategies.encrypted_round"),
            *("privacy.secure_aggregation.client", "privacy.untrusted_text"),
        ),
    ),
    "files": Group(
        (
            *("ledger", "policy", "array_file", "checkpoint", "population", "noise_rows"),
            *("tokens", "questions", "key_file", "audit_scores"),
        ),
        (
            *("privacy.json_text", "privacy.array_files", "privacy.arguments"),
            *("privacy.accounting.ledger_text", "privacy.accounting.events"),
            *("privacy.training.data_policy", "privacy.correlated_noise.instance"),
            *("privacy.inference_service.tokens", "privacy.inference_service.questions"),
            *("privacy.inference_service.key_file", "privacy.audit.__main__"),
            *("strategies.checkpoint", "strategies.population"),
        ),
    ),
    "state": Group(
        ("accountant", "node_state", "resumed"),
        (
            *("privacy.json_text", "privacy.accounting.flower", "privacy.accounting.ledger_text"),
            *("privacy.training.ledger", "privacy.training.step_payments"),
            *("strategies.checkpoint", "strategies.server_optimizers"),
        ),
    ),
    "tables": Group(
        (
            *("task", "table", "run_config", "node_config", "key_list"),
            *("pictures", "client_images", "idx", "onnx"),
        ),
        (
            *("flower_app.tasks", "flower_app.training.node_policy", "flower_app.setting_names"),
            *("flower_app.training.secure_aggregation", "flower_app.training.silo_node"),
            *("flower_app.settings", "flower_app.pictures"),
            *("flower_app.data.idx", "flower_app.data.clients", "privacy.inference.importers"),
        ),
    ),
    "service": Group(
        ("service", "service_client"),
        ("privacy.json_text", "privacy.inference_service", "privacy.inference.messages"),
    ),
}
TARGETS: Mapping[str, str] = {
    name: module for module, group in GROUPS.items() for name in group.names
}


def load(name: str) -> Target:
    """A target, which is the function of its name in one of this package's modules."""
    target = getattr(import_module(f"fuzz.{TARGETS[name]}"), name)()
    if not isinstance(target, Target):
        raise TypeError(f"{name} is no target")
    return target
