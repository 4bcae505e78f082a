"""Talks: turns are taken, answers hear how something was said, and what nobody heard is forgotten."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch

from csm import utterance
from csm.config import FRAME_SIZE
from csm.conversation.events import Performed
from csm.conversation.parsing import parse_script
from csm.conversation.session import Session
from csm.conversation.studio import Job, Studio
from csm.errors import InputError
from csm.speech.batching import shared
from csm.speech.voices import shipped_voices
from csm.spoken import _remembered
from csm.talk.clauses import clauses, heard_words, speakable
from csm.talk.events import (
    AnswerEnded,
    Called,
    Dropped,
    Failed,
    Sound,
    SpeechBegan,
    SpeechEnded,
    Transcribed,
    Truncated,
    Words,
)
from csm.talk.language import Call
from csm.talk.memory import USER, VOICE, Item, Memory, Piece, Said
from csm.talk.mouth import Mouth
from csm.talk.options import Turns
from csm.talk.turns import Kind, TurnDetector
from csm.watermark import detect
from csm.web.endpoints import new_folder
from tests.small import small_generator
from tests.talking import MANUAL, SHORT, Listened, Script, ScriptedEars, detected, loud, quiet


@pytest.fixture(scope="module")
def studio():
    return Studio(shared(small_generator(max_positions=600), 4), 4)


def run(talk):
    return asyncio.run(talk)


def moments(turns, probabilities):
    detector = TurnDetector(turns)
    return [moment.kind for probability in probabilities for moment in detector.push(probability)]


# Whose turn it is


def test_a_turn_begins_after_three_windows_of_speech_and_ends_with_silence():
    said = [0.0] * 5 + [0.9] * 20 + [0.0] * 20
    assert moments(Turns("server", silence=0.5), said) == [Kind.BEGUN, Kind.PAUSED, Kind.ENDED]
    assert moments(Turns("server"), [0.9] * 2) == [] and moments(Turns("server"), [0.9] * 3) == [Kind.BEGUN]


def test_two_windows_of_what_is_surely_speech_interrupt():
    assert moments(Turns("server"), [0.6, 0.99]) == [Kind.BEGUN]


def test_a_pause_in_the_middle_of_a_turn_is_waited_for():
    said = [0.9] * 20 + [0.0] * 10 + [0.9] * 20 + [0.0] * 30
    kinds = moments(Turns("server", silence=0.5), said)
    assert kinds == [Kind.BEGUN, Kind.PAUSED, Kind.RESUMED, Kind.PAUSED, Kind.ENDED]


def test_a_click_is_no_speech_and_a_cough_is_no_turn():
    assert moments(Turns("server"), [0.9] * 2 + [0.0] * 40) == []
    assert moments(Turns("server"), [0.9] * 4 + [0.0] * 40)[-1] is Kind.DROPPED


def test_a_turn_that_never_ends_is_ended():
    assert moments(Turns("server"), [0.9] * 2_000).count(Kind.ENDED) == 1


# What is said at once


def cut(*parts):
    cutter = clauses()
    return [piece for part in parts for piece in cutter.push(part)] + cutter.finish()


def test_a_clause_comes_first_then_whole_sentences_and_nothing_is_lost():
    text = "Well, that is a good question, and I have no idea. Ask me again, please. No."
    pieces = cut(*text)
    assert pieces[0] == "Well, that is a good question," and pieces[1] == " and I have no idea."
    assert "".join(pieces) == text


def test_a_number_with_a_point_is_not_cut():
    assert cut("It takes about 3.5 hours to get to the station. Good luck.")[0].endswith("station.")


def test_a_title_is_no_end_of_a_sentence():
    assert cut("Good. ", "I believe it was Mr. ", "Brown who told me. Was it?") == [
        "Good. I believe it was Mr. Brown who told me.",
        " Was it?",
    ]


def test_what_is_on_a_page_is_not_spoken():
    assert speakable("- **Hello** 😀 from [my page](http://x.y).") == "Hello from my page."
    assert speakable("😀 ***") == ""


def test_the_words_that_were_heard_are_those_that_were_heard_whole():
    assert heard_words("one two three four", 0.5) == "one two"
    assert heard_words("one two", 1.0) == "one two" and heard_words("one two", 0.1) == ""


# What is remembered


def answer_of(*frames: int) -> Item:
    pieces = [
        Piece(f"piece {n} here. ", Said(VOICE, f"piece {n} here.", torch.ones(count, 4).long()))
        for n, count in enumerate(frames)
    ]
    return Item("assistant", pieces=pieces, sound=True)


def test_a_truncated_answer_leaves_both_memories_frame_by_frame():
    memory, item = Memory(), answer_of(10, 12)
    memory.add(item)
    memory.truncate(item.id, 17 * 80 + 79)
    assert [len(said.codes) for said in memory.said()] == [10, 7]
    assert memory.said()[1].text == "piece 1"
    assert memory.messages("", 1_000)[0]["content"] == "piece 0 here. piece 1"
    memory.truncate(item.id, 0)
    assert memory.said() == [] and memory.messages("", 1_000) == []


def test_the_oldest_messages_leave_where_a_language_model_has_no_room():
    memory = Memory()
    for number in range(9):
        memory.add(Item("user", pieces=[Piece(f"message {number} " + "x" * 50)]))
    told = memory.messages("Be brief.", 200)
    assert told[0] == {"role": "system", "content": "Be brief."} and len(told) == 3
    assert told[-1]["content"].startswith("message 8")


# The context is real


def codes(mouth, said, text="Yes, I see."):
    pieces = []
    mouth.speak(shipped_voices()["slt"], lambda: said, iter([(text, text)]), SHORT, lambda: False, pieces.append)
    return next(piece.said.codes for piece in pieces if isinstance(piece, Piece))


def test_an_answer_depends_on_how_the_user_spoke_not_only_on_the_words(studio):
    mouth = Mouth(studio, seed=7)
    one, other = (mouth.hear("Are you there?", wave) for wave in (loud(1), 0.3 * loud(1)[::-1].copy()))
    assert one.speaker == USER and one.codes.shape == (13, studio.generator.config.num_codebooks)
    first = codes(mouth, [one])
    assert torch.equal(first, codes(Mouth(studio, seed=7), [one]))
    assert not torch.equal(first, codes(Mouth(studio, seed=7), [other]))


def test_what_was_forgotten_does_not_count_any_more(studio):
    fresh, mouth = Mouth(studio, seed=7), Mouth(studio, seed=7)
    one, more = mouth.hear("Are you there?", loud(1)), mouth.hear("No, wait.", loud(0.5))
    codes(mouth, [one, more])
    assert torch.equal(codes(mouth, [one]), codes(fresh, [one]))


def test_a_turn_reads_in_only_what_is_new(studio):
    mouth = Mouth(studio, seed=7)
    one = mouth.hear("Are you there?", loud(1))
    codes(mouth, [one])
    before = mouth._conversation.positions_prefilled
    said = [one, mouth._told[-1], mouth.hear("No, wait.", loud(0.5))]
    codes(mouth, said)
    text = len(studio.generator.turn_rows("No, wait.", USER)) + len(studio.generator.turn_rows("Yes, I see.", VOICE))
    assert mouth._conversation.positions_prefilled - before <= text + len(said[-1].codes) + 3


# A talk


def test_a_turn_that_was_committed_is_heard_answered_and_remembered(studio):
    async def talked():
        model = Script([["It is ", "ten past nine, as far as I know. ", "Good night."]])
        async with Listened(studio, model) as heard:
            heard.talk.append(loud(1))
            heard.talk.commit()
            heard.talk.answer()
            ended = await heard.answered()
            return heard, model, ended

    heard, model, ended = run(talked())
    assert ended.state == "completed" and ended.items[0].text == "It is ten past nine, as far as I know. Good night."
    assert heard.kinds()[:4] == ["Committed", "ItemAdded", "Transcribed", "AnswerBegan"]
    assert [message["content"] for message in model.asked[0].messages[1:]] == ["What is the time?"]
    sound = np.concatenate([event.wave for event in heard.events if isinstance(event, Sound)])
    assert len(sound) == ended.items[0].frames * FRAME_SIZE and detect(torch.from_numpy(sound)).confidence > 0
    assert ended.cost.positions > 0 and "first_sound" in ended.cost.steps


def test_the_next_answer_hears_the_talk_so_far(studio):
    async def talked():
        model = Script([["It is ten past nine."], ["Yes, it is."]])
        ears = ScriptedEars(["What is the time?", "Is that late?"])
        async with Listened(studio, model, ears) as heard:
            for _ in range(2):
                heard.talk.append(loud(0.5))
                heard.talk.commit()
                heard.talk.answer()
                await heard.answered()
            return model, [said.speaker for said in heard.talk.memory.said()]

    model, speakers = run(talked())
    assert [message["role"] for message in model.asked[1].messages] == ["system", "user", "assistant", "user"]
    assert speakers == [USER, VOICE, USER, VOICE]


def test_a_detected_turn_is_answered_by_itself(studio):
    async def talked():
        async with Listened(studio, Script([]), options=detected()) as heard:
            heard.talk.append(np.concatenate([quiet(0.5), loud(1), quiet(1)]))
            await heard.answered()
            return heard.kinds()

    kinds = run(talked())
    assert kinds[:2] == ["SpeechBegan", "SpeechEnded"] and "Transcribed" in kinds and "Sound" in kinds


def test_nothing_is_told_of_an_answer_before_the_turn_is_over(studio):
    async def talked():
        model, ears = Script([]), ScriptedEars(["What is", "What is the time, please?"])
        async with Listened(studio, model, ears, detected(silence=0.5)) as heard:
            heard.talk.append(np.concatenate([loud(1), quiet(0.3)]))
            while not model.asked:
                await asyncio.sleep(0)
            assert heard.kinds() == ["SpeechBegan"]
            heard.talk.append(np.concatenate([loud(1), quiet(0.6)]))
            await heard.answered()
            return heard, model

    heard, model = run(talked())
    words = [event.item.text for event in heard.events if isinstance(event, Transcribed)]
    assert words == ["What is the time, please?"]
    assert [message["content"] for message in model.asked[-1].messages[1:]] == words


def test_a_turn_that_sounds_whole_is_over_at_once_and_one_that_does_not_is_waited_for(studio):
    async def ends(over):
        async with Listened(studio, Script([]), ScriptedEars(over=over), detected("semantic", 0.8)) as heard:
            heard.talk.append(np.concatenate([loud(1), quiet(0.3)]))
            await heard.until(SpeechBegan)
            if over:
                await heard.until(SpeechEnded)
                return True
            while not heard.model.asked:
                await asyncio.sleep(0)
            assert "SpeechEnded" not in heard.kinds()
            heard.talk.append(quiet(0.6))
            return isinstance(await heard.until(SpeechEnded), SpeechEnded)

    assert run(ends(True)) and run(ends(False))


def test_silence_is_no_question_and_a_cough_is_no_turn(studio):
    async def talked():
        model = Script([])
        async with Listened(studio, model, options=detected()) as heard:
            heard.talk.append(quiet(3))
            heard.talk.append(np.concatenate([loud(0.12), quiet(1)]))
            await heard.until(Dropped)
            return heard, model

    heard, model = run(talked())
    assert heard.kinds() == ["SpeechBegan", "SpeechEnded", "Dropped"] and model.asked == []


def test_a_committed_silence_is_told_and_no_turn(studio):
    async def talked():
        async with Listened(studio, Script([])) as heard:
            heard.talk.append(quiet(3))
            heard.talk.commit()
            return await heard.until(Failed), heard.talk.memory.items

    failed, items = run(talked())
    assert failed.code == "no_words" and items == []


def test_speaking_stops_an_answer_and_what_was_not_heard_is_forgotten(studio):
    async def talked():
        model = Script([["I could go on about this for a very long time, ", "and I will. ", "There is more to it."]])
        model.hold = asyncio.Event()
        async with Listened(studio, model, options=detected()) as heard:
            heard.talk.append(np.concatenate([loud(1), quiet(1)]))
            await heard.until(Sound)
            heard.talk.append(loud(0.2))
            ended, cut = await heard.answered(), await heard.until(Truncated)
            told = len([event for event in heard.events if isinstance(event, Sound)])
            return heard, model, ended, cut, told

    heard, model, ended, cut, told = run(talked())
    assert ended.state == "cancelled" and ended.interrupted and model.hung_up == 1
    assert len([event for event in heard.events if isinstance(event, Sound)]) == told
    item = cut.item
    assert item.frames * 80 <= cut.milliseconds and "more" not in item.text


def test_a_client_says_how_much_was_heard(studio):
    async def talked():
        async with Listened(studio, Script([["I have said a lot of things in my life. I will say more."]])) as heard:
            heard.talk.add(Item("user", pieces=[Piece("Go on.")]))
            heard.talk.answer()
            ended = await heard.answered()
            item = ended.items[0]
            await heard.talk.truncate(item.id, 250)
            with pytest.raises(InputError, match="no item"):
                await heard.talk.truncate("item_x", 0)
            return item, heard.talk.memory.said()

    item, said = run(talked())
    assert item.frames == 3 == sum(len(one.codes) for one in said) and not item.done


def test_an_answer_can_be_cancelled_and_another_asked_for(studio):
    async def talked():
        model = Script([["I could go on about this for a very long time, ", "never."], ["Fine."]])
        model.hold = asyncio.Event()
        async with Listened(studio, model) as heard:
            heard.talk.answer()
            await heard.until(Words)
            with pytest.raises(InputError, match="being given"):
                heard.talk.answer()
            heard.talk.cancel()
            first = await heard.answered()
            model.hold.set()
            heard.talk.answer()
            return first.state, (await heard.answered()).state

    assert run(talked()) == ("cancelled", "completed")


def test_text_alone_takes_no_slot(studio):
    async def talked():
        async with Listened(studio, Script([["Only ", "words."]]), options=replace(MANUAL, spoken=False)) as heard:
            heard.talk.answer()
            return (await heard.answered()).items[0].text, heard.kinds()

    text, kinds = run(talked())
    assert text == "Only words." and "Sound" not in kinds


def test_functions_are_passed_through(studio):
    async def talked():
        call = Call("call_1", "clock", '{"zone": "Paris"}')
        model = Script([[call], ["It is nine in Paris."]])
        async with Listened(studio, model) as heard:
            heard.talk.add(Item("user", pieces=[Piece("What is the time in Paris?")]))
            heard.talk.answer()
            called = await heard.until(Called)
            await heard.answered()
            heard.talk.add(Item("tool", "function_call_output", call_id="call_1", output="9 pm"))
            heard.talk.answer()
            await heard.answered()
            return called, model.asked[1].messages[-2:]

    called, (asked, told) = run(talked())
    assert called.item.name == "clock" and asked["tool_calls"][0]["function"]["arguments"] == '{"zone": "Paris"}'
    assert told == {"role": "tool", "tool_call_id": "call_1", "content": "9 pm"}


def test_a_language_model_that_fails_is_told_and_the_talk_goes_on(studio):
    async def talked():
        model = Script([[InputError("The language model is down.", "language_model_down")], ["Here I am."]])
        async with Listened(studio, model) as heard:
            heard.talk.answer()
            first = await heard.answered()
            heard.talk.answer()
            return first, (await heard.answered()).state

    first, state = run(talked())
    assert first.state == "failed" and first.sentence == "The language model is down." and state == "completed"


def test_a_talk_takes_a_slot_for_an_answer_and_none_between(studio):
    async def talked():
        model = Script([["I could go on about this for a very long time, ", "never."]])
        model.hold = asyncio.Event()
        async with Listened(studio, model) as heard:
            heard.talk.answer()
            await heard.until(Sound)
            during = len(studio.queue._places)
            model.hold.set()
            await heard.answered()
            return during, len(studio.queue._places)

    assert run(talked()) == (1, 0)


def test_a_talk_that_is_closed_leaves_nothing_behind(studio):
    async def talked():
        model = Script([["I could go on about this for a very long time, ", "never."]])
        model.hold = asyncio.Event()
        async with Listened(studio, model) as heard:
            heard.talk.answer()
            await heard.until(Sound)
            answer = heard.talk._answer
        await answer.settled()
        return model.hung_up, len(studio.queue._places), heard.talk.memory.items

    assert run(talked()) == (1, 0, [])
    assert len(studio.generator.prompts._ids) == utterance._remembered.cache_info().currsize == 0
    assert _remembered.cache_info().currsize == 0


def test_four_talks_and_two_scripts_side_by_side_are_as_each_would_be_alone(studio):
    async def one(number):
        model = Script([[f"This is what number {number} has to say."]])
        async with Listened(studio, model) as heard:
            heard.talk._mouth._seed = number
            heard.talk.append(loud(0.5) / (number + 1))
            heard.talk.commit()
            heard.talk.answer()
            ended = await heard.answered()
            asked = [message["content"] for message in model.asked[0].messages[1:]]
            return ended.items[0].text, asked, torch.cat([said.codes for said in heard.talk.memory.said()])

    def script(number):
        lines = parse_script(f"A: Script {number} begins.\nB: And it ends.")
        session = Session(lines, dict(zip("AB", shipped_voices().values())), replace(SHORT, seed=number))
        assert any(isinstance(event, Performed) for event in studio.perform(Job(session, new_folder())))
        return torch.cat([turn.take.codes for turn in session.turns])

    async def all_at_once():
        scripts = [asyncio.to_thread(script, number) for number in range(2)]
        return await asyncio.gather(*(one(number) for number in range(4)), *scripts)

    *talks, first, second = run(all_at_once())
    for number, (text, asked, codes) in enumerate(talks):
        assert text == f"This is what number {number} has to say." and asked == ["What is the time?"]
        assert torch.equal(codes, run(one(number))[2])
    assert torch.equal(first, script(0)) and torch.equal(second, script(1))


def test_a_word_that_cannot_be_read_is_told_and_the_rest_is_spoken(studio):
    async def talked():
        async with Listened(studio, Script([["Это так и есть на самом деле, да. Fine, let us go on then."]])) as heard:
            heard.talk.answer()
            return (await heard.answered()), heard.kinds()

    ended, kinds = run(talked())
    assert ended.state == "completed" and isinstance(ended, AnswerEnded) and "Sound" in kinds
