"""The named endpoints of the web app, through the Gradio client and a running `python app.py`."""

import base64
import io
import json
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from csm.conversation.parsing import parse_script
from csm.conversation.session import Session
from csm.conversation.studio import LONGEST_LEASE, Job
from csm.errors import InputError
from csm.settings import Settings
from csm.speech.voices import find_voice, shipped_voices
from csm.watermark import detect
from csm.web.endpoints import EXAMPLE_SCRIPT, Choice, MisplacedError, cast, default_voices, read_settings

REPORT_KEYS = {
    "model", "device", "seed", "sample_rate", "audio_seconds", "generation_seconds", "real_time_factor",
    "first_audio_seconds", "positions_prefilled", "window_slides", "turns",
}  # fmt: skip
TURN_KEYS = {
    "speaker", "text", "start", "end", "frames", "state", "positions_prefilled",
    "trimmed", "seed", "takes", "reason", "stale", "heard_from", "other_settings", "words",
    "doubt", "again", "pieces", "paused",
}  # fmt: skip
BOTH = {"A": Choice("slt"), "B": Choice("rms")}


@pytest.fixture(scope="module")
def client(app):
    return Client(app.url, verbose=False)


@pytest.fixture(scope="module")
def spoken(client):
    return client.predict(script="A: Hi.\nB: Hello.", api_name="/generate")


def speak(client, script="A: Good morning.", **settings):
    return client.predict(script=script, **{"max_turn_seconds": 1.5, **settings}, api_name="/generate")


def wav(path: Path, seconds: float, level: float = 0.2) -> Path:
    noise = np.random.default_rng(0).standard_normal(int(seconds * 24_000)).astype(np.float32)
    soundfile.write(path, level * noise.clip(-2, 2), 24_000)
    return path


def test_the_client_gets_a_wav_and_the_report_with_everything_else_at_its_default(spoken):
    path, report = spoken
    sound, rate = soundfile.read(path)
    assert rate == report["sample_rate"] == 24_000
    assert len(sound) / rate == pytest.approx(report["audio_seconds"], abs=0.01)
    assert np.abs(sound).max() > 0.001
    assert set(report) == REPORT_KEYS
    assert report["model"] == "nano" and report["seed"] == Settings().seed
    assert [(turn["speaker"], turn["text"]) for turn in report["turns"]] == [("A", "Hi."), ("B", "Hello.")]
    assert all(set(turn) == TURN_KEYS for turn in report["turns"])
    assert all(turn["state"] in ("ended", "capped") for turn in report["turns"])


def test_what_the_client_gets_is_marked_and_a_human_made_file_is_not(client, spoken):
    path, _ = spoken
    found = client.predict(handle_file(path), api_name="/check_watermark")
    assert found["marked"] is True and 0 <= found["confidence"] <= 1
    prompt = next(iter(shipped_voices().values())).path
    assert client.predict(handle_file(prompt), api_name="/check_watermark")["marked"] is False


def test_the_same_seed_gives_the_same_file_and_another_seed_another(client):
    first, again, other = (Path(speak(client, seed=seed)[0]).read_bytes() for seed in (3, 3, 4))
    assert first == again != other


def test_a_drawn_seed_is_reported_and_gives_the_same_again(client):
    path, report = speak(client, seed=-1)
    assert report["seed"] >= 0
    assert Path(speak(client, seed=report["seed"])[0]).read_bytes() == Path(path).read_bytes()


def test_a_recording_with_its_transcript_is_a_voice(client):
    voice = find_voice("awb")
    path, report = speak(client, prompt_a=handle_file(voice.path), transcript_a=voice.transcript)
    assert report["audio_seconds"] > 0
    assert Path(path).read_bytes() == Path(speak(client, voice_a="awb")[0]).read_bytes()


def test_two_clients_at_once_get_each_their_own(app, client):
    """Alike to the last bit only where products of one row and of two are; elsewhere a draw may fall differently."""
    scripts = ["Anna: The rain has stopped.", "Ben: My train is late again, and nobody at the station knows why."]
    alone = [len(Path(speak(client, script, seed=5)[0]).read_bytes()) for script in scripts]
    with ThreadPoolExecutor() as pool:
        at_once = list(pool.map(lambda s: speak(Client(app.url, verbose=False), s, seed=5), scripts))
    assert [report["turns"][0]["text"] for _, report in at_once] == [line.partition(": ")[2] for line in scripts]
    sizes = [len(Path(path).read_bytes()) for path, _ in at_once]
    assert all(0.6 < size / own < 1.6 for size, own in zip(sizes, alone)) and sizes[0] < sizes[1]


