"""A file is there whole or not at all."""

import pytest

from csm import InputError
from csm.files import output, whole


def test_a_file_takes_its_place_when_it_is_written(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with whole(tmp_path / "a.txt") as part:
        part.write_text("new")
        assert (tmp_path / "a.txt").read_text() == "old"
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "new")]


def test_what_breaks_off_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt), whole(tmp_path / "a.txt") as part:
        part.write_text("ne")
        raise KeyboardInterrupt
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"can't be written; choose another place"):
        with output(tmp_path / "no" / "a") as part:
            part.write_text("new")
