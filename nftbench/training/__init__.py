"""Training and its cost: the optimizer steps, the attacker's sweep over learning rates, and an attack's preparation.

Everything that changes weights by gradient steps goes through this room, so that owners and attackers train by the same
code. Import each module by its name: `engine` for steps and pre-training, `sweep`, `stack` for several networks at
once, `preparation`, and `costs` for FLOPs, memory and gradient checks.
"""
