"""The verb `calibrate`: prove that a suite measures what it should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nftbench.cli import completion
from nftbench.cli.console import BAD_CELLS, console
from nftbench.cli.options import RunOptions, SuiteName, parts
from nftbench.errors import NftbenchError

if TYPE_CHECKING:
    from nftbench.calibration import Measured, Read


def calibrate(
    context: typer.Context,
    suite: SuiteName,
    options: RunOptions,
    proof: Annotated[
        str,
        typer.Option(
            "--proof",
            metavar="NAME",
            help="`calibration`, `null`, `dose`, `shams`, `oracle`, `power`, `attacks`, `spread` or `order`.",
        ),
    ] = "calibration",
    defenses: Annotated[
        str | None,
        typer.Option(
            "--defenses",
            metavar="A,B[x=1]",
            help="The defenses to be tried; default: those of `--plugin` files.",
            autocompletion=completion.plugins("defenses"),
        ),
    ] = None,
    attacks: Annotated[
        str | None,
        typer.Option(
            "--attacks",
            metavar="A,B[x=1]",
            help="The attacks; default: those that the proof chooses.",
            autocompletion=completion.plugins("attacks"),
        ),
    ] = None,
    shams: Annotated[
        Path | None, typer.Option("--shams", metavar="DIR", help="Add the plugins of all files in a folder.")
    ] = None,
    finished: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            metavar="DIR",
            help="Judge this finished run and run nothing; repeatable, because `power` and `order` read two.",
            autocompletion=completion.folder,
        ),
    ] = None,
) -> None:
    """Prove that a suite's tasks can tell models apart; with `--proof`, that it finds real effects and no others."""
    from nftbench import calibration
    from nftbench.cli import execution, local_data
    from nftbench.cli.salt import plan_with_salt
    from nftbench.planning import registry
    from nftbench.planning.plan import plan

    execution.use_cache(options.cache, options.cache_size)
    device = execution.available_device(options.device)
    chosen, proved = calibration.find(proof), options.suite(suite)
    _refuse_ignored_options(context, proof, chosen, from_records=bool(finished))
    options = replace(options, plugin=[*(options.plugin or ()), *_plugin_files(shams)])
    added = [one.name for file in options.plugin or () for one in registry.add_file(file) if one.kind == "defenses"]
    store = execution.open_store(options.out, f"{proved.name}-{proof}")
    execution.ask_apart(store, options.data)
    if isinstance(chosen, calibration.Read):
        folders = finished or _usual_folders(chosen, proof, suite, proved.name)
        result = chosen.judge([calibration.Run.read(folder, store.cache) for folder in folders])
    elif finished:
        result = chosen.again(proved, proof, [calibration.Run.read(folder, store.cache) for folder in finished])
    else:
        derived = chosen.derive(proved, parts("--defenses", defenses) or added, parts("--attacks", attacks))
        # A proof may go on in a copy of another proof's folder: most of their cells are the same.
        execution.check_folder(store, derived.name, [f"{proved.name}-{other}" for other in calibration.PROOFS])
        local_data.check(derived, options.data)
        whole, salt = plan_with_salt(
            derived,
            store,
            lambda salted: chosen.needed(plan(salted, device=device, data=options.data)),
            keep=True,
        )
        records = execution.carry_out(execution.Work(whole, whole, store, salt), options, context.obj)
        result = chosen.found(proved, calibration.Run.of(whole, records))
    paths = calibration.write(result, store.results, proof, context.obj)  # before anything can fail to print
    console().print(calibration.report(result))
    for path in paths:
        typer.echo(path)
    raise typer.Exit(0 if result.valid else BAD_CELLS)


def _usual_folders(reads: Read, proof: str, suite: str, name: str) -> list[Path]:
    """The folders of the finished runs that a proof reads. The suite is given as on the command line, and by its name.

    Raises:
        NftbenchError: one of them is not there; the message says what makes it.
    """
    folders = reads.folders(name)
    for folder, other in zip(folders, reads.proofs or ("",), strict=True):
        if not (folder / "manifest.json").exists():
            verb = f"calibrate {suite} --proof {other}" if other else f"run {suite}"
            raise NftbenchError(
                f"{folder}: no results here, and --proof {proof} reads them; nftbench {verb} makes them, or name "
                "another folder with --from"
            )
    return folders


def _plugin_files(folder: Path | None) -> list[str]:
    """The plugin files of the folder that --shams names."""
    files = sorted(map(str, folder.glob("[!_]*.py"))) if folder is not None else []
    if folder is not None and not files:
        raise NftbenchError(f"--shams {folder}: no plugin files there")
    return files


def _refuse_ignored_options(context: typer.Context, proof: str, chosen: Measured | Read, from_records: bool) -> None:
    """Refuse an option that would change nothing, because of the proof or because it judges finished records.

    Raises:
        NftbenchError: names the option.
    """
    from nftbench.calibration import Read

    ignored: tuple[str, ...] = ()
    if isinstance(chosen, Read) or from_records:
        ignored += ("attacks", "jobs", "device", "data", "salt")
    if isinstance(chosen, Read) or from_records or not chosen.tries:
        ignored += ("defenses", "shams")
    if isinstance(chosen, Read):
        ignored += ("plugin", "changes")
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if option.name in ignored and source is not None and source.name == "COMMANDLINE":
            raise NftbenchError(f"--proof {proof}{' with --from' if from_records else ''} takes no {option.opts[0]}")
