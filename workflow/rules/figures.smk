# Figures keep stable names; editing one figure's file or options draws that one again.


def figure_code(figure):
    shared = ["style", "results", "norms"] if figure.startswith("norms") else ["style", "results"]
    return [f"{workflow.basedir}/scalpel/figures/{module}.py" for module in [figure, *shared]]


rule figure:
    input:
        lambda w: plan.drawings[w.study, w.figure].manifests,
        lambda w: figure_code(w.figure),
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
