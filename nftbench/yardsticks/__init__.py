"""Yardsticks: the metrics that papers report for their own defenses, one plugin in each file.

The referee computes them on a release, and reports show them beside the defense's claim. They never enter a score.
Import nothing from here: the registry finds the plugins by their file names.
"""
