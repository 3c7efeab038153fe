"""Defenses: each file is one plugin that turns a base model into a released one.

Import nothing from here: the registry finds the plugins by their file names, which are also their names in suites.
"""
