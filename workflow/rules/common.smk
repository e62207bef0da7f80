# What every rule shares: the command line of a stage program, and the resources the scale gives a stage.


def command(program, argument="results/{rule}/{wildcards.name}-{wildcards.digest}"):
    """Run scripts/<program>.py on one result, logged to a file and shown line by line under the job's name."""
    return (
        f"PYTHONPATH={workflow.basedir} OMP_NUM_THREADS={{threads}} {sys.executable} -m scripts.{program} {argument}"
        " 2>&1 | tee {log} | sed -u 's/^/[{rule} {wildcards[0]}] /'"
    )


def resources(stage):
    given = plan.resources_of_stage(stage)
    return dict(
        mem_mb=given.mem_mb,
        runtime=given.runtime,
        **({"gpu": given.gpus, "nodes": 1} if given.gpus else {}),
    )


def threads(stage):
    return plan.resources_of_stage(stage).threads
