"""A bounded memory of what is costly to make again, such as the codes of a voice: beside the way from script to sound,
owned by the generator and shared by all its conversations."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Values by the hash of what they are made from; those that were used longest ago leave first. For any thread.

    At most `most` values of together at most `most_bytes` stay; one that is larger than that is not kept at all.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self.most, self.most_bytes = most, most_bytes
        self.bytes = 0
        self._values: OrderedDict[str, tuple[T, int]] = OrderedDict()
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock:
            self._values.clear()
            self.bytes = 0

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> T | None:
        """What is known by that name, used just now; None when it is not (or no longer) known."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: str, value: T, size: int) -> None:
        """Remember `value`, which takes `size` bytes. Values are shared: nobody may change one."""
        with self._lock:
            if key in self._values:
                self.bytes -= self._values.pop(key)[1]
            if size > self.most_bytes:
                return
            self._values[key] = (value, size)
            self.bytes += size
            while len(self._values) > self.most or self.bytes > self.most_bytes:
                self.bytes -= self._values.popitem(last=False)[1][1]
