"""Fuzzing: every parser of a stranger's bytes, fed with bytes that nobody would send.

A *target* takes any bytes, and ends either as if they were good or with the parser's own error.
Anything else (another exception, a hang, gigabytes of memory) is a fault. ``python -m fuzz`` runs
targets under Atheris, which is guided by coverage; ``corpus/`` keeps inputs of earlier runs, and
tests feed all of them to their targets.
"""
