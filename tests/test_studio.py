"""Jobs: a script, a text read aloud, a turn redone. One queue, one way in, one stream of events."""

import inspect
import sys
import threading
import types

import pytest

from csm import load
from csm.config import Environment
from csm.conversation.events import Performed, TurnChunk, TurnFinished, TurnStarted, Waiting
from csm.conversation.parsing import Line, parse_script
from csm.conversation.session import Session
from csm.conversation.studio import Job, Studio
from csm.errors import InputError
from csm.limits import LONGEST_SPEECH
from csm.settings import Settings
from csm.speech.batching import shared
from csm.speech.voices import find_voice
from csm.web import gpu, open_studio, warm_up
from tests.small import small_generator

SHORT = Settings(max_turn_seconds=0.4)


@pytest.fixture(scope="module")
def generator():
    return small_generator(max_positions=400)


def script(text="A: Good morning.") -> Session:
    return Session(parse_script(text), {"A": find_voice("slt")}, SHORT)


def aloud(folder, *texts) -> Job:
    folder.mkdir(exist_ok=True)
    return read("\n".join(texts or ["Good morning to you."]), SHORT, folder)


def read(text, settings, folder) -> Job:
    """A text read aloud, as `/v1` has it."""
    session = Session([Line("Reader", text, 1)], {"Reader": find_voice("slt")}, settings)
    return Job(session, folder, most_seconds=LONGEST_SPEECH)


def test_a_reading_waits_while_a_script_is_spoken_and_says_how_many_come_first(generator, tmp_path):
    studio = Studio(generator)
    page = studio.perform(Job(script()))
    assert isinstance(next(page), TurnStarted)
    program = studio.perform(aloud(tmp_path / "r"))
    news = next(program)
    assert isinstance(news, Waiting) and news.ahead == 1
    page.close()
    assert any(isinstance(event, TurnChunk) for event in program)


def test_with_two_slots_both_are_spoken_at_once(generator, tmp_path):
    studio = Studio(generator, slots=2)
    one, two = studio.perform(Job(script())), studio.perform(aloud(tmp_path / "r"))
    assert isinstance(next(one), TurnStarted) and isinstance(next(two), TurnStarted)
    assert isinstance(next(studio.perform(Job(script()))), Waiting)


def test_everywhere_but_on_zerogpu_the_generator_speaks_for_as_many_as_the_queue_serves(generator, monkeypatch):
    monkeypatch.setenv("CSM_SLOTS", "3")
    studio = open_studio(generator)
    assert studio.generator.engine.slots == studio.queue.slots == 3
    monkeypatch.setattr(gpu.Config, "zero_gpu", True)
    studio = open_studio(generator)
    assert studio.generator is generator and studio.queue.slots == 1


def test_the_slots_that_are_chosen_from_outside_are_a_sensible_number(monkeypatch):
    for wrong in ("0", "many", "1000"):
        monkeypatch.setenv("CSM_SLOTS", wrong)
        with pytest.raises(InputError, match="CSM_SLOTS can't be"):
            Environment.read()


