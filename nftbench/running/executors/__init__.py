"""What carries out a plan's jobs: worker processes on this machine, a SLURM cluster, or a Ray cluster.

`steps` decides what comes next, and is the same for all. `local`, `slurm` and `ray` say where it runs: each is an
executor, as `protocol` describes one. They call the same function, that of `worker`, on the same store. Import each
module by its name.
"""
