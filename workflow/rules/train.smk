# One run of one method: 20 checkpoints and its logs. Interrupted, it goes on where it was.


rule train:
    input:
        lambda w: plan.inputs(w.digest),
    output:
        "results/train/{name}-{digest}/manifest.json",
    log:
        "results/logs/train/{name}-{digest}.log",
    threads: threads("train")
    resources:
        **resources("train"),
    shell:
        command("train")
