"""Who is there in a cluster, and which of them a request goes to."""

from dataclasses import replace

import pytest

from csm.web.cluster.roster import (
    FAILED,
    LEAVING,
    READY,
    SILENT_SECONDS,
    Asked,
    Balance,
    Figures,
    Roster,
    Standing,
)
from csm.web.cluster.scaling import wanted_replicas


def standing(id: str, **changes) -> Standing:
    return replace(Standing(id, f"http://{id}", READY, speaks="csm 1", slots=4, beat=1), **changes)


# Who is there


def test_a_replica_that_says_nothing_is_taken_for_dead():
    now = [0.0]
    roster = Roster(lambda: now[0])
    roster.tell(standing("a"))
    now[0] = SILENT_SECONDS - 0.1
    roster.tell(standing("b"))
    assert [one.id for one in roster.standings()] == ["a", "b"]
    now[0] = SILENT_SECONDS + 0.1
    assert [one.id for one in roster.standings()] == ["b"]


def test_why_one_failed_is_known_longer():
    now = [0.0]
    roster = Roster(lambda: now[0])
    roster.tell(standing("a", state=FAILED, trouble="There are no weights."))
    now[0] = 60.0
    assert [one.trouble for one in roster.standings()] == ["There are no weights."]


def test_what_fails_again_and_again_is_told_once():
    now = [0.0]
    roster = Roster(lambda: now[0])
    roster.tell(standing("other", state=FAILED, trouble="It could not start."))
    for attempt in range(5):
        roster.tell(standing(f"attempt {attempt}", state=FAILED, trouble="There are no weights."))
        now[0] += 30.0
    assert [one.id for one in roster.standings()] == ["other", "attempt 4"]
    for id in "ab":
        roster.tell(standing(id, state=FAILED, trouble="There are no weights."))
    assert [one.id for one in roster.standings()] == ["other", "a", "b"], "both are there"


def test_a_replica_that_runs_something_else_is_named_and_left_out():
    roster = Roster()
    for one in (standing("a"), standing("b"), standing("c", speaks="csm 2")):
        roster.tell(one)
    *same, other = roster.standings()
    assert all(one.state == READY for one in same)
    assert other.state == FAILED and "csm 2" in other.trouble and "csm 1" in other.trouble


def test_a_new_generation_may_run_something_else_beside_the_old_one():
    roster = Roster()
    for one in (standing("a", generation=1.0), standing("b", generation=2.0, speaks="csm 2")):
        roster.tell(one)
    assert all(one.state == READY for one in roster.standings())


# Which of them


def balance(*standings: Standing) -> Balance:
    made = Balance()
    made.learn(standings)
    return made


SPEECH, PAGE = Asked("/v1/audio/speech"), Asked("/csm/view", who="somebody")


def test_speech_goes_where_most_slots_are_free():
    made = balance(standing("a", speaking=3), standing("b", speaking=1), standing("c", speaking=1, slots=1))
    assert made.choose(SPEECH).id == "b"
    with made.sent("b", SPEECH), made.sent("b", SPEECH), made.sent("b", SPEECH), made.sent("b", SPEECH):
        assert made.choose(SPEECH).id == "a"  # though b has not said yet that it is full


def test_among_equals_requests_take_turns():
    made = balance(standing("a"), standing("b"), standing("c"))
    assert sorted(made.choose(SPEECH).id for _ in range(6)) == ["a", "a", "b", "b", "c", "c"]


def test_a_page_stays_where_its_cookie_says_and_a_program_without_one_where_it_was():
    made = balance(*(standing(id) for id in "abcdef"))
    assert {made.choose(replace(PAGE, cookie="d")).id for _ in range(9)} == {"d"}
    assert len({made.choose(PAGE).id for _ in range(9)}) == 1
    assert len({made.choose(replace(PAGE, who=str(n))).id for n in range(60)}) == 6
    own = made.choose(PAGE).id
    made.learn(one for one in made.standings() if one.id != ("a" if own != "a" else "b"))
    assert made.choose(PAGE).id == own  # another's end moves nobody else


def test_who_leaves_keeps_its_pages_and_gets_nothing_new():
    made = balance(standing("a", state=LEAVING), standing("b"))
    assert made.choose(replace(PAGE, cookie="a")).id == "a"
    assert {made.choose(one).id for one in (SPEECH, PAGE) for _ in range(5)} == {"b"}


def test_one_that_broke_off_gets_nothing_until_it_says_something_new():
    made = balance(standing("a"))
    made.broke("a")
    assert made.choose(SPEECH) is None
    made.learn([standing("a")])
    assert made.choose(SPEECH) is None
    made.learn([standing("a", beat=2)])
    assert made.choose(SPEECH).id == "a"


def test_one_with_a_full_disk_is_asked_when_no_other_is_there():
    full = standing("a", trouble="The disk is full.")
    assert {balance(full, standing("b", speaking=3)).choose(SPEECH).id for _ in range(3)} == {"b"}
    assert balance(full).choose(SPEECH).id == "a"


def test_one_figure_for_all():
    there = [standing("a", speaking=4, waiting=2), standing("b", speaking=1), standing("c", state=FAILED, speaking=9)]
    assert Figures.of(there) == Figures(8, 5, 2)


@pytest.mark.parametrize(
    "busy, now, wanted", [(0, 3, 1), (5, 1, 1), (6, 1, 2), (30, 1, 4), (11, 4, 2)]
)  # fmt: skip
def test_as_many_replicas_as_fill_seven_of_ten_slots(busy, now, wanted):
    assert wanted_replicas(busy, now, slots=8, fewest=1, most=4) == wanted
