"""bench/RESULTS.md: one section per experiment that is too long for the README, each with its command and machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blocks import machine_line
from figures_file import write

PAGE = Path(__file__).parent / "RESULTS.md"
TITLE = "# Results\n\nEach section is written anew by the command that it names.\n"
HEADINGS: Mapping[str, str] = {
    "promise": "The drop that was allowed, on data that no build has seen",
    "front": "MNIST: bytes against accuracy",
    "same": "A pack against itself",
    "dominance": "What another option of the same tool would have given",
    "importers": "ONNX operators in torch",
    "pairs": "Packs against dense int8, in fresh processes",
    "tflite": "ONNX files as TFLite files",
    "kinds": "Convolutions and recurrent layers on real digits",
    "zoo": "Model files as people have them",
}


def put_section(name: str, command: str, stored: Mapping[str, Any], body: str) -> None:
    """Put a section in the place of what it was, or in its order at the end."""
    sections = _sections(PAGE.read_text()) if PAGE.exists() else {}
    line = f"`{command}`, on {machine_line(stored['machine'])}"
    sections[name] = f"## {HEADINGS[name]}\n\n{line}\n\n{body.strip()}\n"
    write(PAGE, "\n".join([TITLE, *(sections[each] for each in HEADINGS if each in sections)]))


def _sections(text: str) -> dict[str, str]:
    names = {heading: name for name, heading in HEADINGS.items()}
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)[1:]
    found = zip(parts[::2], parts[1::2], strict=True)
    return {names[heading]: f"## {heading}\n\n{body.strip()}\n" for heading, body in found if heading in names}
