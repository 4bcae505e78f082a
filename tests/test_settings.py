"""One object says how to speak, and every way in is read from it."""

import re
from dataclasses import replace

import pytest

from csm.cli import main
from csm.config import PRESETS
from csm.errors import InputError
from csm.settings import ABOUT, USUAL, Settings
from csm.speech.generator import one_by_one
from csm.web.endpoints import GENERATE
from csm.web.ui import settings_fields
from csm.web.v1.orders import read_order
from tests.small import small_generator

NANO = PRESETS["nano"]


def test_the_command_line_has_every_setting_and_says_its_bounds_when_they_are_broken(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for name, about in ABOUT.items():
        assert f"--{name.replace('_', '-')} N" in told and about.help in told
    script = tmp_path / "script.txt"
    script.write_text("A: Hi.")
    asked = ["generate", "--script", str(script), "--voice", "A=slt", "--out", str(tmp_path / "out.wav")]
    assert main([*asked, "--min-p", "1.5"]) == 2
    assert capsys.readouterr().err == "Min-p can't be 1.5; choose a number from 0 to 1.\n"


def test_the_page_has_a_field_for_every_setting_with_the_model_s_own_to_begin_with():
    shown = settings_fields(NANO)
    values = dict(re.findall(r'name="(\w+)".*? value="([^"]+)"', shown))
    assert list(values) == list(ABOUT)
    assert (values["temperature"], values["topk"], values["min_p"]) == ("0.25", "50", "0")
    assert 'name="takes" min="1" max="16" step="1"' in shown and 'name="seed" min="-1"' in shown


def test_generate_of_the_api_takes_every_setting_and_its_first_parameters_stand_where_they_stood():
    assert set(ABOUT) <= set(GENERATE)
    assert list(GENERATE)[:12] == [
        "script", "voice_a", "voice_b", "seed", "temperature", "topk", "max_turn_seconds",
        "prompt_a", "transcript_a", "prompt_b", "transcript_b", "takes",
    ]  # fmt: skip


def test_v1_takes_what_has_a_name_in_its_manner():
    body = {"voice": "slt", "input": "Hi.", "seed": 3, "temperature": 0.5, "top_k": 9, "min_p": 0.1, "speed": 2}
    order = read_order(body, small_generator())
    assert order.settings == Settings(seed=3, temperature=0.5, topk=9, min_p=0.1, speed=2)


def test_what_is_left_to_the_model_is_filled_in_from_its_config():
    assert (USUAL.filled(NANO).temperature, USUAL.filled(NANO).topk) == (0.25, 50)
    assert Settings(temperature=0.7).filled(NANO).temperature == 0.7


def test_what_was_drawn_with_the_same_settings_says_so_in_the_words_that_projects_keep():
    assert USUAL.drawing == "temperature the model's, top-k the model's"
    assert Settings(temperature=0.3, topk=40).drawing == "temperature 0.3, top-k 40"
    assert replace(USUAL, min_p=0.1).drawing == "temperature the model's, top-k the model's, min-p 0.1"


def test_the_original_s_way_of_asking_knows_no_longest_turn():
    assert one_by_one(3_600_000, None, None).max_turn_seconds == 600
    with pytest.raises(InputError, match="at least 80 milliseconds"):
        one_by_one(10, None, None)


@pytest.mark.parametrize("given", [{"seed": "7", "topk": 3.0, "takes": None, "aloud": True}])
def test_numbers_may_come_as_a_page_or_a_client_sends_them(given):
    assert Settings.read(given) == Settings(seed=7, topk=3)


@pytest.mark.parametrize("given", [{"seed": "x"}, {"topk": 3.5}, {"takes": True}, {"temperature": "nan"}])
def test_what_is_no_number_of_its_kind_is_refused_in_one_sentence(given):
    with pytest.raises(InputError, match=r"^.*; choose a (whole )?number .*\.$"):
        Settings.read(given)


def test_a_schema_says_the_same_bounds():
    assert ABOUT["temperature"].schema == {
        "type": "number", "description": ABOUT["temperature"].help, "exclusiveMinimum": 0, "maximum": 10,
    }  # fmt: skip
    assert ABOUT["topk"].schema["type"] == "integer" and "maximum" not in ABOUT["topk"].schema
