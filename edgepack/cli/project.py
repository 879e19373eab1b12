"""`edgepack init`, and `edgepack.yaml`: options of a build where no model is named, thresholds of `edgepack check`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from edgepack.cli.options import door, reporting, show
from edgepack.errors import EdgepackError, InputError, UsageError
from edgepack.paths import require_model, require_samples
from edgepack.report.render import TERMINAL, Renderer

if TYPE_CHECKING:
    from edgepack.check.thresholds import Thresholds

PROJECT = "edgepack.yaml"
CHECK = "check"
"""What `edgepack check` reads of it."""
MOST_BYTES = 100_000
FRONT = frozenset(
    ("target", "data", "max_drop", "optimize", "precision", "rank", "formats", "max_size", "max_latency", "out", "help")
)
"""Options of a build that its help shows first."""
CHECK_HEAD = """\
# By how much a figure may exceed that of the base of `edgepack check`.
"""
HEAD = """\
# What `edgepack build` does in this folder: its options by their names, without the dashes. Paths are from here.
"""


class ProjectCommand(TyperCommand):
    """A command whose options stand in `edgepack.yaml` where it is called without its argument."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click: what is said on the command line goes first."""
        if not any(arg in args for arg in ctx.help_option_names) and Path(PROJECT).is_file():
            with door(TERMINAL, verbose=bool({"-v", "--verbose"} & set(args))):
                if not self._names_a_model(ctx, args):
                    names = {opt.lstrip("-"): str(each.name) for each in self.params for opt in _long(each.opts)}
                    ctx.default_map = read_project(Path(PROJECT), names)
        return list(super().parse_args(ctx, args))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """See click: what most builds need first."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": [], "Advanced": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                known = "Arguments" if param.param_type_name == "argument" else "Options"
                sections[known if known == "Arguments" or param.name in FRONT else "Advanced"].append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def _names_a_model(self, ctx: Any, args: Sequence[str]) -> bool:
        """Whether one of the words is neither an option nor the value of one."""
        values, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        return isinstance(values.get("model"), str)


def _long(names: Sequence[str]) -> Sequence[str]:
    """Those of more than a letter where there are some."""
    return [name for name in names if name.startswith("--")] or names


def read_project(path: Path, options: Mapping[str, str]) -> dict[str, Any]:
    """Options by the names of their parameters.

    Args:
        path: of the file.
        options: names of parameters by those of their options.

    Raises:
        InputError: it is no mapping of options to words, numbers, or lists of these.
    """
    found: dict[str, Any] = {}
    for key, value in read_document(path).items():
        if key == CHECK:
            continue
        if key not in options:
            close = get_close_matches(str(key), options, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(options)}"
            raise InputError(f"{path}: {str(key)[:40]!r} is no option of `edgepack build`", hint=hint)
        plain = value if isinstance(value, list) else [value]
        if not all(isinstance(one, str | int | float) for one in plain):
            raise InputError(
                f"{path}: {key}: found {type(value).__name__}, expected words, a number, or a list of them"
            )
        found[options[key]] = value if isinstance(value, bool | list) else str(value)
    return found


def read_thresholds(path: Path) -> Thresholds:
    """By how much figures may grow; where the file does not say, or is not there, as by default.

    Raises:
        InputError: it is no mapping, or a threshold makes no sense.
    """
    from edgepack.check.thresholds import STANDARD, parse_thresholds

    document = read_document(path) if path.is_file() else {}
    return parse_thresholds(document[CHECK], f"{path}: {CHECK}") if CHECK in document else STANDARD


def read_document(path: Path) -> Mapping[Any, Any]:
    """What stands in a file of options: names and values.

    Raises:
        InputError: it cannot be read, or holds no mapping.
    """
    import yaml

    try:
        raw = path.read_bytes()[: MOST_BYTES + 1]
        if len(raw) > MOST_BYTES or b"&" in raw:
            raise InputError(f"{path}: over {MOST_BYTES} bytes, or with anchors, which a list of options never needs")
        document = yaml.safe_load(raw)
    except (OSError, UnicodeDecodeError, ValueError, RecursionError, yaml.YAMLError) as err:
        raise InputError(f"{path}: {str(err).splitlines()[0]}", hint="write lines such as `target: rpi4`") from err
    if not isinstance(document, Mapping):
        raise InputError(f"{path}: found no options", hint="write lines such as `target: rpi4`")
    return document


@reporting(tables=False)
def init(
    model: Annotated[
        str | None, typer.Option("--model", help="As `edgepack build` takes it.", show_default="asked")
    ] = None,
    target: Annotated[str | None, typer.Option("--target", help="Name of a target.", show_default="asked")] = None,
    data: Annotated[str | None, typer.Option("--data", help="Samples; empty for none.", show_default="asked")] = None,
    max_drop: Annotated[
        float | None, typer.Option("--max-drop", help="Largest drop of the metric.", show_default="asked")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file that is there.")] = False,
    *,
    output: Renderer,
) -> None:
    """Write edgepack.yaml, which `edgepack build` then reads.

    What is not given is asked: the model, the target, samples of its data, and the largest drop.

    Example: edgepack init
    """
    from edgepack.report.report import Report
    from edgepack.targets.file import get_target

    path = Path(PROJECT)
    if path.exists() and not force:
        raise UsageError(f"{path} is there already", hint="edit it, or give --force")
    model = _asked(model, "Model (model.onnx, file.py:function, …)", _check_model)
    target = _asked(target, "Target (`edgepack targets list` shows all)", get_target, "rpi4")
    samples = "Samples (.npz, a folder, file.py:function; empty for none)"
    data = _asked(data, samples, lambda answer: require_samples(answer or None), "")
    if max_drop is None:
        max_drop = typer.prompt("Largest drop of the metric, in its unit", default=0.5, type=float, err=True)
    options: dict[str, object] = {"model": model, "target": target, "data": data, "max-drop": max_drop}
    if not data:
        del options["data"]
    write_project(path, options)
    line = f"{path}: `edgepack build` builds {model} for {target}"
    show(Report(title=(line,), record={"file": str(path), "options": options}), output)


def _asked(given: str | None, question: str, check: Callable[[str], object], default: str | None = None) -> str:
    """What was given, else the answer, which is asked for again until it passes the check."""
    if given is not None:
        check(given)
        return given

    def checked(answer: str) -> str:
        try:
            check(answer)
        except EdgepackError as err:
            raise typer.BadParameter(f"{err.message} ({err.hint})" if err.hint else err.message) from err
        return answer

    return str(typer.prompt(question, default=default, value_proc=checked, err=True))


def _check_model(spec: str) -> None:
    from edgepack.sources import source_of

    require_model(spec)
    source_of(spec)


def write_project(path: Path, options: Mapping[str, object]) -> None:
    """Write the file, with the thresholds of a check as a comment."""
    import yaml

    from edgepack.check.thresholds import STANDARD

    words = ", ".join(f"{name}: {value}" for name, value in STANDARD.in_words().items())
    text = yaml.safe_dump(dict(options), sort_keys=False, allow_unicode=True)
    path.write_text(f"{HEAD}{text}{CHECK_HEAD}# {CHECK}: {{{words}}}\n", encoding="utf-8")
