"""The model works at its own pace: a listener who reads slowly holds up nobody, one who has gone ends the work."""

import threading
import time

import pytest
import torch

from csm.conversation import ahead
from csm.conversation.ahead import Ahead
from csm.conversation.events import TurnChunk
from csm.conversation.parsing import parse_script
from csm.conversation.session import Session
from csm.conversation.studio import Job
from csm.errors import InputError


@pytest.fixture
def job(tmp_path):
    (tmp_path / "job").mkdir()
    return Job(Session(parse_script("A: Hi."), {}), tmp_path / "job")


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return 0.3 * torch.randn(count, generator=torch.Generator().manual_seed(seed)).clamp(-3, 3)


def all_of(one: Ahead) -> list:
    taken = []
    while True:
        try:
            there, update = one.take()
        except StopIteration:
            return taken
        taken += [update] if there else []
        time.sleep(0 if there else 0.005)


def waited(condition, seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def test_the_work_is_done_though_nobody_takes_anything_and_all_of_it_is_there_afterwards(job, monkeypatch):
    monkeypatch.setattr(ahead, "MOST_HELD", 2_000)  # samples: the rest waits on the disk
    waves, done = [noise(1_000, seed) for seed in range(9)], threading.Event()

    def updates():
        yield from (TurnChunk(0, wave) for wave in waves)
        done.set()

    one = Ahead(updates(), job)
    assert done.wait(30)
    taken = all_of(one)
    assert len(taken) == 9 and all(torch.equal(taken[n].audio, waves[n]) for n in range(2))
    for n in range(2, 9):  # as the 16 bits in which it leaves
        assert torch.equal((taken[n].audio * 32_767).round(), (waves[n].clamp(-1, 1) * 32_767).round())


def test_whoever_leaves_ends_the_work_at_its_next_step_and_nothing_is_left_behind(job):
    steps, closed = [], threading.Event()

    def endless():
        try:
            while not job.stopped():
                steps.append(1)
                yield TurnChunk(0, noise(10))
                time.sleep(0.01)
        finally:
            closed.set()

    one = Ahead(endless(), job)
    assert waited(lambda: len(steps) > 3)
    one.leave()
    assert closed.wait(30) and waited(lambda: not job.folder.exists())


def test_a_listener_who_falls_silent_has_the_work_ended(job):
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield TurnChunk(0, noise(10))
                time.sleep(0.01)
        finally:
            closed.set()

    one = Ahead(endless(), job, silent_seconds=0.1)
    assert closed.wait(30)
    with pytest.raises(InputError, match="Nobody took the sound"):
        all_of(one)


def test_what_went_wrong_is_raised_behind_what_was_made(job):
    def fails():
        yield TurnChunk(0, noise(10))
        raise InputError("The rest no longer fits.")

    one = Ahead(fails(), job)
    while not one.take()[0]:
        time.sleep(0.005)
    with pytest.raises(InputError, match="no longer fits"):
        all_of(one)
