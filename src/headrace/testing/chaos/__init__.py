"""A TCP fault proxy: what a network or a sick server does to connections, on purpose.

::

    proxy = FaultProxy(upstream=parse_endpoint("127.0.0.1:8000"), clock=MonotonicClock(), seed=1)
    await proxy.start(bind("127.0.0.1", 0))
    proxy.faults = Faults(latency=0.05, share=0.5)   # from now on, also of open connections
    proxy.faults = Faults(hang_after=0)              # nothing more comes
    proxy.faults = NO_FAULTS                         # what hung goes on where it stood
    await proxy.close()

``headrace chaos`` runs one. It knows bytes only, no protocol; faults.py says what it can do.
"""

from headrace.testing.chaos.endpoint import Endpoint, parse_endpoint
from headrace.testing.chaos.faults import NO_FAULTS, Ending, Faults, Strike, Towards
from headrace.testing.chaos.proxy import FaultProxy, Tally

__all__ = [
    "NO_FAULTS",
    "Ending",
    "Endpoint",
    "FaultProxy",
    "Faults",
    "Strike",
    "Tally",
    "Towards",
    "parse_endpoint",
]
