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


def recipe(w):
    return plan.drawings[w.study, w.get("exhibit", REPORT)].recipe_path


rule figure:
    input:
        ancient(lambda w: drawn(w, current=True)),
        lambda w: drawn(w, current=False),
    output:
        multiext("results/figures/{study}/{exhibit}", ".pdf", ".png", ".svg", ".csv", ".json"),
    log:
        "results/logs/figures/{study}/{exhibit}.log",
    wildcard_constraints:
        exhibit="|".join(plan.names("figures")),
    localrule: True
    params:
        recipe=recipe,
    shell:
        command("exhibit", "{params.recipe:q}", "{wildcards.exhibit}")


rule table:
    input:
        ancient(lambda w: drawn(w, current=True)),
        lambda w: drawn(w, current=False),
    output:
        multiext("results/tables/{study}/{exhibit}", ".csv", ".json"),
    log:
        "results/logs/tables/{study}/{exhibit}.log",
    wildcard_constraints:
        exhibit="|".join(plan.names("tables")),
    localrule: True
    params:
        recipe=recipe,
    shell:
        command("exhibit", "{params.recipe:q}", "{wildcards.exhibit}")


rule report:
    input:
        ancient(lambda w: drawn(w, current=True)),
        lambda w: drawn(w, current=False),
    output:
        multiext("results/report/{study}/index", ".html", ".json"),
    log:
        "results/logs/report/{study}.log",
    localrule: True
    params:
        recipe=recipe,
    shell:
        command("report", "{params.recipe:q}", "{wildcards.study}")
