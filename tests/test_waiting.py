"""The queue for the model: one at a time, first come, first served, bounded, with honest estimates."""

import threading
import time

import pytest

from csm import load
from csm.conversation import parse_script
from csm.settings import Settings
from csm.voices import find_voice
from csm.web import gpu, warm_up
from csm.web.gpu import Job, Reading, Refused, Sound, TurnStarted, Waiting, reading_with, speaking_with
from csm.web.waiting import Queue, QueueFull
from tests.small import small_generator


def test_the_first_is_served_at_once_and_the_others_in_the_order_in_which_they_came():
    queue = Queue()
    first, second, third = (queue.join(2.0) for _ in range(3))
    assert first.wait(0) and not second.wait(0) and not third.wait(0)
    assert [place.ahead for place in (first, second, third)] == [0, 1, 2]
    first.leave()
    assert second.wait(0) and not third.wait(0)
    second.leave()
    assert third.wait(0)


def test_who_gives_up_does_not_hold_up_the_others():
    queue = Queue()
    first, second, third = (queue.join(2.0) for _ in range(3))
    second.leave()
    second.leave()
    assert third.ahead == 1
    first.leave()
    assert third.wait(0)


def test_a_full_queue_refuses_and_says_when_to_come_again():
    queue = Queue(longest=2)
    places = [queue.join(10.0), queue.join(10.0)]
    with pytest.raises(QueueFull, match="try again in 20 seconds") as caught:
        queue.join(1.0)
    assert 19 < caught.value.seconds <= 20
    places[0].leave()
    queue.join(1.0)


def test_the_expected_wait_follows_the_pace_of_the_last_jobs():
    queue = Queue()
    for _ in range(30):
        queue.join(1_000.0).leave()  # done at once
    waiting = (queue.join(100.0), queue.join(1.0))[1]
    assert waiting.expected_wait < 1


def reading(folder, texts=("Good morning to you.",)) -> Reading:
    folder.mkdir(exist_ok=True)
    return Reading(list(texts), find_voice("slt"), Settings(max_turn_seconds=0.4), folder)


@pytest.fixture(scope="module")
def generator():
    return small_generator(max_positions=400)


def test_a_reading_waits_while_the_page_speaks_and_says_how_many_come_first(generator, tmp_path):
    queue = Queue()
    speak, read = speaking_with(generator, queue), reading_with(generator, queue)
    job = Job(parse_script("A: Good morning."), {"A": find_voice("slt")}, Settings(max_turn_seconds=0.4), tmp_path)
    page = speak(job)
    assert isinstance(next(page), TurnStarted)
    program = read(reading(tmp_path / "r"))
    news = next(program)
    assert isinstance(news, Waiting) and news.ahead == 1
    page.close()
    assert any(isinstance(update, Sound) for update in program)


def test_a_job_that_is_stopped_while_it_waits_leaves_the_queue(generator, tmp_path):
    queue = Queue()
    place = queue.join(5.0)
    job = reading(tmp_path / "r")
    program = reading_with(generator, queue)(job)
    assert isinstance(next(program), Waiting)
    job.stop_file.touch()
    assert [type(update) for update in program] == [Refused]
    place.leave()
    assert queue.join(1.0).wait(0)


def test_a_job_that_fails_leaves_the_queue(generator, tmp_path):
    queue = Queue()
    updates = list(reading_with(generator, queue)(reading(tmp_path / "r", ["…"])))
    assert [type(update) for update in updates] == [Refused]
    assert queue.join(1.0).wait(0)


def test_many_threads_are_never_served_at_once():
    queue, serving, most = Queue(), [], []

    def work():
        with queue.join(0.01) as place:
            assert place.wait(30)
            serving.append(1)
            most.append(len(serving))
            time.sleep(0.002)
            serving.pop()

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 12


def test_the_model_is_warm_before_the_first_click_and_says_nothing_to_anybody():
    generator = load("nano", "cpu")
    thread = warm_up(generator)
    thread.join(60)
    model = generator.engine.model
    assert not thread.is_alive() and all(model.backbone._steps.values()) and all(model.decoder._steps.values())
    assert len(generator.prompts.codes) == 2 and len(generator.prompt_contexts) == 1  # the usual voices are read in


def test_a_model_that_cannot_be_warmed_up_is_one_warning(monkeypatch):
    def broken():
        raise RuntimeError("no kernel image is available")

    generator = small_generator()
    monkeypatch.setattr(generator.engine, "warm_up", broken)
    with pytest.warns(UserWarning, match="could not be warmed up: no kernel image is available"):
        warm_up(generator).join(60)


def test_on_zerogpu_nothing_is_warmed_up_where_there_is_no_accelerator(monkeypatch):
    monkeypatch.setattr(gpu.Config, "zero_gpu", True)
    assert warm_up(small_generator()) is None
