"""The two measures of pronunciation, and the judge's own: each a forced choice between a word's two ways.

*Homographs*: a sentence decides how a word is said, as in "a row about money"; is it said so? *Continuation*: a context
says a word that may be said either way; does the next turn say it the same way? *Judge*: how often it is right on
speech whose pronunciation is known, as that speech is and after the model's codec, since it hears the model through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from csm.codec import decoded_again
from csm.engine.frames import Segment
from csm.evaluation.desk import Desk
from csm.evaluation.keeping import Record
from csm.evaluation.metrics import interval, mean
from csm.evaluation.pronunciation.aligner import Aligner, chosen
from csm.evaluation.pronunciation.lists import NEUTRAL, Again, Choice
from csm.evaluation.pronunciation.tellers import Teller
from csm.evaluation.talks import rounded

Figures = dict[str, Any]


def judge_accuracy(desk: Desk, aligner: Aligner, teller: Teller, choices: Sequence[Choice]) -> Figures:
    """How often the judge hears the way that was asked for, whatever the sentence would want: each sentence is told
    both ways. In all, after the model's codec, and by word."""
    records = []
    for number, choice in enumerate(choices):
        for way in (0, 1):
            key, told = f"judge-{number:03}-{choice.word}-{way}", choice.said(way)
            record = desk.once(key, "clips for the judge", _told, aligner, teller, told, number)
            records.append(record)
    return rounded(
        {
            "judge": aligner.name,
            "speech": teller.name,
            "as_it_is": _right(records, "margin"),
            "after_codec": _right(records, "margin_after_codec"),
            "words": {
                word: _right([record for record in records if record["word"] == word], "margin_after_codec")["right"]
                for word in dict.fromkeys(choice.word for choice in choices)
            },
        }
    )


def homographs(desk: Desk, aligner: Aligner, choices: Sequence[Choice], accuracy: float | None = None) -> Figures:
    """Have the model say the sentences, voice after voice, and count how often the way is the one that the sentence
    decides for. `accuracy`, the judge's own, gives an estimate of what a judge who is always right would count."""
    names = list(desk.voices)
    records = []
    for number, choice in enumerate(choices):
        name = names[number // 2 % len(names)]
        key = f"homograph-{number:03}-{choice.word}-{choice.right}"
        records.append(desk.once(key, "homographs", _homograph, aligner, choice, name, number, key))
    said_first = [record for record in records if chosen(record["margin"]) == 0]
    found = _right(records, "margin")
    return rounded(
        {
            "sentences": len(records),
            **found,
            "right_by_a_judge_without_error": estimated(found["right"], accuracy),
            "said_the_first_way": len(said_first) / found["judged"] if found["judged"] else None,
            "words": {
                word: _right([record for record in records if record["word"] == word], "margin")["right"]
                for word in dict.fromkeys(choice.word for choice in choices)
            },
        }
    )


def continuation(desk: Desk, aligner: Aligner, teller: Teller, pairs: Sequence[Again]) -> Figures:
    """Have the model go on in the voice that told the context, and count how often the word is said as it was told;
    beside it, how it is said after a context without that word. Half is chance.

    The contexts are told by somebody whose pronunciation is known, so they measure the judge on these words, too.
    """
    contexts, turns, plain = [], [], []
    for number, again in enumerate(pairs):
        way, voice = again.context.right, number // 2
        key = f"again-{number:03}-{again.turn.word}-{way}"
        record = desk.once(key, "continuations", _again, aligner, teller, again, voice, key)
        turns.append(record)
        contexts.append({"way": way, "margin": record["context_margin"]})
        if way == 0:
            key = f"again-{number:03}-{again.turn.word}-plain"
            plain.append(desk.once(key, "continuations", _plain, aligner, teller, again, voice, key))
    return rounded(
        {
            "turns": len(turns),
            **_right(turns, "margin"),
            "said_the_first_way_after_the_first": _first(record for record in turns if record["way"] == 0),
            "said_the_first_way_after_the_second": _first(record for record in turns if record["way"] == 1),
            "said_the_first_way_without_context": _first(plain),
            "judge": {"judge": aligner.name, "speech": teller.name, **_right(contexts, "margin")},
        }
    )


def estimated(share: float | None, accuracy: float | None) -> float | None:
    """The share that a judge who is always right would find where one who is right in `accuracy` of all cases, either
    way alike, found `share`. None for a judge that is no better than chance."""
    if share is None or accuracy is None or accuracy <= 0.55:
        return None
    return min(1.0, max(0.0, (share + accuracy - 1) / (2 * accuracy - 1)))


def _right(records: Sequence[Record], margin: str) -> Figures:
    """How many were judged, and of those how many were said the way that is asked for, with the 95 % interval."""
    judged = [chosen(record[margin]) == record["way"] for record in records if record[margin] is not None]
    return {
        "judged": len(judged),
        "right": mean(judged),
        "interval": interval(sum(judged), len(judged)),
    }


def _first(records: Any) -> float | None:
    return mean([chosen(record["margin"]) == 0 for record in records if record["margin"] is not None])


def _told(desk: Desk, aligner: Aligner, teller: Teller, choice: Choice, voice: int) -> Record:
    wave = teller.say(choice, voice)
    codec, device = desk.generator.codec, desk.generator.device
    again = decoded_again(codec, wave.to(device)).cpu()
    margins = {"margin": aligner.margin(wave, choice), "margin_after_codec": aligner.margin(again, choice)}
    return {"word": choice.word, "way": choice.right, "text": choice.text, **margins}


def _homograph(desk: Desk, aligner: Aligner, choice: Choice, name: str, number: int, key: str) -> Record:
    talk = desk.generator.conversation([desk.prompt(name)], seed=desk.speech.seed + number)
    record, audio = desk.speak(talk, choice.text, 0, key)
    return record | {"voice": name, "word": choice.word, "way": choice.right, "margin": aligner.margin(audio, choice)}


def _again(desk: Desk, aligner: Aligner, teller: Teller, again: Again, voice: int, key: str) -> Record:
    context = teller.say(again.context, voice)
    record = _go_on(desk, aligner, again, Segment(0, again.context.text, context), voice, key)
    return record | {"context_margin": aligner.margin(context, again.context)}


def _plain(desk: Desk, aligner: Aligner, teller: Teller, again: Again, voice: int, key: str) -> Record:
    return _go_on(desk, aligner, again, Segment(0, NEUTRAL, teller.read(NEUTRAL, voice)), voice, key)


def _go_on(desk: Desk, aligner: Aligner, again: Again, context: Segment, voice: int, key: str) -> Record:
    talk = desk.generator.conversation([context], seed=desk.speech.seed + voice)
    record, audio = desk.speak(talk, again.turn.text, 0, key)
    word = {"word": again.turn.word, "way": again.turn.right, "margin": aligner.margin(audio, again.turn)}
    return record | word
