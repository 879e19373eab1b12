"""What a Keras file may hold: checked before Keras reads it, so that it runs no code of the file and claims no memory.

Keras builds whatever layer a file names, with the sizes that it states. Layers that carry Python code, load other files
or are the user's own are refused, and so are archives whose parts are not those of a model.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any

from edgepack.errors import ModelError

if TYPE_CHECKING:
    import h5py

SUFFIXES = (".keras", ".h5", ".hdf5")
MOST_BYTES = 2**31
"""Of a file, of a part of it as it is unpacked, and of all weights."""
MOST_EXPANDED = 100
"""Bytes of weights for each byte of the file that holds them."""
HINT = "write it with model.save('model.keras') in Keras 3"

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_PARTS = frozenset({_CONFIG, _WEIGHTS, "metadata.json", "assets/"})
_PLACES = ("constraints", "dtype_policies", "initializers", "layers", "regularizers")
_MODELS = frozenset({"Functional", "Sequential", "Model", "DTypePolicy"})
_DATA = frozenset({"__keras_tensor__", "__tensor__", "__numpy__", "__ellipsis__", "__slice__"})
_OPERATIONS = "keras.src.ops."
_WITH_CODE = frozenset({"Lambda", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "TFSMLayer"})
_WITH_FILES = frozenset({"StringLookup", "IntegerLookup", "TextVectorization"})
_DAMAGED: tuple[type[Exception], ...] = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError)
_DAMAGED += (RuntimeError, ValueError, KeyError)
_DAMAGED += (SystemError,)  # of h5py, at names that are no UTF-8


def check_file(path: Path) -> None:
    """Refuse a file unless it is a model of Keras's own layers with weights of plain numbers; nothing is written.

    Raises:
        ModelError: there is none, it is damaged, or it holds more; says what.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file", hint="give the path of a .keras or .h5 file")
    if path.stat().st_size > MOST_BYTES:
        raise ModelError(f"{path}: {path.stat().st_size} bytes, at most {MOST_BYTES} are read", hint=HINT)
    try:
        (_check_archive if path.suffix.lower() == ".keras" else _check_hdf5)(path)
    except RecursionError as err:
        raise ModelError(f"{path}: its description of the model is nested too deep", hint=HINT) from err
    except _DAMAGED as err:
        raise ModelError(f"{path}: not a Keras model, or truncated ({err})", hint=HINT) from err


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        names = [part.filename for part in parts]
        strange = next((name for name in names if name not in _PARTS or names.count(name) > 1), None)
        if strange is not None:
            raise _refused(path, f"a part {strange!r} that no model of Keras's own layers has")
        for part in parts:
            if part.file_size > min(MOST_BYTES, 2**20 + MOST_EXPANDED * part.compress_size):
                raise _refused(path, f"{part.file_size} bytes of {part.filename!r} in {part.compress_size}")
        _check_description(path, archive.read(_CONFIG))
        with archive.open(_WEIGHTS) as weights:
            _check_weights(path, weights, archive.getinfo(_WEIGHTS).file_size)


def _check_hdf5(path: Path) -> None:
    import h5py

    with h5py.File(path, "r") as file:
        description = file.attrs.get("model_config")
        if description is None:
            raise ModelError(f"{path}: weights alone, without the model", hint=f"{HINT}, not with save_weights")
        _check_description(path, description)
    with path.open("rb") as stream:
        _check_weights(path, stream, path.stat().st_size)


def _check_description(path: Path, text: str | bytes) -> None:
    """Every object that the model is made of is one of Keras's own, without code."""
    for thing in _objects(json.loads(text)):
        name, module = str(thing["class_name"]), thing.get("module")
        if name in _WITH_CODE or name == "__lambda__":
            raise _refused(path, f"a {name.strip('_')} layer, which is code")
        if name in _WITH_FILES:
            raise _refused(path, f"a {name} layer, which reads text and files")
        if not _is_known(name, module, thing.get("config")):
            raise _refused(path, f"{name!r} of {module or 'elsewhere'}, which is none of Keras's own")


def _is_known(name: str, module: object, config: object) -> bool:
    """Whether it is one of Keras's own layers, operations, initializers and the like, or plain data."""
    import keras

    if name in _DATA:
        return True
    if name == "function":
        return module == "builtins" and isinstance(config, str) and hasattr(keras.activations, config)
    if module is None:  # as older files have it
        return name in _MODELS or any(_is_class(getattr(keras, place), name) for place in _PLACES)
    if not isinstance(module, str):
        return False
    if module == "keras" or module.startswith("keras.src.models."):
        return name in _MODELS
    place = module.removeprefix("keras.")
    return module.startswith(_OPERATIONS) or (place in _PLACES and _is_class(getattr(keras, place), name))


def _is_class(module: ModuleType, name: str) -> bool:
    return isinstance(getattr(module, name, None), type)


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Whatever Keras would make an object of in nested JSON, however deep."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            if "class_name" in item:
                yield item
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def _check_weights(path: Path, stream: IO[bytes], size: int) -> None:
    """Every array lies in the file itself, and all of them together are no larger than what it can hold."""
    import h5py

    with h5py.File(stream, "r") as file:
        links: list[h5py.SoftLink | h5py.ExternalLink | h5py.HardLink] = []
        file.visititems_links(lambda name, link: links.append(link))
        if any(not isinstance(link, h5py.HardLink) for link in links):
            raise _refused(path, "weights that are links to elsewhere")
        total = 0

        def add(name: str, item: object) -> None:
            nonlocal total
            if not isinstance(item, h5py.Dataset):
                return
            if item.external or item.is_virtual:
                raise _refused(path, f"the weight {name!r} in another file")
            total += item.size * item.dtype.itemsize

        file.visititems(add)
    if total > min(MOST_BYTES, 2**20 + MOST_EXPANDED * size):
        raise _refused(path, f"{total} bytes of weights in {size}")


def _refused(path: Path, what: str) -> ModelError:
    return ModelError(
        f"{path}: it holds {what}; refused",
        hint="save the model without it, or load it where you trust it and give a file.py:function that returns a "
        "Recipe",
    )
