"""Training and its cost: the engine that takes the steps, the attacker's sweep, and preparation before it."""
