# Figures, tables and reports; functions of workflow/rules/common.smk say which are current.


rule figure:
    input:
        ancient(lambda w: drawn(w, current=True)),
        lambda w: drawn(w, current=False),
    output:
        multiext("results/figures/{study}/{exhibit}", ".pdf", ".svg", ".csv", ".json"),
        in_report("results/figures/{study}/{exhibit}.png"),
    log:
        "results/logs/figures/{study}/{exhibit}.log",
    wildcard_constraints:
        exhibit="|".join(plan.names("figures")),
    localrule: True
    params:
        recipe=recipe,
        caption=caption,
    shell:
        command("figure", "exhibit", "{params.recipe:q}", "{wildcards.exhibit}")


rule table:
    input:
        ancient(lambda w: drawn(w, current=True)),
        lambda w: drawn(w, current=False),
    output:
        in_report("results/tables/{study}/{exhibit}.csv"),
        "results/tables/{study}/{exhibit}.json",
    log:
        "results/logs/tables/{study}/{exhibit}.log",
    wildcard_constraints:
        exhibit="|".join(plan.names("tables")),
    localrule: True
    params:
        recipe=recipe,
        caption=caption,
    shell:
        command("table", "exhibit", "{params.recipe:q}", "{wildcards.exhibit}")


rule report:
    input:
        ancient(lambda w: drawn(w, current=True)),
        lambda w: drawn(w, current=False),
    output:
        in_report("results/report/{study}/index.html"),
        "results/report/{study}/gallery.html",
        "results/report/{study}/index.json",
    log:
        "results/logs/report/{study}.log",
    localrule: True
    params:
        recipe=recipe,
        caption=caption,
    shell:
        command("report", argument="{params.recipe:q}", label="{wildcards.study}")
