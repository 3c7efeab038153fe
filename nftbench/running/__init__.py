"""A plan carried out: base models and releases are made, attacks run, and the referee measures and writes records.

`owner` and `attacker` are the contexts that defenses and attacks are given; `releases` keeps secrets apart from what is
published; `referee` runs one job, and `executors` spreads jobs over processes and machines. `isolation` starts the
processes of plugins, and `describing` asks added plugins about themselves there. Import each module by its name:
together they load torch, transformers and lm-eval.
"""
