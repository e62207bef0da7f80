"""One rank of a training run or an audit, started by the launcher (scalpel/launch/supervise.py)."""

import atexit
import os
import sys
from pathlib import Path

from scalpel.launch.crew import compile_on_this_host, prepare_child


def leave() -> None:
    """End now: threads of communication that the interpreter's own end destroys abort a process now and then."""
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    prepare_child()
    compile_on_this_host()
    from scalpel.artifact.disk import disk_errors
    from scalpel.artifact.job import open_job
    from scalpel.artifact.stage import quiet_libraries
    from scalpel.config.training import TrainSettings
    from scalpel.errors import AGAIN, Interrupted, UserError, status_of

    quiet_libraries()
    try:
        directory = Path(sys.argv[1])
        with disk_errors(directory):
            job = open_job(directory)
            job.settings.pop("gpus", None)
            settings = TrainSettings.model_validate(job.settings)
            if job.stage == "audit":
                from scalpel.audit.probes import audit

                audit(settings, job.recipe["fingerprint"], job.inputs["base"] / "model", job.directory)
            else:
                from scalpel.methods.run import train_job

                train_job(job, settings)
    except Interrupted as pause:
        print(pause, file=sys.stderr)
        sys.exit(AGAIN)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(status_of(error))
    leave()
