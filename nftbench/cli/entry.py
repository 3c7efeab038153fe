"""The entry point: it runs the verb of a command line, and handles errors, warnings and Ctrl-C.

Each verb imports what it needs when it is called, so that `--help` and `list` load nothing heavy.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Annotated, TextIO

import typer

from nftbench.cli import (
    audit,
    calibrate,
    catalogue,
    check,
    compare,
    completion,
    lm_eval,
    merge,
    new,
    pack,
    report,
    run,
    stopping,
)
from nftbench.cli.console import BAD_INPUT, complain
from nftbench.cli.options import with_options
from nftbench.errors import NftbenchError, wrong

# Without rich's markup typer's help costs half as much and can be piped.
app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def nftbench(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Benchmark defenses against fine-tuning: protect models, attack the releases, rank the defenses."""
    if version:
        from nftbench import __version__

        typer.echo(__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command("list")(catalogue.list_)
app.command()(catalogue.info)
app.command()(new.new)
app.command()(check.check)
app.command()(with_options(run.plan))
app.command()(with_options(run.run))
app.command()(with_options(run.reproduce))
app.command()(with_options(audit.audit))
app.command()(report.report)
app.command()(pack.pack)
app.command()(merge.merge)
app.command()(compare.compare)
app.command()(compare.baseline)
app.command()(with_options(calibrate.calibrate))
app.command("lm-eval", add_help_option=False, context_settings=lm_eval.SETTINGS)(lm_eval.lm_eval)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (`sys.argv` by default) and return its exit code.

    Bad input is one line on standard error and exit code 2. A run in which a cell is not ok ends with 1, a comparison
    with 1 for a regression and 3 where nothing compares. A verb finds the command line as text in its context's `obj`.

    A command of its own, without `arguments`, ends at once with Ctrl-C, TERM or HUP, see `stopping`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        stopping.handle(words)
        # Imports and records make many objects that stay. Looking for garbage among them took a tenth of a resume.
        gc.set_threshold(50_000)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal in latin-1 has no character for a table's lines
    if "--install-completion" in words:
        completion.mend_zsh()
    for word in words:
        if not word.isascii() and word != word.encode(errors="replace").decode():
            complain(f"{word!r}: is not text in UTF-8, as files with results are; choose another name")
            return BAD_INPUT
    with warnings.catch_warnings(), _same_environment():
        warnings.showwarning = _show_warning
        try:
            code = app(words, prog_name="nftbench", standalone_mode=False, obj=shlex.join(["nftbench", *words]))
        except NftbenchError as error:
            complain(str(error))
            return BAD_INPUT
        except OSError as error:
            complain(_of_system(error))
            return BAD_INPUT
        except typer.TyperException as error:
            complain(_of_words(error))
            return BAD_INPUT
        except SystemExit:  # typer and rich end so where nobody reads the output any longer
            if arguments is None:
                stopping.end_unread(words)
            raise
    return int(code or 0)


@contextlib.contextmanager
def _same_environment() -> Iterator[None]:
    """Give the environment its variables back after the block: `--cache` sets one for workers, and another command line
    in this process must not find it."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _of_words(error: typer.TyperException) -> str:
    """What is wrong with the words of a command, and where to read which ones there are."""
    from pydantic import ValidationError

    if isinstance(cause := error.__cause__, ValidationError):  # typer checks options whose type is one of pydantic's
        error.message = wrong(cause.errors()[0])
    context = getattr(error, "ctx", None)
    more = f"; {context.command_path} --help lists what there is" if context is not None else ""
    return error.format_message().rstrip(".") + more


def _of_system(error: OSError) -> str:
    """The system's error without its number, which says nothing."""
    if isinstance(error, FileExistsError | NotADirectoryError) and error.filename is not None:
        return f"{error.filename}: a folder is needed here, and a file is in its place"
    return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    complain(f"warning: {message}")
