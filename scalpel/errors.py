"""The one exception whose message is meant for the person who runs Scalpel."""


class UserError(Exception):
    """Something the user can mend: one sentence that names the file, field or step and what to do.

    Stage programs print it as ``error: ...`` and exit with status 2 (scalpel/artifact.py, run_stage).
    """