def live(app, script):
    """A page's run without its browser: the sound as it was streamed, int16, and the last line of the stream."""
    pieces, end, _ = followed(app, script)
    return np.concatenate([piece for turn in pieces for piece in turn]), end


def followed(app, script):
    """The same with the pieces of each turn by themselves, and the page's token."""
    body = {"token": secrets.token_hex(16), "script": script, "turn": 0, "settings": {"max_turn_seconds": 1.5}}
    answer = httpx.post(app.url + "csm/speak", json=body, timeout=120, trust_env=False)
    lines = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]
    turns = [[] for line in lines if line["type"] == "turn"]
    for line in lines:
        if line["type"] == "sound":
            turns[line["index"]].append(np.frombuffer(base64.b64decode(line["pcm"]), np.int16))
    return turns, lines[-1], body["token"]


def test_eight_pages_at_once_hear_each_their_own(app):
    words = "One. Two. Three. Four. Five. Six. Seven. Eight.".split()
    scripts = [f"{name}: {word}\nBen: Yes, {word}" for name, word in zip("ACDEFGHI", words)]
    alone, _ = live(app, scripts[3])
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda script: live(app, script), scripts))
    assert [end["view"]["script"] for _, end in runs] == scripts
    assert len({sound.tobytes() for sound, _ in runs}) == 8
    shared = runs[3][0].astype(float)  # in one batch with others: as alone but for rounding
    assert np.linalg.norm(shared - alone) < 0.03 * np.linalg.norm(alone.astype(float))


def test_sound_carries_the_watermark_while_it_is_made(app):
    sound, end = live(app, "\n".join(EXAMPLE_SCRIPT.splitlines()[:2]))
    assert end["type"] == "end" and detect(torch.from_numpy(sound / np.float32(32_767))).marked


def level(wave):
    """Decibels of full scale."""
    return 10 * np.log10(np.mean(np.square(wave, dtype=np.float64)) + 1e-8)


def test_live_sound_is_the_file_s_with_no_silence_and_no_step_where_its_pieces_join(app):
    turns, end, token = followed(app, "A: Good morning! Did you sleep well?\nB: Not really.")
    whole = httpx.get(f"{app.url}csm/save/{token}/wav", timeout=60, trust_env=False)
    sound, _ = soundfile.read(io.BytesIO(whole.content), dtype="float32")
    starts = [round(span["start"] * 24_000) for span in end["view"]["sound"]["spans"]]
    joins = 0
    for pieces, start, stop in zip(turns, starts, [*starts[1:], len(sound)]):
        heard, filed = np.concatenate(pieces) / np.float32(32_767), sound[start:stop]
        assert len(filed) <= len(heard), "the file has what was not heard"
        lags = [np.dot(heard[lag : lag + len(filed) - 2_400], filed[:-2_400]) for lag in range(0, 480, 24)]
        assert int(np.argmax(lags)) == 0, "silence was put before or into the sound"
        off = heard[: len(filed)] - filed
        assert level(off) < level(filed) - 8, "what is heard is not what is in the file"
        for join in np.cumsum([len(piece) for piece in pieces])[:-1]:
            if 480 <= join <= len(filed) - 480 and level(filed[join - 480 : join + 480]) > -45:
                around = [(heard, filed)[n][join - 240 + 240 * k :][:240] for k in (0, 1) for n in (0, 1)]
                step = (level(around[2]) - level(around[0])) - (level(around[3]) - level(around[1]))
                assert abs(step) < 3, f"the level jumps by {step:.1f} dB at a join"
                joins += 1
    assert joins >= 3


def test_of_several_takes_the_best_is_given_and_the_report_says_why(client):
    _, report = speak(client, "A: One.", takes=2, max_turn_seconds=1)
    assert report["turns"][0]["takes"] == 2 and "was kept" in report["turns"][0]["reason"]


