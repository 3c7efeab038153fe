"""Text and documents: the pre-training corpus, tasks from lm-eval, their splits and log-likelihoods."""
