"""Models whose frames carry their speaker's slot: what is read, stepped, spoken side by side and read in again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from csm import InputError, Segment
from csm.config import ModelConfig
from csm.engine import Stream
from csm.engine.frames import RowFormat
from csm.listening.confidence import confidence
from csm.model import CSM
from csm.settings import Settings
from csm.speech.generator import Generator
from csm.text import ByteTokenizer
from csm.training.codes import Conversations
from csm.training.corpus import Corpus
from csm.training.slots import tell_slots
from tests.letters import write_speech
from tests.small import small_config, small_generator

DRAWN = Settings(temperature=0.9, topk=50)
CODES = torch.arange(1, 13).view(3, 4)


@pytest.fixture(scope="module")
def told() -> Generator:
    """A small random model that is told whose frame each is."""
    return small_generator(slots_in_frames=True)


def test_frames_and_the_row_before_the_first_carry_the_slot_s_number():
    rows = RowFormat(ByteTokenizer(), 4, slots_in_frames=True).turn("Hi.", 5, CODES)
    plain = RowFormat(ByteTokenizer(), 4).turn("Hi.", 5, CODES)
    assert len(rows) == len(plain) + 1
    text = len(plain) - len(CODES) - 1
    assert rows.ids[:text].tolist() == plain.ids[:text].tolist()
    assert rows.ids[text:, -1].tolist() == [ord("5")] * (1 + len(CODES) + 1) and rows.mask[text:, -1].all()
    assert rows.mask[text + 1 :, :-1].all() and not rows.mask[: text + 1, :-1].any()


def test_the_published_models_frames_carry_none():
    rows = RowFormat(ByteTokenizer(), 4).turn("Hi.", 5, CODES)
    assert not rows.mask[-len(CODES) - 1 :, -1].any()
    assert not small_config().slots_in_frames and "slots_in_frames" in small_config().to_dict()
    stored = {key: value for key, value in small_config().to_dict().items() if key != "slots_in_frames"}
    assert ModelConfig.from_dict(stored) == small_config(), "checkpoints from before have no such field"


@torch.inference_mode()
def test_a_sampled_frame_is_read_as_it_is_when_it_is_read_in_again(told):
    """Stepping leaves the state that prefilling the same rows leaves, under the same slot and no other."""
    engine, written = told.engine, told.prompts.format
    states = {}
    for slot in (1, 2):
        context = engine.new_context()
        engine.prefill(context, written.text("Hello there.", 1))
        codes = torch.stack(list(engine.speak(context, DRAWN, torch.Generator().manual_seed(3), 6)))
        again = engine.new_context()
        engine.prefill(again, written.text("Hello there.", 1))
        rows = written.spoken(codes, slot)
        engine.prefill(again, type(rows)(rows.ids[:-1], rows.mask[:-1]))
        states[slot] = context.state, again.state
    torch.testing.assert_close(*states[1], rtol=1e-4, atol=1e-5)
    assert (states[2][0] - states[2][1]).abs().max() > 0.01, "or the slot changes nothing"


def test_streams_of_different_slots_say_side_by_side_what_each_says_alone(told):
    engine, written = told.engine, told.prompts.format

    def begun(slot):
        context = engine.new_context()
        engine.prefill(context, written.text("Hello there.", slot))
        return context

    alone = {slot: list(engine.speak(begun(slot), DRAWN, torch.Generator().manual_seed(5), 8)) for slot in (0, 3, 6)}
    with engine.lineups.lend(3) as lineup:
        streams = {
            slot: lineup.join(Stream(lambda slot=slot: begun(slot), DRAWN, torch.Generator().manual_seed(5), 8))
            for slot in (0, 3, 6)
        }
        while not all(stream.done for stream in streams.values()):
            lineup.step()
    for slot, stream in streams.items():
        assert torch.equal(stream.codes, torch.stack(alone[slot]))
    assert not torch.equal(streams[0].codes, streams[3].codes), "or the slot changes nothing"


def test_a_conversation_goes_on_alike_after_a_rewind_and_when_it_is_read_in_anew(told):
    prompts = [Segment(0, "One voice.", codes=CODES), Segment(1, "Another.", codes=CODES.flip(0))]
    talk = told.conversation(prompts, seed=3)
    first = talk.say("Good morning.", 0, max_audio_length_ms=800)
    second = talk.say("And to you.", 1, max_audio_length_ms=800)
    talk.rewind(second)
    assert torch.equal(talk.say("And to you.", 1, max_audio_length_ms=800).codes, second.codes)
    anew = told.conversation(prompts, seed=3)
    anew.hear("Good morning.", 0, first.codes)
    assert torch.equal(anew.say("And to you.", 1, max_audio_length_ms=800).codes, second.codes)


def test_how_sure_a_model_was_depends_on_whose_turn_it_is(told):
    context = [Segment(0, "One voice.", codes=CODES)]
    sure = [confidence(told, "Hello.", CODES, context, speaker).first for speaker in (0, 1)]
    assert len(sure[0]) == len(CODES) and not torch.equal(*sure)


def test_a_trained_model_is_told_slots_and_its_listening_heads_tell_them_apart(tmp_path):
    """Before any training: text and codes are read as before, and a head looks at frames of its own slot alone."""
    torch.manual_seed(2)
    plain = CSM(small_config(max_positions=512)).init_weights().eval()
    talk = Conversations(Corpus(write_speech(tmp_path)), tmp_path, ByteTokenizer(), plain.config)
    told = tell_slots(plain, ByteTokenizer(), talk.batch(0, 2, 256), heads={1: (0,)})
    assert told.config == replace(plain.config, slots_in_frames=True)
    batch, layer = Conversations(Corpus(tmp_path), tmp_path, ByteTokenizer(), told.config).batch(1, 1, 256), 1
    with torch.no_grad():
        x = told.embed_rows(batch.ids, batch.mask)
        cos, sin = told.backbone.rotary(torch.arange(256))
        x = told.backbone.layers[0](x, cos, sin, 0, None)
        q, k = told.backbone.layers[layer].attn.queries_keys(told.backbone.layers[layer].sa_norm(x), cos, sin)
    frames = batch.mask[0, :, 0].nonzero()[:, 0]
    slots = batch.ids[0, frames, -1]
    scores = (q[0, 0, frames] @ k[0, 0, frames].T) / 8**0.5
    same = slots[:, None] == slots
    assert len(set(slots.tolist())) > 1 and scores[same].mean() > scores[~same].mean() + 2
    with pytest.raises(InputError, match="carry slots already"):
        tell_slots(told, ByteTokenizer(), batch)
    with pytest.raises(InputError, match="is for nano"):
        tell_slots(plain, ByteTokenizer(), batch)
