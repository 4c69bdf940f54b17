"""Offline preference alignment, from raw rows to a report. One suite at a time: configs/<suite>.yaml.

A suite's stages, one rules file each in workflow/rules/ (`graph.stages_of` lists those that a suite has):

    fetch        Hub, files or embedded world -> raw rows, model, tokenizer, classifier
    classifier   labelled rows                -> ground truth, P(positive)
    pretrain     raw rows                     -> base model, trained from scratch
    prepare      raw rows                     -> comparisons as token ids
    sft          base model                   -> SFT policy
    pairs        SFT policy, prompts          -> sampled and labelled comparisons
    reward       SFT policy, comparisons      -> reward model (also reward_variant; evaluate_reward, hidden_map)
    reference    SFT policy, comparisons      -> cached log-probs
    pairing      scored samples of a round    -> its pairs, for runs that draw their own
    preference   SFT policy, cache            -> aligned policy
    policy       SFT policy, prompts          -> policy trained on rewards of its own answers
    online       SFT policy, prompts          -> policy trained on labelled pairs of its own answers
    generate     policy, prompts              -> generations
    score        generations                  -> rewards, KL, lengths
    best_of_n    scores of a pool             -> rewards of Best-of-N
    judge        scores                       -> win rates
    choose       scores of candidates         -> the setting of a row, whose policy is then `selected`
    report       everything above             -> figures, tables, one HTML page
    exact        nothing                      -> minima in an enumerable world, and their report
"""

if not workflow.overwrite_configfiles:

    configfile: "configs/quickstart.yaml"

include: "workflow/rules/common.smk"
include: "workflow/rules/services.smk"  # MLflow writer, warm-start server

for stage in stages_of(SUITE):

    include: f"workflow/rules/{stage}.smk"


rule all:
    input:
        [manifest(folder) for folder in jobs_of(SUITE)],
