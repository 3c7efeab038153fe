"""Planning: turns a suite into the list of its cells, each with a key. Nothing is trained or measured here.

`registry` finds and creates plugins by name. `facts` asks defenses and attacks about themselves. `plan` lists cells and
groups them into jobs. `keys` and `plugin_sources` compute the keys of cells: cells with equal keys have equal numbers.
Import each module by its name.
"""
