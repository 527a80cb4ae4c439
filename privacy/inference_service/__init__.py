"""Encrypted inference as a service: FastAPI around an evaluator pool, and the owner's client.

The service holds the model and owners' public keys, and learns nothing about the data; HTTP
carries the messages of :mod:`privacy.inference` as bytes.
"""

from typing import TYPE_CHECKING

import privacy.imports
from privacy.inference_service.client import ServiceClient as ServiceClient
from privacy.inference_service.key_file import KeyFile as KeyFile
from privacy.inference_service.limits import ServiceLimits as ServiceLimits
from privacy.inference_service.session import OwnerSession as OwnerSession
from privacy.inference_service.tokens import Authentication as Authentication
from privacy.inference_service.tokens import Caller as Caller
from privacy.inference_service.tokens import InsecureNoAuthentication as InsecureNoAuthentication
from privacy.inference_service.tokens import TokenFile as TokenFile

# Loaded when they are first asked for: FastAPI and uvicorn, which an owner's client does without.
if TYPE_CHECKING:
    from privacy.inference_service.app import create_app as create_app
    from privacy.inference_service.page import Choice as Choice
    from privacy.inference_service.page import Page as Page
    from privacy.inference_service.server import ServiceServer as ServiceServer

_LATER = {
    "create_app": "privacy.inference_service.app",
    "Choice": "privacy.inference_service.page",
    "Page": "privacy.inference_service.page",
    "ServiceServer": "privacy.inference_service.server",
}

if not TYPE_CHECKING:
    __getattr__ = privacy.imports.loaded_later(__name__, _LATER, extra="service")
    __all__ = privacy.imports.public_names(globals(), _LATER)
