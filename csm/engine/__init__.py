"""Prefill, step, snapshot, rewind, and streams side by side: all that happens between rows of ids and sampled frames.

Above it is the generator, which knows texts and sound; below it is the network, which remembers nothing.
"""

from csm.engine.context import Context, Snapshot
from csm.engine.engine import Engine, Together
from csm.engine.graph import GraphedStep
from csm.engine.lineup import Lineup, Stream
from csm.engine.lineups import Lineups
from csm.engine.stage import Stage
from csm.engine.step import EagerStep, FrameStep

__all__ = [
    "Context",
    "EagerStep",
    "Engine",
    "FrameStep",
    "GraphedStep",
    "Lineup",
    "Lineups",
    "Snapshot",
    "Stage",
    "Stream",
    "Together",
]
