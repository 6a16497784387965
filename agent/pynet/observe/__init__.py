"""Watchers: they record facts from the API server and the kernel, and wake the loop. They decide nothing."""
