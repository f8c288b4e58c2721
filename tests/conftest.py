"""For all tests."""

import os
import signal

from hypothesis import settings

# Workers of one test run share the processor: each computes on one thread, and the tests of threads
# ask for their own number. Before torch is imported, which reads it once.
if "PYTEST_XDIST_WORKER" in os.environ:
    for count in ("APR_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(count, "1")

# A test run that was started in the background ignores Ctrl-C, and the programs that tests
# interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says nothing about what is tested.
settings.register_profile("apr", deadline=None)
settings.load_profile("apr")
