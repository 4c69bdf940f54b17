"""prefdag: offline preference alignment, from raw rows to a report. One suite at a time: configs/<suite>.yaml."""

if not workflow.overwrite_configfiles:

    configfile: "configs/quickstart.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/beside.smk"  # MLflow writer, warm starts

if jobs.is_exact(SUITE):

    include: "workflow/rules/exact.smk"  # nothing             -> minima in an enumerated world

else:

    include: "workflow/rules/fetch.smk"  # hub, files or world -> raw rows, model, tokenizer
    include: "workflow/rules/classifier.smk"  # labelled rows       -> ground truth, P(positive)
    include: "workflow/rules/pretrain.smk"  # raw rows            -> base model (from scratch)
    include: "workflow/rules/prepare.smk"  # raw rows            -> comparisons of token ids
    include: "workflow/rules/sft.smk"  # base model          -> SFT policy
    include: "workflow/rules/pairs.smk"  # SFT policy, prompts -> sampled and labelled comparisons
    include: "workflow/rules/reward.smk"  # SFT policy, pairs   -> reward model
    include: "workflow/rules/reference.smk"  # SFT policy, pairs   -> cached log-probs
    include: "workflow/rules/preference.smk"  # policy, cache       -> aligned policy
    include: "workflow/rules/generate.smk"  # policy, prompts     -> generations
    include: "workflow/rules/score.smk"  # generations         -> rewards, KL, lengths
    include: "workflow/rules/best_of_n.smk"  # scores of a pool    -> what Best-of-N gives
    include: "workflow/rules/judge.smk"  # scores              -> win rates
    include: "workflow/rules/report.smk"  # everything above    -> figures, tables, one page

include: "workflow/rules/targets.smk"  # what `all` asks for beside the report


rule all:
    input:
        f"{RESULTS}/report/manifest.json",
        below_the_report(),
