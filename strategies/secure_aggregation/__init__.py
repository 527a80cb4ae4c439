"""Secure aggregation over Flower's messages: the server's setting and the client's mod."""

from .client_mod import SecureAggregationMod as SecureAggregationMod
from .memory import ClientMemory as ClientMemory
from .memory import ContextMemory as ContextMemory
from .memory import FolderMemory as FolderMemory
from .settings import SecureAggregation as SecureAggregation
