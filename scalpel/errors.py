"""The exceptions whose messages are meant for the person who runs Scalpel."""

AGAIN = 75  # exit status of a stage that stopped early and resumes when started again (EX_TEMPFAIL)


class UserError(Exception):
    """Something the user can fix: one sentence that names the file, field or step and what to do.

    Stage programs print it as ``error: ...`` and exit with status 2 (scalpel/artifact.py, run_stage).
    """


class Interrupted(Exception):
    """A stage saved where it is and stopped, asked to or short of its time limit; exit status AGAIN."""

    def __init__(self, sentence: str, requeue: bool):
        super().__init__(sentence)
        self.requeue = requeue  # stopped of itself: the job should be queued again
