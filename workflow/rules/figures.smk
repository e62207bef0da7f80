# Figures keep stable names; editing one figure's file or options draws that one again.


rule figure:
    input:
        lambda w: plan.drawings[w.study, w.figure].manifests,
        f"{workflow.basedir}/scalpel/figures/style.py",
        f"{workflow.basedir}/scalpel/figures/{{figure}}.py",
    output:
        multiext("results/figures/{study}/{figure}", ".pdf", ".png", ".svg"),
    log:
        "results/logs/figures/{study}/{figure}.log",
    wildcard_constraints:
        figure="|".join(figure for _, figure in plan.drawings if figure != "report"),
    localrule: True
    params:
        recipe=lambda w: plan.drawings[w.study, w.figure].recipe_path,
    shell:
        command("figure", "{params.recipe}")
