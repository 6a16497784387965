"""What the agent does about its own memory. In a process of its own each: it changes the whole of it."""

from __future__ import annotations

import subprocess
import sys

BEGIN = """
import gc, sys, weakref
from pynet.commands.agent.process import collect_garbage, settle_memory, trim_memory

class Knot:
    def __init__(self):
        self.itself = self

settle_memory()
"""


def run(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", BEGIN + script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_thousands_of_new_objects_do_not_stop_all_threads_for_a_collection():
    run("""
gc.collect()
before = [generation["collections"] for generation in gc.get_stats()]
kept = [[] for _ in range(40_000)]
assert [generation["collections"] for generation in gc.get_stats()] == before
""")


def test_what_is_there_when_the_node_is_ready_is_left_out_of_later_collections():
    run("""
kept = [[] for _ in range(40_000)]
trim_memory()
assert gc.get_freeze_count() > 40_000
""")


def test_knots_are_found_at_last_also_those_that_were_left_out():
    run("""
early = Knot()
trim_memory()
late = Knot()
seen = weakref.ref(early), weakref.ref(late)
del early, late
collect_garbage()
assert seen[0]() is not None, "left out"
assert seen[1]() is None
trim_memory()
assert seen[0]() is None
""")


def test_a_thread_that_waits_for_the_interpreter_gets_it_soon():
    run("assert sys.getswitchinterval() < 0.001")
