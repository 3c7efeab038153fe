"""The verb `lm-eval`: lm-eval's own command line, with nftbench's tasks and architectures."""

from __future__ import annotations

import sys

import typer

SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""typer's settings for a verb that reads none of its arguments."""


def lm_eval(context: typer.Context) -> None:
    """Pass all arguments on to lm-eval, which then knows nftbench's tasks and architectures."""
    from lm_eval.__main__ import cli_evaluate

    import nftbench.models.networks  # noqa: F401 (registers the architectures that defenses add)
    from nftbench import tasks

    arguments = list(context.args)
    if arguments and arguments[0] in ("run", "ls", "validate"):
        # First, so that the user's own --include_path comes later and wins.
        arguments[1:1] = ["--include_path", tasks.__path__[0]]
    sys.argv = ["lm-eval", *arguments]
    cli_evaluate()
