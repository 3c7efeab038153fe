"""Attacks: each file is one plugin that fine-tunes a release on a task, within a budget and a threat model.

Import nothing from here: the registry finds the plugins by their file names, which are also their names in suites.
"""