def test_a_recording_is_written_down_and_checked_for_programs(client, prompts):
    pytest.importorskip("moonshine_voice", reason="the recogniser is not installed: pip install -e '.[listening]'")
    voice = find_voice("slt")
    heard = client.predict(recording=handle_file(voice.path), api_name="/transcribe")
    assert len(set(heard.lower().split()) & set(voice.transcript.lower().split())) >= 3
    fine = client.predict(recording=handle_file(voice.path), transcript=voice.transcript, api_name="/check_prompt")
    assert fine["usable"] is True
    silent = client.predict(recording=handle_file(prompts / "silent.wav"), api_name="/check_prompt")
    assert silent["usable"] is False and silent["findings"][0]["kind"] == "silent"
    with pytest.raises(AppError, match="40 s long; cut it"):
        client.predict(recording=handle_file(prompts / "long.wav"), api_name="/transcribe")


def test_a_script_beyond_the_budget_is_spoken_to_its_end_and_says_what_was_forgotten(client):
    line = "this is a very long line that goes on and on until the listener has fallen asleep " * 5
    script = "\n".join(f"{'AB'[turn % 2]}: {line}" for turn in range(8))
    path, report = speak(client, script, max_turn_seconds=1)
    assert len(report["turns"]) == 8 and report["window_slides"] > 0
    assert "the oldest turns left its memory" in report["notice"]
    assert soundfile.info(path).duration == pytest.approx(report["audio_seconds"], abs=0.01)


BAD = {
    "an empty script": (dict(script="  \n"), "script is empty"),
    "nine speakers": (dict(script="\n".join(f"{name}: Hi." for name in "ABCDEFGHI")), "at most 8"),
    "an unknown voice": (dict(voice_a="nobody"), "no voice called “nobody”; choose one of"),
    "a path of the server": (dict(voice_a="/etc/hostname"), "no voice called"),
    "no transcript": (dict(prompt_a="speech.wav"), "transcript is missing"),
    "a silent prompt": (dict(prompt_a="silent.wav", transcript_a="Hi."), "silent"),
    "a short prompt": (dict(prompt_a="short.wav", transcript_a="Hi."), "too short"),
    "a long prompt": (dict(prompt_a="long.wav", transcript_a="Hi."), r"at most 30 s fit"),
    "not audio": (dict(prompt_a="text.wav", transcript_a="Hi."), "not audio|can't be read"),
    "a negative seed": (dict(seed=-5), "seed"),
    "no temperature": (dict(temperature=0), "temperature"),
    "a word for a number": (dict(max_turn_seconds="long"), "must be a number"),
    "top-k of 0": (dict(topk=0), "Top-k"),
    "a min-p above 1": (dict(min_p=2), "Min-p"),
    "too many takes": (dict(takes=99), "number of takes"),
    "turns of no length": (dict(max_turn_seconds=0), "longest turn"),
}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    wav(folder / "speech.wav", 3)
    wav(folder / "silent.wav", 3, level=0.0)
    wav(folder / "short.wav", 0.3)
    wav(folder / "long.wav", 40)
    (folder / "text.wav").write_text("This is no sound.")
    return folder


@pytest.mark.parametrize("given, sentence", BAD.values(), ids=BAD)
def test_bad_input_gets_one_sentence(client, prompts, given, sentence):
    given = {key: handle_file(prompts / value) if key == "prompt_a" else value for key, value in given.items()}
    with pytest.raises(AppError, match=f"(?i){sentence}") as caught:
        speak(client, **given)
    told = str(caught.value)
    assert "Traceback" not in told and "\n" not in told and len(told) < 300


def test_a_function_or_an_event_that_is_not_there_is_no_failure_of_the_program(app):
    with httpx.Client(base_url=app.url + "gradio_api/", trust_env=False, timeout=60) as http:
        unknown = http.post("call/nothing", json={"data": [1]})
        nowhere = http.get("proxy=%0B")  # no address that could be asked
        for answer in (unknown, nowhere):
            assert answer.status_code == 400 and "can't be read" in answer.json()["error"]
        answers = [http.get(path) for path in ("call/generate/nothing", "call/v2/generate/nothing")]
        answers.append(http.post("stream/nothing", json={"data": []}))
        assert [answer.status_code for answer in answers] == [404] * 3
        assert all("nothing at this address" in answer.json()["error"] for answer in answers)


