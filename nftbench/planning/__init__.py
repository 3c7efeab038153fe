"""From a suite to a plan: plugins are found by name, cells are listed, and each gets its key.

Nothing here runs a plugin or loads torch by itself. `registry` finds and creates plugins, `plan` lists cells and groups
them into jobs, `keys` and `plugin_sources` decide what makes two cells the same. Import each module by its name.
"""
