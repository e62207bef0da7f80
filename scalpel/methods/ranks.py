"""The processes that share a training run."""

from __future__ import annotations

import os
from typing import Any, NamedTuple


class Ranks(NamedTuple):
    """This process among the run's ranks."""

    rank: int = 0
    count: int = 1  # type: ignore[assignment]  # hides tuple.count

    @classmethod
    def here(cls) -> Ranks:
        """As the launcher's environment says; one rank without it."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes what all of them make."""
        return self.rank == 0

    def everyone(self, items: list) -> list:
        """The ranks' lists joined in their order."""
        if self.count == 1:
            return items
        from accelerate.utils import gather_object

        return gather_object(items)

    def from_first(self, value: Any) -> Any:
        """What rank 0 holds."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def share(self, items: list) -> list:
        """This rank's part of a list, in one piece; the parts of all ranks joined are the list."""
        size = -(-len(items) // self.count)
        return items[self.rank * size : (self.rank + 1) * size]
