"""The rollout servers of a training job: started, told the run's token, and started again when they die."""

from __future__ import annotations

import re
import socket
from contextlib import suppress

from scalpel.inference.meeting import LISTENS, SERVERS, Meeting, ServerOrder
from scalpel.launch import slurm
from scalpel.launch.crew import DEVICES, Crew


class RolloutServers:
    """One process each. Leaving the `with` takes their addresses away; the crew ends them."""

    def __init__(self, crew: Crew, order: ServerOrder, places: list[tuple[str | None, list[str] | None]]):
        """places: of each server the node (None: this one) and the GPUs it may use (None: there are none)."""
        self.crew, self.order, self.places = crew, order, places
        self.meeting = Meeting.create(len(places))
        self.sockets: list[socket.socket | None] = []

    def __enter__(self) -> RolloutServers:
        self.sockets = [self.meeting.listen(n) if node is None else None for n, (node, _) in enumerate(self.places)]
        for number in range(len(self.places)):
            self.start(number)
        return self

    def __exit__(self, *_: object) -> None:
        for listening in self.sockets:
            if listening is not None:
                listening.close()
        self.meeting.remove()

    @property
    def environment(self) -> dict[str, str]:
        """By which ranks find them."""
        return {SERVERS: str(self.meeting.directory)}

    def name(self, number: int) -> str:
        return f"server {number}" if len(self.places) > 1 else "server"

    def start(self, number: int) -> None:
        """Start server `number`, for the first time or again."""
        (node, gpus), listening = self.places[number], self.sockets[number]
        self.meeting.forget(number)
        host = slurm.address(node) if node else ""
        where = f"fd:{listening.fileno()}" if listening is not None else host

        def heard(line: str) -> None:
            if found := re.fullmatch(rf"{LISTENS} ([0-9]{{1,5}})", line):
                with suppress(OSError):  # the run is over and its directory gone
                    self.meeting.tell(number, host, int(found[1]))

        self.crew.start(
            self.name(number),
            "scalpel.inference.server",
            [self.order.model_dump_json(), where],
            {} if gpus is None else {DEVICES: ",".join(gpus)},
            node,
            secret=self.meeting.token,
            descriptors=() if listening is None else (listening.fileno(),),
            heard=heard if node else None,
        )

    def ended(self) -> list[int]:
        """Numbers of the servers that do not run."""
        return [n for n in range(len(self.places)) if self.crew.status(self.name(n)) is not None]
