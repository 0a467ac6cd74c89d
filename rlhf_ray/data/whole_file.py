"""Files that are wrong as a whole: what they are instead, and the command that mends them."""

import json
import shlex
from pathlib import Path

COMPRESSED = {  # by first bytes: what it is, what unpacks it
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -d"),
    b"\xfd7zXZ\x00": ("xz", "xz -d"),
}
BY_SUFFIX = {
    ".csv": 'python -c "import sys, datasets; '
    'datasets.Dataset.from_csv(sys.argv[1]).to_json(sys.argv[2])" FILE NEW',
    ".gz": "gunzip FILE",
    ".zst": "zstd -d FILE",
    ".xz": "xz -d FILE",
    ".zip": "unzip FILE",
}
COMMON_SHARE = 0.8  # of the characters of a Chinese text, those that GB 2312 has


def mend(file: Path, command: str, *, suffix: str | None = None) -> str:
    """`command` with the path of `file` for FILE; for NEW one beside it, which ends in `suffix`."""
    new = file.with_suffix(suffix or file.suffix)
    new = new.with_stem(f"{new.stem}.new") if new == file else new
    return command.replace("FILE", shlex.quote(str(file))).replace("NEW", shlex.quote(str(new)))


def renamed(file: Path) -> str:
    """What makes a file of another suffix one that can be read."""
    command = BY_SUFFIX.get(file.suffix.lower(), "save it as one of them")
    return mend(file, command, suffix=".jsonl")


def refuse_packed(name: str, file: Path, content: bytes) -> None:
    """Raise ValueError for what no line of can be read: compressed, parquet, UTF-16."""
    for first, (kind, command) in COMPRESSED.items():
        if content.startswith(first):
            fix = mend(file, f"{command} < FILE > NEW")
            raise ValueError(f"{name} is compressed by {kind}: {fix}")
    if content.startswith(b"PK\x03\x04"):
        raise ValueError(f"{name} is a zip archive: {mend(file, 'unzip FILE')}")
    if content.startswith(b"PAR1") and content.endswith(b"PAR1"):
        raise ValueError(f"{name} is parquet: give it a name that ends in .parquet")
    if encoding := _wide(content[:4]):
        fix = mend(file, f"iconv -f {encoding} -t UTF-8 FILE > NEW")
        raise ValueError(f"{name} is {encoding} text, not UTF-8: {fix}")


def refuse_json(name: str, file: Path, content: bytes) -> None:
    """Raise ValueError for JSON that is not an object a line: one array, or objects over lines."""
    start = content.lstrip()
    if start.startswith(b"["):
        kind, command = "one JSON array", "jq -c '.[]' FILE > NEW"
        wrong = _is_array_of_objects(content)
    else:
        kind, command = "JSON over several lines", "jq -c . FILE > NEW"
        wrong = start.startswith(b"{") and _begins_with_long_object(content)
    if wrong:
        raise ValueError(
            f"{name}:1: the file is {kind}, and a row is an object on a line of its own: "
            f"{mend(file, command, suffix='.jsonl')}"
        )


def reencoded(file: Path, content: bytes) -> str:
    """The command that makes UTF-8 of a file that is GB18030, as it seems; "" for any other."""
    foreign = [line for line in content.split(b"\n") if not line.isascii()]
    if 2 * sum(map(_is_utf8, foreign)) > len(foreign):
        return ""
    try:
        characters = [c for c in content.decode("gb18030") if not c.isascii()]
    except UnicodeDecodeError:
        return ""
    common = sum(bool(c.encode("gb2312", errors="ignore")) for c in characters)
    if common < COMMON_SHARE * len(characters):
        return ""
    return mend(file, "iconv -f GB18030 -t UTF-8 FILE > NEW")


def _wide(first: bytes) -> str | None:
    """UTF-16 by its byte-order mark, or by the zero in each of two ASCII characters."""
    if first.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    zeros = [byte == 0 for byte in first]
    if zeros == [False, True] * 2:
        return "UTF-16LE"
    return "UTF-16BE" if zeros == [True, False] * 2 else None


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_array_of_objects(content: bytes) -> bool:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return bool(value) and all(isinstance(one, dict) for one in value)


def _begins_with_long_object(content: bytes) -> bool:
    """Whether the first object ends in a later line than it begins, and none has its own line.

    A line cut short and the next, broken otherwise, may make an object together.
    """
    try:
        text = content.decode("utf-8").lstrip()
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    long = isinstance(value, dict) and "\n" in text[:end]
    return long and not any(map(_is_object, text.split("\n")))


def _is_object(line: str) -> bool:
    try:
        return line.startswith("{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
