"""The exceptions whose messages are meant for the person who runs Scalpel."""

FINAL = 2  # exit status of a program that the user must put right
AGAIN = 75  # exit status of a stage that stopped early and resumes when started again (EX_TEMPFAIL)


class UserError(Exception):
    """Something the user can fix: one sentence that names the file, field or step and what to do.

    Stage programs print it as ``error: ...`` and exit with status FINAL: Snakemake does not try the job again
    (scalpel/launch/retries.py). What it quotes may have several lines; the sentence has one.
    """

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())


class Passing(UserError):
    """What may be gone at the next attempt, on another node or by itself: exit status 1, and the job is tried again."""


class Interrupted(Exception):
    """A stage saved where it is and stopped, asked to or short of its time limit; exit status AGAIN."""

    def __init__(self, sentence: str, requeue: bool):
        super().__init__(sentence)
        self.requeue = requeue  # stopped of itself: the job should be queued again


def status_of(error: UserError) -> int:
    """Exit status of a program that ends with this error."""
    return 1 if isinstance(error, Passing) else FINAL
