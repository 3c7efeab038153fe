"""Text and documents: the pre-training corpus, the toy language's grammar, and tasks defined by lm-eval YAML files.

The room turns files and generated text into tokens, and tokens into losses, log-likelihoods and scores. Import each
module by its name: nothing is re-exported here, because `lm_eval_tasks` loads lm-eval, which users of `grammar` or
`corpus` do not need.
"""
