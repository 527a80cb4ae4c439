"""Secure aggregation over Flower's messages: the server's setting and the client's mod."""

from strategies.secure_aggregation.client_memory import ClientMemory as ClientMemory
from strategies.secure_aggregation.client_memory import ContextMemory as ContextMemory
from strategies.secure_aggregation.client_memory import FolderMemory as FolderMemory
from strategies.secure_aggregation.client_mod import SecureAggregationMod as SecureAggregationMod
from strategies.secure_aggregation.messages import is_invitation as is_invitation
from strategies.secure_aggregation.settings import SecureAggregation as SecureAggregation