def test_many_jobs_at_once_in_threads_give_each_what_it_gives_alone(generator):
    scripts = [f"A: {word}.\nA: Yes, {word}." for word in ("One", "Two", "Three", "Four", "Five")]

    def keys(session):
        return [turn.take.key for turn in session.turns]

    alone = []
    for text in scripts:
        session = script(text)
        list(session.speak(generator))
        alone.append(keys(session))
    studio, sessions = Studio(shared(generator, 3), slots=3), [script(text) for text in scripts]
    threads = [threading.Thread(target=lambda one=one: list(studio.perform(Job(one)))) for one in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [keys(session) for session in sessions] == alone


def test_a_job_that_is_stopped_while_it_waits_leaves_the_queue(generator, tmp_path):
    studio = Studio(generator)
    with studio.queue.join(5.0):
        job = aloud(tmp_path / "r")
        program = studio.perform(job)
        assert isinstance(next(program), Waiting)
        job.stop()
        with pytest.raises(InputError, match="before its turn came") as caught:
            next(program)
        assert caught.value.code == "given_up"
    assert studio.queue.join(1.0).served


def test_a_job_that_fails_leaves_the_queue(generator, tmp_path):
    studio = Studio(generator)
    with pytest.raises(InputError, match="nothing to say"):
        list(studio.perform(aloud(tmp_path / "r", "…")))
    assert studio.queue.join(1.0).served


def test_the_next_may_speak_while_the_end_of_the_one_before_is_shown(generator):
    studio = Studio(generator)
    for event in studio.perform(Job(script())):
        if isinstance(event, Performed):
            assert studio.queue.waiting() == (0, 0.0)


def test_a_reading_is_one_turn_of_its_sentences_and_tells_what_it_took(generator, tmp_path):
    texts = ["Good morning to you.", "The rain has stopped."]
    events = list(Studio(generator).perform(aloud(tmp_path / "r", *texts)))
    finished = [event for event in events if isinstance(event, TurnFinished)]
    assert [(event.turn.frames, event.turn.pieces) for event in finished] == [(10, 2)]
    assert finished[0].text_positions == sum(len(generator.turn_rows(text, 0)) for text in texts)
    assert {event.index for event in events if isinstance(event, TurnChunk)} == {0}
    assert not len(events[-1].audio), "it was heard while it was made"


def test_text_beyond_the_position_budget_is_read_to_its_end(generator, tmp_path):
    numbers = "one two three four five six seven eight nine ten eleven twelve".split()
    texts = [f"This is sentence number {number}." for number in numbers]
    assert sum(len(generator.turn_rows(text, 0)) + 5 for text in texts) > generator.config.max_positions
    events = list(Studio(generator).perform(aloud(tmp_path / "r", *texts)))
    assert sum(event.turn.frames for event in events if isinstance(event, TurnFinished)) == 60


def test_a_job_stops_at_the_next_frame_when_it_is_asked_to(generator, tmp_path):
    (tmp_path / "r").mkdir()
    job = read("Good morning to you.\n" * 3, Settings(max_turn_seconds=4), tmp_path / "r")
    for event in Studio(generator).perform(job):
        if isinstance(event, TurnChunk):
            job.stop()
    (turn,) = event.report["turns"]
    assert turn["state"] == "stopped" and 0 < turn["frames"] < 50


def test_what_is_done_beside_speaking_waits_in_the_same_queue(generator):
    studio = Studio(generator)
    double = studio.on_device(lambda number: 2 * number)
    assert double(21) == 42
    place = studio.queue.join(1.0)
    found: list = []
    thread = threading.Thread(target=lambda: found.append(double(4)))
    thread.start()
    thread.join(0.6)
    assert thread.is_alive() and not found
    place.leave()
    thread.join(30)
    assert found == [8]


def test_from_a_job_to_its_frames_there_are_four_generators_and_two_more_to_whoever_asked(generator, monkeypatch):
    """The page's and `/v1`'s streams put two on top, in the server's own thread: six in all."""
    layers: list[str] = []
    studio = open_studio(generator)
    stepper = studio.generator.engine._stepper
    taken = stepper.taken

    def counted(stream):
        frame = sys._getframe()
        layers.clear()
        while frame := frame.f_back:
            if frame.f_code.co_flags & inspect.CO_GENERATOR and frame.f_globals["__name__"].startswith("csm"):
                layers.append(
                    frame.f_code.co_qualname if hasattr(frame.f_code, "co_qualname") else frame.f_code.co_name
                )
        taken(stream)

    monkeypatch.setattr(stepper, "taken", counted)
    events = studio.perform(Job(script()))
    assert isinstance(events, types.GeneratorType)
    list(events)
    assert 0 < len(layers) <= 4, layers


def test_the_model_is_warm_before_the_first_click_and_says_nothing_to_anybody():
    studio = open_studio(load("nano", "cpu"))
    thread = warm_up(studio)
    thread.join(60)
    generator = studio.generator
    model = generator.engine.model
    assert not thread.is_alive() and model.backbone.step.made[0] and model.frame[False, False].made[0]
    assert len(generator.prompts.codes) == 2 and len(generator.prompt_contexts) == 1  # the usual voices are read in


def test_a_model_that_cannot_be_warmed_up_is_one_warning(monkeypatch):
    def broken():
        raise RuntimeError("no kernel image is available")

    studio = open_studio(small_generator())
    monkeypatch.setattr(studio.generator.engine, "warm_up", broken)
    with pytest.warns(UserWarning, match="could not be warmed up: no kernel image is available"):
        warm_up(studio).join(60)


def test_on_zerogpu_nothing_is_warmed_up_where_there_is_no_accelerator(monkeypatch):
    studio = open_studio(small_generator())
    monkeypatch.setattr(gpu.Config, "zero_gpu", True)
    assert warm_up(studio) is None


def test_work_in_another_process_comes_and_goes_as_plain_bytes_and_refusals_are_raised_here():
    def work(number):
        yield number
        raise InputError("No more of that.", "enough")

    sent = list(gpu.as_bytes(work)(3))
    assert all(isinstance(data, bytes) for data in sent)
    results = gpu.from_bytes(iter(sent))
    assert next(results) == 3
    with pytest.raises(InputError, match="No more of that") as caught:
        next(results)
    assert caught.value.code == "enough"
