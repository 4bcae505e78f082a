"""The command line: the contract, exit statuses, one sentence for what can't be used."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from csm.cli import main
from csm.speech.voices import shipped_voices, voices_for

VOICES = ["--voice", "A=slt", "--voice", "B=rms"]


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.txt"
    path.write_text("A: Hi.\nB: Hello there.\n")
    return str(path)


def test_generate_writes_a_conversation_and_its_report(script, tmp_path, capsys):
    out, report = tmp_path / "conversation.wav", tmp_path / "report.json"
    assert main(["generate", "--script", script, *VOICES, "--out", str(out), "--seed", "7", "--json", str(report)]) == 0
    wave, rate = soundfile.read(out)
    written = json.loads(report.read_text())
    assert rate == 24_000 == written["sample_rate"]
    assert len(wave) / rate == pytest.approx(written["audio_seconds"], abs=0.01)
    assert abs(wave).max() > 0.02
    assert written["model"] == "nano" and written["seed"] == 7
    assert [(turn["speaker"], turn["text"]) for turn in written["turns"]] == [("A", "Hi."), ("B", "Hello there.")]
    assert {turn["state"] for turn in written["turns"]} <= {"ended", "capped"}
    assert main(["watermark", "check", str(out)]) == 0
    assert capsys.readouterr().out.startswith("yes (confidence ")


def test_a_script_comes_from_standard_input_and_the_same_seed_gives_the_same_file(tmp_path, monkeypatch, capsys):
    """In a process of its own as in one that has done other things before."""
    files = [tmp_path / name for name in ("one.wav", "two.wav")]
    command = ["generate", "--script", "-", *VOICES, "--out"]
    alone = [sys.executable, "-m", "csm", *command, str(files[0])]
    done = subprocess.run(alone, input="Hi.\nHello.\n", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hi.\nHello.\n")))
    assert main([*command, str(files[1])]) == 0
    for told in (done.stderr, capsys.readouterr().err):
        assert "1/2 A: Hi." in told and "2/2 B: Hello." in told
    assert files[0].read_bytes() == files[1].read_bytes()


def test_speakers_without_a_voice_are_given_shipped_ones_and_told_so_in_one_line(script, tmp_path, capsys):
    out = tmp_path / "out.wav"
    first, second = list(shipped_voices())[:2]
    assert main(["generate", "--script", script, "--voice", f"B={first}", "--out", str(out)]) == 0
    assert out.is_file()
    told = [line for line in capsys.readouterr().err.splitlines() if "--voice" in line]
    assert told == [f"With the shipped voices A={second}; --voice chooses others."]


def test_voices_are_given_in_their_order_and_again_when_all_are_taken():
    names, speakers = list(shipped_voices()), [f"S{number}" for number in range(8)]
    given = [voice.name for voice in voices_for(speakers, {}).values()]
    assert given == [*names, *names][:8]
    assert voices_for(["A", "B"], {"B": shipped_voices()[names[0]]})["A"].name == names[1]


def test_say_writes_one_line_as_the_same_seed_does_and_plays_it_only_to_a_terminal(tmp_path, capsys, monkeypatch):
    played: list[str] = []
    monkeypatch.setattr("csm.audio.play_audio", lambda path: bool(played.append(path)) or True)
    files = [str(tmp_path / name) for name in ("one.wav", "two.wav")]
    for file, terminal in zip(files, (False, True)):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal, raising=False)
        assert main(["say", "A: Good", "morning.", "--voice", "bdl", "--seed", "3", "--out", file]) == 0
        assert "1/1 A: A: Good morning." in capsys.readouterr().err
    assert Path(files[0]).read_bytes() == Path(files[1]).read_bytes()
    assert played == [files[1]]
    assert main(["say", "...", "--out", str(tmp_path / "three.wav")]) == 2
    assert "nothing to say" in capsys.readouterr().err


def test_a_command_whose_extra_is_missing_names_the_install_that_brings_it(monkeypatch, capsys):
    monkeypatch.setattr("csm.extras.find_spec", lambda name: None)
    assert main(["serve"]) == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert sentence == "The app needs gradio and spaces: run `pip install 'csm-conversations[web]'`."


def test_voices_prints_one_voice_a_line_its_name_first(capsys):
    assert main(["voices"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped_voices())
    assert len(lines) >= 4


def test_an_unmarked_file_is_a_no(capsys):
    assert main(["watermark", "check", str(next(iter(shipped_voices().values())).path)]) == 0
    assert capsys.readouterr().out.startswith("no (confidence ")


def test_info_prints_the_published_size(capsys):
    assert main(["info", "tiny"]) == 0
    assert "1,552,791,552" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        "",
        "generate",
        "say",
        "serve",
        "train",
        "train lm",
        "evaluate",
        "bench",
        "watermark",
        "voices",
        "info",
        "convert",
    ],
)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert stopped.value.code == 0
    assert "usage: csm" in capsys.readouterr().out


@pytest.mark.parametrize("command", [[], ["sing"], ["generate"], ["generate", "--seed", "x"], ["watermark", "check"]])
def test_an_incomplete_command_gets_one_sentence_and_status_2(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert sentence.endswith("--help.")


def wav(folder: Path, name: str, wave: np.ndarray, rate: int = 24_000) -> str:
    soundfile.write(folder / name, wave, rate)
    return str(folder / name)


def noise(seconds: float) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal(int(24_000 * seconds))


def bad_inputs(folder: Path) -> dict[str, tuple[list[str], str]]:
    """What can go wrong, with the words that the sentence must contain."""
    (folder / "empty.txt").write_text(" \n\n")
    (folder / "text.wav").write_text("This is no sound.")
    (folder / "data.txt").write_bytes(b"A: caf\xe9\0\1")
    for name in ("silent", "short", "long", "bare"):
        (folder / f"{name}.txt").write_text("Some words.")
    silent, short, long = (
        wav(folder, "silent.wav", np.zeros(48_000)),
        wav(folder, "short.wav", noise(0.2)),
        wav(folder, "long.wav", noise(200)),
    )
    (folder / "untold").mkdir()
    untold = wav(folder / "untold", "voice.wav", noise(3))
    script, out = str(folder / "script.txt"), str(folder / "out.wav")

    def generate(script=script, a="slt", b="rms", out=out, more=()):
        return ["generate", "--script", script, "--voice", f"A={a}", "--voice", f"B={b}", "--out", out, *more]

    return {
        "an empty script": (generate(script=str(folder / "empty.txt")), "script"),
        "a script that is not there": (generate(script=str(folder / "nowhere.txt")), "script"),
        "a script that is not text": (generate(script=str(folder / "data.txt")), "plain text"),
        "an unknown voice": (generate(a="nobody"), "slt"),
        "a silent prompt": (generate(a=silent), "silent"),
        "a short prompt": (generate(a=short), "short"),
        "a long prompt": (generate(a=long), "30"),
        "a prompt that is not audio": (generate(a=str(folder / "text.wav"), more=["--transcript", "A=Hi."]), "audio"),
        "a prompt without a transcript": (generate(a=untold), "transcript"),
        "an unknown sound format": (generate(out=str(folder / "out.xyz")), "xyz"),
        "a folder that is not there": (generate(out=str(folder / "nowhere" / "out.wav")), "folder"),
        "an unknown model": (generate(more=["--model", "nonsense"]), "nonsense"),
        "an unknown device": (generate(more=["--device", "quantum"]), "quantum"),
        "an impossible temperature": (generate(more=["--temperature", "0"]), "temperature"),
        "a voice without a name": (generate(more=["--voice", "slt"]), "--voice"),
        "a watermark check of nothing": (["watermark", "check", str(folder / "nowhere.wav")], "nowhere.wav"),
    }


NAMES = sorted(
    "an empty script,a script that is not there,a script that is not text,an unknown voice,"
    "a silent prompt,a short prompt,a long prompt,a prompt that is not audio,a prompt without a transcript,"
    "an unknown sound format,a folder that is not there,an unknown model,an unknown device,an impossible temperature,"
    "a voice without a name,a watermark check of nothing".split(",")
)


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_gets_one_sentence_status_2_and_no_file(name, script, tmp_path, capsys):
    command, words = bad_inputs(tmp_path)[name]
    before = set(tmp_path.rglob("*"))
    assert main(command) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1
    assert words in printed.err and "Traceback" not in printed.err
    assert set(tmp_path.rglob("*")) == before


def test_every_bad_input_is_tried(tmp_path, script):
    assert sorted(bad_inputs(tmp_path)) == NAMES
