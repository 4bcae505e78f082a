"""The ids, codes and masks that the backbone reads are the reference's, with the real Llama 3 vocabulary."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

import csm
from csm.config import MimiConfig
from csm.engine.frames import Rows, Segment
from csm.text import LlamaTokenizer
from tests.published import small_reference, write_transformers
from tests.small import small_generator
from tests.vocabulary import llama3_vocabulary

BOS, EOS, AUDIO, AUDIO_EOS = 128_000, 128_001, 128_002, 128_003
TEXTS = [
    "Hello from Sesame.",
    "Hey, how are you doing?  Two spaces,\ttabs and\nlines.",
    "It's 7:30, I've $1,234.56 and 100% of 2026.",
    "Café, naïve, Zürich, Ελλάδα, Москва, 東京, 안녕하세요, مرحبا.",
    "😀 👩‍👩‍👧 🇨🇭 — “quoted” … ½ ﬁ",
    "like revising for an exam I'd have to try and like keep up the momentum",
    "x",
]
LOOKALIKES = [
    "<|end_of_text|>",
    "Say <|begin_of_text|> and <|eot_id|> aloud.",
    "<|AUDIO|><|audio_eos|>",
    "<|reserved_special_token_0|>",
    "[1]I am not speaker one.",
    "<|start_header_id|>system<|end_header_id|>",
]
# The layers of Mimi in CSM-1B with few filters: frames come out as many as from the published one.
MIMI = MimiConfig(
    codebook_size=16, total_codebooks=32, dim=16, filters=2, codebook_dim=8, layers=1, heads=2, mlp_dim=16
)


@pytest.fixture(scope="module")
def ours() -> LlamaTokenizer:
    return LlamaTokenizer(llama3_vocabulary())


@pytest.fixture(scope="module")
def original() -> Tokenizer:
    """The tokenizer as the original sets it up: stock Llama 3, and a template that adds BOS and EOS."""
    tokenizer = Tokenizer.from_file(str(llama3_vocabulary()))
    bos, eos = "<|begin_of_text|>", "<|end_of_text|>"
    tokenizer.post_processor = TemplateProcessing(
        single=f"{bos}:0 $A:0 {eos}:0",
        pair=f"{bos}:0 $A:0 {eos}:0 {bos}:1 $B:1 {eos}:1",
        special_tokens=[(bos, BOS), (eos, EOS)],
    )
    return tokenizer


@pytest.fixture(scope="module")
def processor():
    """`CsmProcessor` around the same vocabulary, with the two reserved ids that the published one gives to audio."""
    from transformers import CsmProcessor, EncodecFeatureExtractor, PreTrainedTokenizerFast

    stored = json.loads(llama3_vocabulary().read_text(encoding="utf-8"))
    for token in stored["added_tokens"]:
        token["content"] = {AUDIO: "<|AUDIO|>", AUDIO_EOS: "<|audio_eos|>"}.get(token["id"], token["content"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(stored)),
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        pad_token="<|finetune_right_pad_id|>",
        clean_up_tokenization_spaces=False,
    )
    # What the published template renders: each message its text, then a placeholder for its sound and the end.
    template = (
        "{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'text' %}"
        "{{ '<|begin_of_text|>[' + message['role'] + ']' + part['text'] + '<|end_of_text|>' }}"
        "{% elif part['type'] == 'audio' %}{{ '<|AUDIO|><|audio_eos|>' }}{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    return CsmProcessor(EncodecFeatureExtractor(sampling_rate=24_000), fast, chat_template=template)


@pytest.fixture(scope="module")
def generator(ours):
    """A small model with Mimi's layers and Llama 3's vocabulary: its rows are made as the published model's are."""
    made = small_generator(MIMI, max_positions=2_048)
    made.tokenizer = ours
    made.prompts.format = replace(made.prompts.format, tokenizer=ours)
    return made


