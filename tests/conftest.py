"""For all tests."""

import signal

from hypothesis import settings

# A test run that was started in the background ignores Ctrl-C, and the programs that tests
# interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says nothing about what is tested.
settings.register_profile("apr", deadline=None)
settings.load_profile("apr")
