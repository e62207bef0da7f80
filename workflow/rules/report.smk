# One page: every figure beside the papers' numbers, and which of their claims appear.


rule report:
    input:
        lambda w: plan.drawings[w.study, "report"].manifests,
        lambda w: [
            f"results/figures/{w.study}/{figure}.png"
            for study, figure in plan.drawings
            if study == w.study and figure != "report"
        ],
        expand(
            f"{workflow.basedir}/scalpel/{{module}}.py",
            module=["report/build", "report/claims", "report/evidence", "figures/results"],
        ),
    output:
        "results/report/{study}/index.html",
    log:
        "results/logs/report/{study}.log",
    localrule: True
    params:
        recipe=lambda w: plan.drawings[w.study, "report"].recipe_path,
    shell:
        command("report", "{params.recipe}")
