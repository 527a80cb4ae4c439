"""How much memory an evaluating process may need, and how it is held to that."""

import sys
from pathlib import Path

from privacy.inference.plan import Plan

_SLACK = 256 << 20
_COPIES = 4  # of what is being read: as it came, as residues, as SEAL's stream, as SEAL's objects


def evaluation_room(plan: Plan, *, owners: int) -> int:
    """Bytes that evaluating may take beside the model: for keys, one query, and slack.

    Parameters
    ----------
    plan : Plan
    owners : int
        Whose keys are held at once.

    Notes
    -----
    SEAL holds a key in full where a message has a seed, and for all levels: two polynomials modulo
    every prime for each data prime. A batch is computed as matrices of residues in double
    precision, the widest layer's beside the query's.
    """
    primes = len(plan.prime_bits)
    polynomial = 8 * plan.degree * primes
    switching = len(plan.rotation_levels) + (plan.relin_level > 0)
    keys = 2 * polynomial * (1 + plan.levels * switching)
    query = 2 * 8 * plan.degree * plan.levels * plan.ciphertexts
    work = query * (4 * _COPIES if plan.batch_size > 1 else _COPIES)
    return owners * keys + _COPIES * keys + work + _SLACK


def limit_memory(room: int) -> None:
    """Hold this process to the address space that it has now and ``room`` bytes more.

    On Linux only: elsewhere the system does not keep such limits, and nothing is done.
    """
    if sys.platform != "linux":
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + room
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
