"""User interface of the bundle: ``python -m bundle <verb>``, set-up, generators of docs.

A thin layer over ``scripts`` and ``configs``; nothing there imports this package, and no
configuration names it.
"""

import os

# Read by OpenMP when torch is loaded, so it is set before. Threads that spin while they wait take
# the time of those that compute as soon as anything else runs on the machine; python -m
# bundle.bench.busy_cores shows what that costs. A value that the user set is kept.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
