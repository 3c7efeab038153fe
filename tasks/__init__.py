"""Tasks: each plugin is a Python file or an lm-eval YAML file that defines data and a metric.

Import nothing from here: the registry finds the plugins by their file names, which are also their names in suites.
"""