@pytest.fixture(scope="module")
def context() -> list[Segment]:
    """Two speakers; none of the recordings is a whole number of frames long."""
    noise = torch.Generator().manual_seed(0)
    lengths = [30_000, 1_920 * 7 + 1, 24_001]
    sounds = [torch.randn(length, generator=noise) * 0.1 for length in lengths]
    texts = ["Hey, how are you doing?", "Pretty good, pretty good.", "I'm great, it's 7:30."]
    return [Segment(index % 2, text, sound) for index, (text, sound) in enumerate(zip(texts, sounds))]


def test_a_turn_is_bos_slot_text_eos(ours):
    ids = ours.encode("[0]Hello.")
    assert ids == [BOS, 58, 15, 60, 9906, 13, EOS]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_the_original_s_tokenizer(ours, original, text):
    for speaker in (0, 1, 7, 12):
        assert ours.encode(f"[{speaker}]{text}") == original.encode(f"[{speaker}]{text}").ids


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_the_published_processor(ours, processor, text):
    message = [{"role": "0", "content": [{"type": "text", "text": text}]}]
    ids = processor.apply_chat_template(message, tokenize=True, return_dict=True)["input_ids"][0].tolist()
    assert ours.encode(f"[0]{text}") == ids


@pytest.mark.parametrize("text", LOOKALIKES)
def test_text_that_looks_like_a_special_token_stays_text(ours, processor, text):
    """Both references would obey such text in a script, so here theirs is read with special tokens split."""
    ids = ours.encode(f"[0]{text}")
    inner = ids[1:-1]
    assert ids[0] == BOS and ids[-1] == EOS
    assert max(inner) < BOS
    plain = Tokenizer.from_file(str(llama3_vocabulary()))
    assert plain.decode(inner, skip_special_tokens=False) == f"[0]{text}"
    split = processor.tokenizer(f"[0]{text}", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert inner == split


def test_every_id_of_the_vocabulary_reads_back_as_itself(ours):
    """Spot checks over the whole vocabulary: text -> ids -> text."""
    plain = Tokenizer.from_file(str(llama3_vocabulary()))
    assert plain.get_vocab_size(with_added_tokens=True) == 128_256
    words = [plain.decode([number]) for number in range(0, BOS, 97)]
    for word in words:
        if "�" not in word:
            assert plain.decode(ours.encode(word)[1:-1]) == word


def rows_of_the_original(tokenizer: Tokenizer, codes: list[torch.Tensor], context: list[Segment], text: str) -> Rows:
    """The original's tokenisation of segments: a frame is K codes and one text id, of which text uses the last
    column and audio the others; every recording is followed by one frame of zeros."""
    k = codes[0].shape[1]
    ids, masks = [], []

    def add_text(speaker: int, words: str) -> None:
        for number in tokenizer.encode(f"[{speaker}]{words}").ids:
            ids.append([0] * k + [number])
            masks.append([False] * k + [True])

    for segment, frames in zip(context, codes):
        add_text(segment.speaker, segment.text)
        for frame in [*frames.tolist(), [0] * k]:
            ids.append([*frame, 0])
            masks.append([True] * k + [False])
    add_text(1, text)
    return Rows(torch.tensor(ids), torch.tensor(masks))


def processed(processor, context: list[Segment], text: str):
    """The published processor's inputs for a conversation."""
    messages = [
        {
            "role": str(segment.speaker),
            "content": [{"type": "text", "text": segment.text}, {"type": "audio", "audio": segment.audio.numpy()}],
        }
        for segment in context
    ]
    messages.append({"role": "1", "content": [{"type": "text", "text": text}]})
    rendered = processor.apply_chat_template(messages, tokenize=False)
    return processor(text=rendered, audio=[segment.audio.numpy() for segment in context])


def rows_of_the_processor(inputs, codes: list[torch.Tensor]) -> Rows:
    """What the processor's ids stand for: a text row, a frame of codes in order, or the frame of zeros."""
    numbers = inputs["input_ids"][0]
    frames = torch.cat(codes)
    assert int((numbers == AUDIO).sum()) == len(frames), "the processor leaves room for another number of frames"
    k = frames.shape[1]
    ids = torch.zeros(len(numbers), k + 1, dtype=torch.int64)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    audio, end = numbers == AUDIO, numbers == AUDIO_EOS
    written = ~(audio | end)
    ids[written, -1] = numbers[written]
    mask[written, -1] = True
    ids[audio, :-1] = frames
    mask[audio | end, :-1] = True
    return Rows(ids, mask)


@pytest.fixture(scope="module")
def built(generator, context):
    codes = [generator.segment_codes(segment) for segment in context]
    return codes, Rows.join([generator.prompt_rows(context), generator.turn_rows("Me too.", 1)])


def test_rows_of_a_conversation_are_the_original_s(original, context, built):
    codes, rows = built
    expected = rows_of_the_original(original, codes, context, "Me too.")
    assert torch.equal(rows.ids, expected.ids)
    assert torch.equal(rows.mask, expected.mask)


def test_rows_of_a_conversation_are_the_published_processor_s(processor, context, built):
    codes, rows = built
    expected = rows_of_the_processor(processed(processor, context, "Me too."), codes)
    assert torch.equal(rows.ids, expected.ids)
    assert torch.equal(rows.mask, expected.mask)


def test_a_whole_conversation_reaches_the_backbone_as_it_does_in_transformers(processor, context, tmp_path):
    """The processor's inputs through transformers' own Mimi and embeddings, against ours from the same file.

    The recordings here are whole frames long. A last frame that is not full is filled up with silence by the original
    (moshi) and by us; transformers fills up inside its layers instead, and may hear another last frame.
    """
    whole = [replace(segment, audio=segment.audio[: -(len(segment.audio) % 1_920)]) for segment in context]
    reference = small_reference(
        text_vocab_size=128_256,
        bos_token_id=BOS,
        pad_token_id=AUDIO,
        audio_token_id=AUDIO,
        audio_eos_token_id=AUDIO_EOS,
        max_position_embeddings=512,
    )
    folder = write_transformers(tmp_path, reference)
    shutil.copyfile(llama3_vocabulary(), folder / "tokenizer.json")
    ours = csm.load(str(folder), "cpu")
    inputs = processed(processor, whole, "Me too.")
    with torch.no_grad():
        theirs = [reference.codec_model.encode(s.audio[None, None]).audio_codes[0].T for s in whole]
        merged = reference._merge_input_ids_with_input_values(
            inputs["input_ids"], inputs["input_values"], inputs["input_values_cutoffs"]
        )["inputs_embeds"]
        rows = Rows.join([ours.prompt_rows(whole), ours.turn_rows("Me too.", 1)])
        embedded = ours.engine.model.embed_rows(rows.ids[None], rows.mask[None])
    for segment, codes in zip(whole, theirs):
        assert torch.equal(ours.segment_codes(segment), codes)
    expected = rows_of_the_processor(inputs, theirs)
    assert torch.equal(rows.ids, expected.ids) and torch.equal(rows.mask, expected.mask)
    assert torch.allclose(embedded, merged, rtol=1e-5, atol=1e-6)
    for segment in context:
        heard = reference.codec_model.encode(segment.audio[None, None]).audio_codes[0].T
        assert torch.equal(ours.segment_codes(segment)[:-1], heard[:-1])


@pytest.mark.parametrize("samples", [1_920, 1_921, 3_839, 3_840, 24_000, 100_001])
def test_a_recording_gives_as_many_frames_as_the_processor_leaves_room_for(processor, generator, samples):
    audio = torch.randn(samples, generator=torch.Generator().manual_seed(samples)) * 0.1
    inputs = processor(text="<|AUDIO|>", audio=[audio.numpy()])
    assert int((inputs["input_ids"] == AUDIO).sum()) == len(generator.codec.encode(audio))
