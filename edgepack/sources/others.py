"""Files and folders that people have and that are no model here: what each is, and the one step to one that is."""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping
from pathlib import Path

_TORCH = (
    "write a function that makes the network, loads these weights and returns an edgepack Recipe, and give "
    "file.py:function; or save torch.export.export(network, inputs) with torch.export.save as model.pt2"
)
_SKLEARN = 'load it where you trust it and write skl2onnx.to_onnx(model, rows[:1]).SerializeToString() to "model.onnx"'
_TENSORFLOW = "convert it with tf.lite.TFLiteConverter or tf2onnx, and give model.tflite or model.onnx"
_HUGGING_FACE = "optimum-cli export onnx --model FOLDER OUT, and give OUT/model.onnx"

_FILES: Mapping[str, tuple[str, str]] = {
    ".pt": ("torch file, which is not unpickled", _TORCH),
    ".pth": ("torch file, which is not unpickled", _TORCH),
    ".ckpt": ("checkpoint, which is not unpickled", _TORCH),
    ".bin": ("file of weights alone", _TORCH),
    ".safetensors": ("file of weights alone", _TORCH),
    ".joblib": ("pickle, which is not opened", _SKLEARN),
    ".pkl": ("pickle, which is not opened", _SKLEARN),
    ".pickle": ("pickle, which is not opened", _SKLEARN),
    ".pb": ("TensorFlow graph", _TENSORFLOW),
}
"""By suffix: what it is, and the step."""

_FOLDERS: Mapping[str, tuple[str, str]] = {
    "saved_model.pb": ("folder with a TensorFlow model", _TENSORFLOW),
    "config.json": ("folder of Hugging Face", _HUGGING_FACE),
    "manifest.json": (
        "pack, not a model",
        "give what it was built from, or look at it with edgepack inspect",
    ),
}
"""By a file that lies in it."""


def is_folder(spec: str) -> bool:
    """Whether it names a folder that can be looked into; False for a name that no folder can have."""
    try:
        return Path(spec).is_dir() and os.access(spec, os.R_OK)
    except OSError:
        return False


def other_kind(spec: str) -> tuple[str, str] | None:
    """What a file or folder is that no source takes, and the one step that makes it readable; None where that is not
    known."""
    path = Path(spec)
    if is_folder(spec):
        held = [found for name, found in _FOLDERS.items() if (path / name).is_file()]
        models = sorted(
            each.name for each in path.iterdir() if each.suffix in {".onnx", ".tflite", ".keras", ".h5", ".pt2"}
        )
        if not held and models:
            return "folder", f"give one of its files, such as {path / models[0]}"
        return held[0] if held else None
    if path.suffix.lower() == ".py":
        return "Python file without the name of a function", _functions(path)
    return _FILES.get(path.suffix.lower())


def _takes_nothing(arguments: ast.arguments) -> bool:
    """Whether each has a value by itself."""
    places = len(arguments.posonlyargs) + len(arguments.args)
    return places == len(arguments.defaults) and None not in arguments.kw_defaults


def _functions(path: Path) -> str:
    """Those of a file that can be called without arguments; it is not run."""
    try:
        tree = ast.parse(path.read_text())
    except (OSError, ValueError, SyntaxError, RecursionError):
        return f"write a function that returns an edgepack Recipe, and give {path}:function"
    made = [one for one in tree.body if isinstance(one, ast.FunctionDef) and not one.name.startswith("_")]
    names = [one.name for one in made if _takes_nothing(one.args)]
    if not names:
        return f"write a function that returns an edgepack Recipe into it, and give {path}:function"
    return "give one of its functions: " + ", ".join(f"{path}:{name}" for name in names[:8])
