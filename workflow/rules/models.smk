# The model everything starts from, with its tokenizer and the one chat template.


rule base:
    input:
        lambda w: plan.inputs(w.digest),
    output:
        "results/base/{name}-{digest}/manifest.json",
    log:
        "results/logs/base/{name}-{digest}.log",
    threads: threads("base")
    resources:
        **resources("base"),
    shell:
        command("base")
