# A share of one run's checkpoints, on all tasks, in one process.


rule evaluate:
    input:
        lambda w: plan.inputs(w.digest),
    output:
        "results/evaluate/{name}-{digest}/manifest.json",
    log:
        "results/logs/evaluate/{name}-{digest}.log",
    threads: threads("evaluate")
    resources:
        **resources("evaluate"),
    shell:
        command("evaluate")
