"""Secret-shared inference: a question in shares, answered by two workers that do not collude.

A provider makes correlated randomness ahead and sees neither data nor model nor answers. ReLU,
MaxPool and argmax are computed as they are. Errors are in ``privacy.shared_inference.errors``;
``docs/how-to/shared-inference.md`` has the protocol, what it assumes and what is not covered.
"""

from typing import TYPE_CHECKING

import privacy.imports

with privacy.imports.needing(__name__, extra="owner"):
    from privacy.shared_inference.data_owner import DataOwner as DataOwner
    from privacy.shared_inference.data_owner import Question as Question
    from privacy.shared_inference.endpoints import Address as Address
    from privacy.shared_inference.endpoints import tls_context as tls_context
    from privacy.shared_inference.link import Link as Link
    from privacy.shared_inference.material_files import MaterialStore as MaterialStore
    from privacy.shared_inference.messages import Party as Party
    from privacy.shared_inference.model_owner import share_model as share_model
    from privacy.shared_inference.plan import Plan as Plan
    from privacy.shared_inference.provider import Provider as Provider
    from privacy.shared_inference.provider import Provision as Provision
    from privacy.shared_inference.remote_workers import RemoteWorkers as RemoteWorkers
    from privacy.shared_inference.worker import Worker as Worker
    from privacy.shared_inference.worker import converse as converse
    from privacy.shared_inference.worker import converse_in_process as converse_in_process
    from privacy.shared_inference.worker import warm_up as warm_up
    from privacy.shared_inference.worker_server import WorkerLimits as WorkerLimits
    from privacy.shared_inference.worker_server import WorkerServer as WorkerServer

# Loaded when they are first asked for: they bring PyTorch, which only the model's owner needs.
if TYPE_CHECKING:
    from privacy.shared_inference.compile import SharedModel as SharedModel
    from privacy.shared_inference.compile import compile_model as compile_model

_LATER = {
    "SharedModel": "privacy.shared_inference.compile",
    "compile_model": "privacy.shared_inference.compile",
}

if not TYPE_CHECKING:
    __getattr__ = privacy.imports.loaded_later(__name__, _LATER, extra="inference")
    __all__ = privacy.imports.public_names(globals(), _LATER)
