"""For every suite: children can be interrupted, also where the tests themselves run as a shell's background job."""

from __future__ import annotations

import signal

# Such a job ignores SIGINT, and so would every process that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
