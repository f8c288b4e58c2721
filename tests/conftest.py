"""For all tests."""

import signal

# A test run that was started in the background ignores Ctrl-C, and the programs that tests
# interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
