# What a run did to the model: its distributions (KL) and its weights.


rule kl:
    input:
        lambda w: plan.inputs(w.digest),
    output:
        "results/kl/{name}-{digest}/manifest.json",
    log:
        "results/logs/kl/{name}-{digest}.log",
    threads: threads("kl")
    resources:
        **resources("kl"),
    shell:
        command("kl")


rule weight_change:
    input:
        lambda w: plan.inputs(w.digest),
    output:
        "results/weight_change/{name}-{digest}/manifest.json",
    log:
        "results/logs/weight_change/{name}-{digest}.log",
    threads: threads("weight_change")
    resources:
        **resources("weight_change"),
    shell:
        command("weight_change")
