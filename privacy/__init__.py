"""Mechanisms, accounting, client training and encrypted inference.

Each folder is one idea and can be used without the others:

- ``privacy.accounting``: events, their ε, budgets, calibration and the ledger
- ``privacy.mechanisms``: noise that is safe in finite precision
- ``privacy.audit``: attacks on this privacy, and lower bounds of ε from them
- ``privacy.training``: client training with per-example clipping
- ``privacy.secure_aggregation``: sums whose parts nobody sees
- ``privacy.inference``: encrypted inference with CKKS
- ``privacy.inference_service``: the same over HTTPS, with the owner's client
"""
