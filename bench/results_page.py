"""bench/RESULTS.md: sections of experiments, each with its command and machine, beside marked blocks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from blocks import machine_line
from figures_file import write
from pages import RESULTS_PAGE

HEADINGS: Mapping[str, str] = {
    "promise": "The drop that was allowed, on data that no build has seen",
    "front": "MNIST: bytes against accuracy",
    "same": "A pack against itself",
    "peers": "MNIST: files of other tools",
    "check": "A check of a pack against itself",
    "build-all": "Many models on a cluster",
    "dominance": "What another option of the same tool would have given",
    "importers": "ONNX operators in torch",
    "pairs": "Packs against dense int8, in fresh processes",
    "tflite": "ONNX files as TFLite files",
    "kinds": "Convolutions and recurrent layers on real digits",
    "tiny": "MLPerf Tiny against its own int8 files",
    "dtln": "Noise suppression on a Raspberry Pi 3B+",
    "embeddings": "Embeddings of sound and of sentences",
    "ranks": "Rules for the ranks of convolutions",
    "hardening": "Wrong inputs over all commands",
    "fuzz": "Wrong bytes for every parser",
    "prices": "Predicted latencies against counts of whole files",
    "zoo": "Model files as people have them",
    "faults": "Faults on purpose",
}


def put_section(name: str, command: str, stored: Mapping[str, Any], body: str) -> None:
    """Put a section in the place of what it was, or at the end; the rest of the page stays as it is."""
    line = f"`{command}`, on {machine_line(stored['machine'])}"
    section = f"## {HEADINGS[name]}\n\n{line}\n\n{body.strip()}\n"
    write(RESULTS_PAGE, with_section(RESULTS_PAGE.read_text(), section))


def with_section(page: str, section: str) -> str:
    """The page with the section in the place of the one of the same heading, or at its end."""
    heading = section.partition("\n")[0]
    head, *sections = re.split(r"^(?=## )", page.rstrip("\n") + "\n\n", flags=re.MULTILINE)
    headings = [each.partition("\n")[0] for each in sections]
    at = headings.index(heading) if heading in headings else len(sections)
    sections[at : at + 1] = [f"{section}\n"]
    return "".join([head, *sections]).rstrip("\n") + "\n"
