"""Mechanisms, accounting, client training and encrypted inference.

Each folder is one idea and can be used without the others:

- ``privacy.accounting``: what has been spent, what may still be spent, and the ledger of it
- ``privacy.mechanisms``: noise that is safe in finite precision
- ``privacy.audit``: attacks on our own privacy, and what they prove
- ``privacy.training``: client training with per-example clipping
- ``privacy.secure_aggregation``: sums of which nobody sees the parts
- ``privacy.inference``: encrypted inference with CKKS
- ``privacy.inference_service``: the same over HTTPS, with the owner's client
"""
