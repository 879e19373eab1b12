"""`edgepack build-all`: the models of a zoo file, each for its targets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.main

from edgepack.cli.build import build
from edgepack.cli.options import progress_bar, reporting, show
from edgepack.cli.project import ProjectCommand, read_document
from edgepack.errors import InputError
from edgepack.report.render import RENDERERS, Renderer

if TYPE_CHECKING:
    from edgepack.pipeline.build_all import ModelJob

MODELS = "models"
NOT_OF_ONE = frozenset(
    ("out", "scheduler", "explore", "pick", "verbose", "help", "no-cache", *(each.option[2:] for each in RENDERERS))
)
"""Options of a build that a model of a zoo has not."""
READS = ("data", "test", "metric")
"""Options that name files."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@reporting()
def build_all(
    zoo: Annotated[Path, typer.Argument(help="A zoo file: models, and options of `edgepack build`.")],
    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler",
            help="Dask cluster whose workers build the models, tcp://HOST:PORT. They must see the folder of the zoo "
            "and that of the packs under the same paths.",
            show_default="this machine, one model after another",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of all packs: OUT/NAME/MODEL.TARGET.")] = Path(
        "dist"
    ),
    *,
    output: Renderer,
) -> None:
    """Build many models, each for its targets.

    The zoo file is YAML: under `models:` a list with `model:`, a `name:` where two would be called alike, and options
    of `edgepack build` by their names; what stands beside `models:` holds for all that do not say otherwise. Names of
    files are from the folder of the zoo file.

    A model that fails stops no other. Run again, it builds what is not finished, or has changed.

    Example: edgepack build-all zoo.yaml

    Example: edgepack build-all zoo.yaml --scheduler tcp://10.0.0.2:8786 --html zoo.html
    """
    jobs = read_zoo(zoo)
    from edgepack.pipeline.build_all import build_all as run
    from edgepack.report.build_all import zoo_report

    with progress_bar(output) as progress:
        result = run(jobs, here=zoo.parent, out=out, scheduler=scheduler, progress=progress)
    show(zoo_report(result), output)
    if (failure := result.failure) is not None:
        if output.for_machines:  # the document says it
            raise typer.Exit(failure.exit_code)
        raise failure


def read_zoo(path: Path) -> list[ModelJob]:
    """The models of a zoo file with their options, which `edgepack build` understands.

    Raises:
        InputError: it is no zoo file, or has an option that no build takes.
        TargetsError: it names an unknown target.
    """
    document = dict(read_document(path))
    models = document.pop(MODELS, None)
    if not isinstance(models, list) or not models:
        raise InputError(f"{path}: found no list of models", hint="write `models:` and below it `- model: model.onnx`")
    parser = _parser()
    return [
        _job(path, f"{MODELS}[{number}]", {**document, **_entry(path, number, each)}, parser)
        for number, each in enumerate(models, 1)
    ]


def _entry(path: Path, number: int, entry: object) -> Mapping[str, Any]:
    if isinstance(entry, str):
        return {"model": entry}
    if not isinstance(entry, Mapping) or not isinstance(entry.get("model"), str):
        raise InputError(f"{path}: {MODELS}[{number}]: found no model", hint="write `- model: model.onnx`")
    return entry


def _job(path: Path, where: str, options: Mapping[str, Any], parser: Any) -> ModelJob:
    from edgepack.pipeline.build_all import ModelJob
    from edgepack.sources import model_name
    from edgepack.targets.file import get_targets

    given = {str(name): value for name, value in options.items()}
    model = given.pop("model")
    pack = model_name(model)
    name = str(given.pop("name", pack))
    if not _NAME.fullmatch(name):
        raise InputError(f"{path}: {where}: {name[:40]!r} is no name of a folder", hint="letters, digits, . _ and -")
    target = given.pop("target", None)
    if target is None:
        raise InputError(f"{path}: {where} ({name}): found no target", hint="write a line such as `target: rpi4`")
    names = ",".join(map(str, target)) if isinstance(target, list) else str(target)
    own = given.get("targets-file")
    beside = path.parent / str(own or "targets.yaml")
    targets = get_targets(names, beside if own or beside.is_file() else None)
    words = list(_words(f"{path}: {where} ({name})", given, parser))
    try:
        parser.make_context("edgepack build", [*words, "--target", names, "--", model])
    except typer.BadParameter as err:
        raise InputError(f"{path}: {where} ({name}): {err.format_message()}") from err
    reads = tuple(str(given[option]) for option in READS if option in given)
    return ModelJob(name, model, pack, tuple(targets), tuple(words), reads)


def _words(where: str, given: Mapping[str, Any], parser: Any) -> Iterator[str]:
    """The options as a command line has them."""
    known = {
        opt.removeprefix("--"): each
        for each in parser.params
        for opt in (*each.opts, *each.secondary_opts)
        if opt.startswith("--") and opt.removeprefix("--") not in NOT_OF_ONE
    }
    for name, value in given.items():
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
            raise InputError(f"{where}: {name[:40]!r} is no option of a model here", hint=hint)
        flag = getattr(known[name], "is_flag", False)
        if flag and not isinstance(value, bool):
            raise InputError(f"{where}: {name}: found {str(value)[:40]!r}, expected true or false")
        if flag:
            yield from [f"--{name}"] if value else []
            continue
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, bool) or not isinstance(one, str | int | float):
                raise InputError(f"{where}: {name}: found {type(one).__name__}, expected words or a number")
            yield f"--{name}={one}"


def _parser() -> Any:
    """`edgepack build` as it reads its command line."""
    app = typer.Typer()
    app.command(cls=ProjectCommand)(build)
    return typer.main.get_command(app)
