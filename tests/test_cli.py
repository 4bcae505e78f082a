"""The command line: the contract, exit statuses, one sentence for what can't be used."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from csm.cli import main
from csm.voices import shipped_voices

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


def test_a_script_comes_from_standard_input_and_the_same_seed_gives_the_same_file(tmp_path):
    files = [tmp_path / name for name in ("one.wav", "two.wav")]
    for file in files:
        command = [sys.executable, "-m", "csm", "generate", "--script", "-", *VOICES, "--out", str(file)]
        done = subprocess.run(command, input="Hi.\nHello.\n", capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "1/2 A: Hi." in done.stderr and "2/2 B: Hello." in done.stderr
    assert files[0].read_bytes() == files[1].read_bytes()


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
    "command", ["", "generate", "train", "train lm", "evaluate", "bench", "watermark", "voices", "info", "convert"]
)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert stopped.value.code == 0
    assert "usage: python -m csm" in capsys.readouterr().out


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
    (folder / "latin.txt").write_bytes(b"A: caf\xe9")
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
        "a script that is not text": (generate(script=str(folder / "latin.txt")), "UTF-8"),
        "a speaker without a voice": (generate()[:5] + ["--out", out], "Speaker B has no voice: add --voice B=NAME"),
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
    "an empty script,a script that is not there,a script that is not text,a speaker without a voice,an unknown voice,"
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
