# What all rules share: the command line of a program, and the resources the scale gives a stage.
import functools
import shlex

from scalpel.launch.attempts import asked
from scalpel.launch.retries import keep_status
from scalpel.launch.slurm import partitions

partitions_once = functools.cache(partitions)


def command(rule, program=None, argument=None, label="{wildcards.name}"):
    """Run scripts/<program>.py on one result, logged to a file and shown line by line under the job's name.

    program: by default of the same name as the job's stage. All are texts that Snakemake fills in.
    """
    argument = argument or f"results/{rule}/{{wildcards.name}}-{{wildcards.digest}}"
    here, python = (
        shlex.quote(str(text)).replace("{", "{{").replace("}", "}}") for text in (workflow.basedir, sys.executable)
    )
    program_to_log = (
        # SLURM sends SIGTERM to all processes of a job. The shell and what keeps the lines outlive it, as a run saves
        # then; the program itself is not to inherit that.
        f"trap : TERM; PYTHONPATH={here} OMP_NUM_THREADS={{threads}} {python} -m scripts.{program or rule} {argument}"
        f" 2>&1 | (trap '' TERM; tee -a {{log:q}} | sed -u 's/^/[{rule} {label}] /')"
    )
    return keep_status(program_to_log, "{log:q}")


def resources(stage):
    """A stage's resources, of each node; a job that is tried again asks for more, within bounds."""
    given, nodes = plan.resources_of_stage(stage), plan.nodes_of_stage(stage)

    def growing(name):
        # SLURM is asked for its partitions when a job is tried again, not before.
        return lambda wildcards, attempt: getattr(
            asked(given, stage, attempt, site, partitions_once() if attempt > 1 else {}), name
        )

    wanted = dict(
        mem_mb=growing("mem_mb"),
        runtime=growing("runtime"),
        slurm_account=site.account,
        slurm_partition=site.gpu_partition if given.gpus else site.partition,
        qos=site.qos,
        nodes=1 if given.gpus or nodes > 1 else None,
        span_nodes=nodes if nodes > 1 else None,
        gpu=given.gpus or None,
        gpu_model=site.gpu_model if given.gpus else None,
        constraint=site.constraint if given.gpus else None,
    )
    return {name: value for name, value in wanted.items() if value is not None}


def threads(stage):
    return plan.resources_of_stage(stage).threads


# What is shown keeps stable names, so its name does not say whether it is current: the .json beside it does, which is
# written last. Snakemake itself would go by clocks, or by notes of its own that a copy of results/ does not have.


def drawn(w, current):
    """The files an exhibit is made of if it is `current`, or if it is not; then it is drawn, too."""
    drawing = plan.drawings[w.study, w.get("exhibit", REPORT)]
    if plan.is_current(drawing) != current:
        return []
    if not current:
        workflow.dag.forcefiles.update(drawing.outputs)
    return drawing.inputs


def caption(w):
    """What the study says of an exhibit, for `snakemake --report`."""
    if "exhibit" not in w.keys():
        return f"The report of study {w.study}: all figures, published numbers, and which claims appear."
    options = plan.drawings[w.study, w.exhibit].recipe["options"]
    return " ".join(f"{options['number'] or ''}. {options['caption'] or options['title'] or w.exhibit}".split()).lstrip(
        ". "
    )


def in_report(files):
    """Files of an exhibit as `snakemake --report` shows them."""
    labels = {"exhibit": "{exhibit}"} if "{exhibit}" in files else {"page": "report"}
    return report(files, caption="../report/exhibit.rst", category="{study}", labels=labels)


def recipe(w):
    return plan.drawings[w.study, w.get("exhibit", REPORT)].recipe_path
