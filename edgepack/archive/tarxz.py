"""Files as the bytes of a `.tar.xz` with a list of SHA-256 hashes inside, and back.

Any tool opens one: `tar -xf model.onnx.tar.xz && sha256sum -c SHA256SUMS`. One that comes from a stranger is held
against what it may be before anything is made of it: see `read`.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import re
import tarfile
from collections.abc import Mapping

SUMS = "SHA256SUMS"
MAX_BYTES = 4 * 2**30
MAX_RATIO, SLACK_BYTES = 1024, 64 * 2**20
"""What an archive holds is at most so many times its own bytes, and some: no decompression bombs."""
MAX_NAME_BYTES = 100
DECODER_BYTES = 128 * 2**20
"""Memory that a decoder may ask for; that of `xz -9` takes 65 MiB."""

_MAGIC = b"\xfd7zXZ\x00"
_BLOCK = tarfile.BLOCKSIZE
_CONTEXTS = ((3, 0), (2, 2))
"""(lc, lp) of LZMA: what xz does by itself, which suits integers, and with a model for each byte of a float."""
_SUM = re.compile(r"([0-9a-f]{64})  (.+)")


def write(files: Mapping[str, bytes]) -> bytes:
    """The archive: regular files in the order given, without times and owners, behind the list of their hashes.

    The same files give the same bytes, as long as the version of liblzma is the same.

    Args:
        files: by plain name.

    Raises:
        ValueError: a name is a path, or no archive of edgepack holds so much.
    """
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT, encoding="utf-8") as tar:
        for name, content in {SUMS: sums.encode(), **files}.items():
            check_name(name)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    content = packed.getvalue()
    archive = min((_compressed(content, *context) for context in _CONTEXTS), key=len)
    most = largest(len(archive))
    if len(content) > most:
        raise ValueError(f"found {len(content)} bytes of files, expected at most {most} in {len(archive)} bytes")
    return archive


def read(archive: bytes) -> dict[str, bytes]:
    """What the archive holds, by name, without the list of hashes, each file held against its own.

    Raises:
        ValueError: no such archive, a damaged one, one that holds more than `largest` allows, anything but regular
            files without a folder, a name twice, or other bytes than its hashes are of.
    """
    files = _members(_decompressed(archive))
    sums = _sums(files.pop(SUMS, None))
    if set(sums) != set(files):
        raise ValueError(f"found the files {_listed(files)}, expected those in {SUMS}: {_listed(sums)}")
    for name, content in files.items():
        found = hashlib.sha256(content).hexdigest()
        if found != sums[name]:
            raise ValueError(f"{name}: found the SHA-256 {found}, expected {sums[name]}")
    return files


def largest(archive_bytes: int) -> int:
    """How many bytes an archive of this size may hold at most."""
    return min(MAX_BYTES, SLACK_BYTES + MAX_RATIO * archive_bytes)


def _compressed(content: bytes, lc: int, lp: int) -> bytes:
    # A dictionary that is no larger than what it is for keeps the decoder's memory small as well.
    size = min(max(len(content), 4096), 64 * 2**20)
    lzma2 = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": lc, "lp": lp, "dict_size": size}
    # The hashes are the check; every decoder knows CRC-32, as those of small boards do not know each other check.
    return lzma.compress(content, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=[lzma2])


def _decompressed(archive: bytes) -> bytes:
    if not archive.startswith(_MAGIC):
        raise ValueError(f"found {len(archive)} bytes that begin with {archive[:8]!r}, expected an xz file")
    most = largest(len(archive))
    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=DECODER_BYTES)
    try:
        content = decoder.decompress(archive, max_length=most + 1)
    except lzma.LZMAError as err:
        raise ValueError(f"it is damaged, or no xz file of edgepack: {err}") from err
    if len(content) > most:
        raise ValueError(f"it holds more than {most} bytes, the most that {len(archive)} bytes of edgepack hold")
    if not decoder.eof:
        raise ValueError(f"found {len(archive)} bytes, expected more: it is cut short")
    if decoder.unused_data:
        raise ValueError(f"found {len(decoder.unused_data)} bytes behind its end")
    return content


def _members(tar: bytes) -> dict[str, bytes]:
    """Regular files alone. Headers are read one by one: `tarfile` by itself follows extensions, however deep."""
    files: dict[str, bytes] = {}
    start = 0
    while (header := tar[start : start + _BLOCK]).strip(b"\0"):
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as err:
            raise ValueError(f"byte {start}: found no header of a file in it: {err}") from err
        check_name(member.name)
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise ValueError(
                f"{member.name}: found a link, folder, device or other kind {member.type!r}, expected a file"
            )
        if member.name in files:
            raise ValueError(f"{member.name}: found it twice")
        start += _BLOCK
        if not 0 <= member.size <= len(tar) - start:
            raise ValueError(f"{member.name}: found {len(tar) - start} bytes, expected {member.size}")
        files[member.name] = tar[start : start + member.size]
        start += -(-member.size // _BLOCK) * _BLOCK
    if len(tar) < start + 2 * _BLOCK or tar[start:].strip(b"\0"):
        raise ValueError(f"byte {start}: expected zeros to the end, two blocks or more")
    return files


def _sums(content: bytes | None) -> dict[str, str]:
    if content is None:
        raise ValueError(f"found no {SUMS} in it")
    sums: dict[str, str] = {}
    for line in content.decode(errors="replace").splitlines():
        matched = _SUM.fullmatch(line)
        if matched is None or matched[2] in sums:
            raise ValueError(f"{SUMS}: found the line {line[:100]!r}, expected a hash and a name that is not there yet")
        sums[matched[2]] = matched[1]
    return sums


def check_name(name: str) -> None:
    """That this is a file's name and no path, wherever it is written."""
    good = (
        name.isprintable() and not name.startswith(".") and not set(name) & set('/\\:*?"<>|') and name == name.strip()
    )
    if not good or not 0 < len(name.encode(errors="replace")) <= MAX_NAME_BYTES:
        raise ValueError(f"found the file name {name[:80]!r}, expected one without a folder")


def _listed(names: Mapping[str, object]) -> str:
    shown = ", ".join(sorted(names)[:5]) or "none"
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