def test_a_request_cannot_have_files_of_the_server_read(app):
    def called(recording) -> str:
        data = ["A: Hi.", "slt", "rms", 7, 0.9, 50, 1, recording, "Hi.", None, "", 1, 0.1]
        with httpx.Client(base_url=app.url + "gradio_api/call/generate", trust_env=False, timeout=60) as http:
            event = http.post("", json={"data": data}).json()["event_id"]
            return http.get(f"/{event}").text

    stolen = {"path": str(shipped_voices()["slt"].path), "meta": {"_type": "gradio.FileData"}}
    assert "event: complete" in called(None)
    assert "event: error" in called(stolen)


def test_direction_a_dictionary_and_what_was_understood_go_through_generate(client):
    script = "**Anna:** In Łódź. [pause 0.5s] At last."
    _, report = speak(client, script, dictionary="Łódź = woodge")
    (turn,) = report["turns"]
    assert turn["words"] == "in woodge. at last." and turn["paused"] == 0.5
    assert report["understood"] == "Read as 1 speaker, 1 turn."
    with pytest.raises(AppError, match="Line 1 of the dictionary never ends"):
        speak(client, script, dictionary="a = b\nb = a")
    with pytest.raises(AppError, match="Line 2: <prosody> is not understood here"):
        speak(client, 'A: Hi.\nB: <prosody rate="slow">Hello.</prosody>')


def test_the_app_serves_on_after_bad_input_and_tells_no_tracebacks_of_it(app, client):
    with pytest.raises(AppError):
        speak(client, script="")
    assert speak(client)[1]["audio_seconds"] > 0
    assert "InputError" not in app.log.read_text()


def test_the_voices_endpoint_lists_what_ships(client):
    listed = client.predict(api_name="/voices")
    assert [voice["name"] for voice in listed] == list(shipped_voices())
    assert all(voice["transcript"] and voice["licence"] and voice["origin"] for voice in listed)


def test_only_the_named_functions_are_for_clients(client):
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {
        "/generate", "/voices", "/check_watermark", "/transcribe", "/check_prompt",
    }  # fmt: skip


def test_the_first_two_names_have_voices_a_and_b_and_others_a_voice_that_is_free():
    voices = cast(parse_script("Anna: Hi.\nBen: Hi.\nCleo: Hi.\nAnna: Bye."), BOTH)
    assert (voices["Anna"].name, voices["Ben"].name) == ("slt", "rms")
    assert voices["Cleo"].name not in ("slt", "rms")


def test_a_speaker_called_b_has_voice_b_wherever_it_first_speaks():
    assert cast(parse_script("B: Hi."), BOTH)["B"].name == "rms"
    voices = cast(parse_script("B: Hi.\nAnna: Hi."), BOTH)
    assert (voices["B"].name, voices["Anna"].name) == ("rms", "slt")


def test_a_voice_that_nobody_uses_is_not_asked_for():
    assert set(cast(parse_script("A: Hi."), {**BOTH, "B": Choice(None, own=True)})) == {"A"}


def test_more_speakers_than_voices_are_refused_by_name():
    names = "ABCDEFGH"[: len(shipped_voices()) + 1]
    if len(names) <= len(shipped_voices()):
        pytest.skip("there are voices for all speakers that a script may have")
    with pytest.raises(InputError, match=f"“{names[-1]}” has no voice"):
        cast(parse_script("\n".join(f"{name}: Hi." for name in names)), BOTH)


def test_bad_input_knows_where_it_was_given():
    with pytest.raises(MisplacedError) as caught:
        cast(parse_script("A: Hi.\nB: Hi."), {**BOTH, "B": Choice(None, own=True)})
    assert caught.value.place == "B"
    with pytest.raises(MisplacedError) as caught:
        read_settings({"temperature": float("nan")})
    assert caught.value.place == "settings"


def test_the_default_voices_are_a_womans_and_a_mans_and_the_example_has_both():
    woman, man = (shipped_voices()[name] for name in default_voices())
    assert "woman" in woman.description and "woman" not in man.description
    assert [line.speaker for line in parse_script(EXAMPLE_SCRIPT)] == ["A", "B", "A", "B"]


def test_the_accelerator_is_asked_for_as_long_as_the_script_needs():
    def lease(script: str) -> int:
        return Job(Session(parse_script(script), {})).lease_seconds

    assert lease("A: Hi.") < lease(EXAMPLE_SCRIPT) < lease(EXAMPLE_SCRIPT * 4) <= LONGEST_LEASE
    assert lease("\n".join(["A: Hi."] * 1_000)) == LONGEST_LEASE
