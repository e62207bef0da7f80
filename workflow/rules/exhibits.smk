# What is shown keeps stable names. The recipe file of an exhibit carries its digest in its name, and the program that
# draws it leaves that one alone there: a changed option, run or program is a recipe that is missing.


def exhibit(w):
    return plan.drawings[w.study, w.get("exhibit", REPORT)]


rule describe:
    output:
        "results/{folder}/{study}/recipes/{exhibit}-{digest}.json",
    localrule: True
    shell:
        "cp results/configs/exhibits/{wildcards.study}.{wildcards.exhibit}-{wildcards.digest}.json {output:q}"


rule figure:
    input:
        recipe=lambda w: exhibit(w).recipe_path,
        results=lambda w: exhibit(w).manifests,
    output:
        multiext("results/figures/{study}/{exhibit}", ".pdf", ".png", ".svg", ".csv"),
    log:
        "results/logs/figures/{study}/{exhibit}.log",
    wildcard_constraints:
        exhibit="|".join(plan.names("figures")),
    localrule: True
    shell:
        command("exhibit", "{input.recipe:q}", "{wildcards.exhibit}")


rule table:
    input:
        recipe=lambda w: exhibit(w).recipe_path,
        results=lambda w: exhibit(w).manifests,
    output:
        "results/tables/{study}/{exhibit}.csv",
    log:
        "results/logs/tables/{study}/{exhibit}.log",
    wildcard_constraints:
        exhibit="|".join(plan.names("tables")),
    localrule: True
    shell:
        command("exhibit", "{input.recipe:q}", "{wildcards.exhibit}")


rule report:
    input:
        recipe=lambda w: exhibit(w).recipe_path,
        results=lambda w: exhibit(w).manifests,
        exhibits=lambda w: plan.shown(w.study),
    output:
        "results/report/{study}/index.html",
    log:
        "results/logs/report/{study}.log",
    localrule: True
    shell:
        command("report", "{input.recipe:q}", "{wildcards.study}")
