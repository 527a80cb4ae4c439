"""Encrypted inference as a service: FastAPI around an evaluator pool, and the owner's client.

The service holds the model and owners' public keys, and learns nothing about the data; HTTP
carries the messages of :mod:`privacy.inference` as bytes.
"""

from privacy.inference_service.app import create_app as create_app
from privacy.inference_service.client import ServiceClient as ServiceClient
from privacy.inference_service.key_file import KeyFile as KeyFile
from privacy.inference_service.limits import ServiceLimits as ServiceLimits
from privacy.inference_service.page import Page as Page
from privacy.inference_service.server import ServiceServer as ServiceServer
from privacy.inference_service.session import OwnerSession as OwnerSession
from privacy.inference_service.tokens import Authentication as Authentication
from privacy.inference_service.tokens import Caller as Caller
from privacy.inference_service.tokens import InsecureNoAuthentication as InsecureNoAuthentication
from privacy.inference_service.tokens import TokenFile as TokenFile
