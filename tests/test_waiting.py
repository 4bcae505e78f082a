"""The queue for the model: as many at a time as it has slots, first come, first served, bounded, honest."""

import heapq
import math
import random
import threading
import time

import pytest

from csm.conversation import waiting
from csm.conversation.waiting import Queue, QueueFull


def served(*places) -> list[bool]:
    return [place.served for place in places]


def test_the_first_is_served_at_once_and_the_others_in_the_order_in_which_they_came():
    queue = Queue()
    first, second, third = (queue.join(2.0) for _ in range(3))
    assert served(first, second, third) == [True, False, False]
    assert [place.ahead for place in (first, second, third)] == [0, 1, 2]
    first.leave()
    assert served(second, third) == [True, False]
    second.leave()
    assert third.served


def test_who_gives_up_does_not_hold_up_the_others():
    queue = Queue()
    first, second, third = (queue.join(2.0) for _ in range(3))
    second.leave()
    second.leave()
    assert third.ahead == 1
    first.leave()
    assert third.served


def test_a_full_queue_refuses_and_says_when_to_come_again(monkeypatch):
    monkeypatch.setattr("csm.conversation.waiting.time.monotonic", lambda: 0.0)
    queue = Queue(longest=2)
    places = [queue.join(10.0), queue.join(10.0)]
    with pytest.raises(QueueFull, match="try again in 20 seconds") as caught:
        queue.join(1.0)
    assert caught.value.seconds == pytest.approx(20) and caught.value.code == "queue_full"
    places[0].leave()
    queue.join(1.0)


def test_the_expected_wait_follows_the_pace_of_the_last_jobs():
    queue = Queue()
    for _ in range(30):
        queue.join(1_000.0).leave()  # done at once
    waiting = (queue.join(100.0), queue.join(1.0))[1]
    assert waiting.expected_wait < 1


def test_with_several_slots_as_many_are_served_and_the_next_waits_for_one_of_them():
    queue = Queue(slots=3)
    places = [queue.join(seconds) for seconds in (9.0, 3.0, 6.0, 4.0, 1.0)]
    assert served(*places) == [True, True, True, False, False]
    assert [place.ahead for place in places] == [0, 0, 0, 1, 2]
    fourth, fifth = places[3:]
    assert fourth.expected_wait == pytest.approx(3, abs=0.1), "the shortest of those who speak ends first"
    assert fifth.expected_wait == pytest.approx(6, abs=0.1)
    assert queue.waiting() == (3, pytest.approx(7, abs=0.1))
    places[0].leave()
    assert served(fourth, fifth) == [True, False]


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_what_is_told_is_what_happens(slots, monkeypatch):
    """Clients in simulated time, more than there are places: each is told in how many seconds its turn comes, how many
    must be done before, and, refused, when to come again; and so it is."""
    now, chance = 0.0, random.Random(slots)
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now)
    queue, ends, told = Queue(slots, longest=6), [], {}
    for number in range(12):
        seconds = chance.uniform(1, 20)
        try:
            place = queue.join(seconds)
        except QueueFull as full:
            assert number == 5 + slots
            again = full.seconds
            break
        told[place] = (seconds, place.ahead, place.expected_wait)
        if place.served:
            heapq.heappush(ends, (now + seconds, number, place))
    done, waits = 0, [place for place in told if not place.served]
    queue._serve = lambda serve=queue._serve: serve()
    while ends:
        now, _, place = heapq.heappop(ends)
        queue.remove(place)
        queue.pace, done = 1.0, done + 1
        for next_place in [one for one in waits if one.served]:
            waits.remove(next_place)
            seconds, ahead, wait = told[next_place]
            assert (ahead, wait) == (done, pytest.approx(now))
            heapq.heappush(ends, (now + seconds, id(next_place), next_place))
        if len(queue._places) < slots:
            assert now >= again - 1e-9, "whoever comes when told is served at once"
            break


def test_many_threads_are_never_served_more_at_once_than_there_are_slots():
    queue, serving, most = Queue(slots=2), [], []

    def work():
        with queue.join(0.01) as place:
            assert place.first.wait(30)
            serving.append(1)
            most.append(len(serving))
            time.sleep(0.002)
            serving.pop()

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 12 and max(most) <= 2


@pytest.mark.parametrize("slots", [1, 4])
def test_of_those_who_come_again_when_they_were_told_to_nine_in_ten_get_in(slots, monkeypatch):
    """An hour in simulated time, in which three times as many ask again and again as there are places. Jobs take from a
    third less to a third more than they should; whoever is sent away waits for the whole seconds that were said, and up
    to one more."""
    now, chance = 0.0, random.Random(slots)
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now)
    queue = Queue(slots)
    comes = [(chance.uniform(0, 20), number, False) for number in range(3 * queue.longest)]
    heapq.heapify(comes)
    ends, waits, again, got_in, at_once = [], {}, 0, 0, 0
    while now < 3_600:
        if ends and ends[0][0] <= comes[0][0] if comes else True:
            now, number, place = heapq.heappop(ends)
            queue.remove(place)
            heapq.heappush(comes, (now + chance.uniform(0, 20), number, False))
        else:
            now, number, told = heapq.heappop(comes)
            seconds, again = chance.uniform(5, 15), again + told
            try:
                waits[queue.join(seconds, f"client {number}")] = number, seconds * chance.uniform(2 / 3, 4 / 3)
                got_in, at_once = got_in + told, at_once + (not told)
            except QueueFull as full:
                heapq.heappush(comes, (now + math.ceil(full.seconds) + chance.random(), number, True))
        for place in [one for one in waits if one.served]:
            number, seconds = waits.pop(place)
            heapq.heappush(ends, (now + seconds, number, place))
    assert again > 100 and got_in >= 0.9 * again, f"{got_in} of {again}, and {at_once} at their first attempt"
