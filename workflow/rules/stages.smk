# One rule for each stage of scalpel/stages.py, from fetch to weight_change. They differ in program, resources and inputs
# alone, and all of that is looked up.
#
# A result's digest says what it is made from, so a finished one is finished whatever the clock says: inputs are waited
# for, and their age is ignored.
for stage in STAGES:

    rule:
        name:
            stage
        input:
            ancient(lambda w: plan.inputs(w.digest)),
        output:
            f"results/{stage}/{{name}}-{{digest}}/manifest.json",
        log:
            f"results/logs/{stage}/{{name}}-{{digest}}.log",
        localrule: STAGES[stage].local
        threads: threads(stage)
        resources:
            **resources(stage),
        params:
            stage=stage,  # what a shell command names is looked up when the job starts, and the loop has ended by then
        shell:
            command("{params.stage}")
