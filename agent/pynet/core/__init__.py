"""Pure: facts in, desired state and reasons out; desired and actual in, operations out. No I/O, no clock, no threads."""
