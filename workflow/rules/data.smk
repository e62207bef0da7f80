# Rows and questions: where they come from, which are kept, in which order they are asked.


rule fetch:
    input:
        lambda w: plan.inputs(w.digest),
    output:
        "results/fetch/{name}-{digest}/manifest.json",
    log:
        "results/logs/fetch/{name}-{digest}.log",
    localrule: True  # compute nodes may have no network
    threads: threads("fetch")
    resources:
        **resources("fetch"),
    shell:
        command("fetch")


rule toy:
    input:
        lambda w: plan.inputs(w.digest),
    output:
        "results/toy/{name}-{digest}/manifest.json",
    log:
        "results/logs/toy/{name}-{digest}.log",
    threads: threads("toy")
    resources:
        **resources("toy"),
    shell:
        command("toy")


rule evaluation_data:
    input:
        lambda w: plan.inputs(w.digest),
    output:
        "results/evaluation_data/{name}-{digest}/manifest.json",
    log:
        "results/logs/evaluation_data/{name}-{digest}.log",
    threads: threads("evaluation_data")
    resources:
        **resources("evaluation_data"),
    shell:
        command("evaluation_data")


rule data:
    input:
        lambda w: plan.inputs(w.digest),
    output:
        "results/data/{name}-{digest}/manifest.json",
    log:
        "results/logs/data/{name}-{digest}.log",
    threads: threads("data")
    resources:
        **resources("data"),
    shell:
        command("data")


rule order:
    input:
        lambda w: plan.inputs(w.digest),
    output:
        "results/order/{name}-{digest}/manifest.json",
    log:
        "results/logs/order/{name}-{digest}.log",
    threads: threads("order")
    resources:
        **resources("order"),
    shell:
        command("order")
