"""Operators: each damages one file as a random generator alone decides, and says in words what it did."""

import csv
import io
import json
import os
import random
import re
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Random = random.Random
Operator = Callable[[Path, Random, Sequence[Path]], str]
"""Damages the file; takes the file, the generator and the file's siblings; returns what was done."""

Field = tuple[str | int, ...]

OTHER_TYPES: Sequence[Any] = (None, True, 7, 1.5, "text", [], {}, [[]], {"a": 1}, [None], ["x", 3])
NUMBERS: Sequence[Any] = (
    float("nan"),
    float("inf"),
    float("-inf"),
    -1,
    -0.5,
    2.5,
    10**12,
    10**400,
    -(10**18),
    1e308,
)
TEXTS = (
    "",
    "\x1b[31mred\x1b[0m",
    "a\nb",
    "nul\x00",
    "../../../outside",
    "/dev/zero",
    "=cmd|'/C calc'!A0",
    "a | b | c",
    "<script>alert(1)</script>",
    "x" * 100_000,
    "\ud83d\ude00",
    "None",
)
DEEP = 200_000


# ------------------------------------------------------------------------------------------------ any file


def bit_flip(path: Path, random: Random, siblings: Sequence[Path]) -> str:
    """Flip one bit."""
    content = bytearray(path.read_bytes())
    if not content:
        return "nothing to flip"
    place, bit = random.randrange(len(content)), random.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {place} flipped"


def truncated(path: Path, random: Random, siblings: Sequence[Path]) -> str:
    """Cut the end off."""
    content = path.read_bytes()
    size = random.choice([random.randrange(max(1, len(content))), max(0, len(content) - random.randint(1, 20))])
    path.write_bytes(content[:size])
    return f"cut to {size} of {len(content)} bytes"


def empty(path: Path, random: Random, siblings: Sequence[Path]) -> str:
    """Leave no byte."""
    path.write_bytes(b"")
    return "emptied"


def garbage(path: Path, random: Random, siblings: Sequence[Path]) -> str:
    """Replace all, or a piece, by random bytes."""
    content = bytearray(path.read_bytes())
    start = random.choice([0, random.randrange(max(1, len(content)))])
    size = random.choice([len(content) - start, min(16, len(content) - start)])
    content[start : start + size] = random.randbytes(size)
    path.write_bytes(content)
    return f"{size} random bytes from byte {start}"


def swapped(path: Path, random: Random, siblings: Sequence[Path]) -> str:
    """Put a sibling of the same kind in its place."""
    if not siblings:
        return empty(path, random, siblings)
    other = random.choice(siblings)
    shutil.copyfile(other, path)
    return f"replaced by a copy of {other.parent.name}/{other.name}"


def linked(path: Path, random: Random, siblings: Sequence[Path]) -> str:
    """Move it away, and put a symbolic link to it in its place."""
    elsewhere = path.with_name(f"elsewhere-{path.name}") if random.random() < 0.5 else path.parent / "elsewhere.kept"
    path.rename(elsewhere)
    path.symlink_to(elsewhere.name)
    return f"a link to {elsewhere.name}"


def dangling(path: Path, random: Random, siblings: Sequence[Path]) -> str:
    """Put a symbolic link to nothing, or to itself, in its place."""
    path.unlink()
    target = random.choice(["nowhere", path.name])
    path.symlink_to(target)
    return f"a link to {target}, which is not there"


def folder(path: Path, random: Random, siblings: Sequence[Path]) -> str:
    """Put a folder in its place."""
    path.unlink()
    path.mkdir()
    if random.random() < 0.5:
        (path / "inside").write_text("x")
    return "a folder"


def pipe(path: Path, random: Random, siblings: Sequence[Path]) -> str:
    """Put a named pipe in its place, which nobody writes to."""
    path.unlink()
    os.mkfifo(path)
    return "a named pipe"


def device(path: Path, random: Random, siblings: Sequence[Path]) -> str:
    """Put a link to a device that never ends in its place."""
    path.unlink()
    path.symlink_to("/dev/zero")
    return "a link to /dev/zero"


def unreadable(path: Path, random: Random, siblings: Sequence[Path]) -> str:
    """Take the right to read it away."""
    path.chmod(0)
    return "mode 000"


ANY: dict[str, Operator] = {
    "bit flip": bit_flip,
    "truncated": truncated,
    "empty": empty,
    "garbage": garbage,
    "swapped": swapped,
    "link": linked,
    "dangling link": dangling,
    "folder": folder,
    "pipe": pipe,
    "endless device": device,
}
if os.geteuid() != 0:  # the superuser reads everything
    ANY["unreadable"] = unreadable


# ------------------------------------------------------------------------------------------------ JSON


def fields(content: Any, at: Field = ()) -> Iterator[Field]:
    """Yield the place of everything in a JSON content, below the whole."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield (*at, name)
            yield from fields(value, (*at, name))
    elif isinstance(content, list):
        for i, value in enumerate(content):
            yield (*at, i)
            yield from fields(value, (*at, i))


def value_at(content: Any, field: Field) -> Any:
    """Return what stands at a place."""
    for step in field:
        content = content[step]
    return content


def with_value(content: Any, field: Field, value: Any) -> Any:
    """Return ``content`` with ``value`` at a place."""
    if not field:
        return value
    changed = dict(content) if isinstance(content, dict) else list(content)
    changed[field[0]] = with_value(content[field[0]], field[1:], value)  # type: ignore[index]
    return changed


def without(content: Any, field: Field) -> Any:
    """Return ``content`` without what stands at a place."""
    inner = value_at(content, field[:-1])
    kept = dict(inner) if isinstance(inner, dict) else list(inner)
    del kept[field[-1]]  # type: ignore[arg-type]
    return with_value(content, field[:-1], kept)


def other_type(value: Any, random: Random) -> Any:
    """Return a value of another type than ``value``."""
    return random.choice([v for v in OTHER_TYPES if type(v) is not type(value)])


def hostile(value: Any, random: Random) -> Any:
    """Return a value that is hard to bear, mostly of the type of ``value``."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    likely = NUMBERS if number else TEXTS if isinstance(value, str) else (*NUMBERS, *TEXTS)
    return random.choice(likely if random.random() < 0.8 else (*NUMBERS, *TEXTS))


def change_json(text: str, random: Random, how: str) -> tuple[str, str]:
    """Return a JSON text with one field changed, and what was done to it."""
    content = json.loads(text)
    field = random.choice(list(fields(content)))
    shown, old = ".".join(map(str, field)), value_at(content, field)
    if how == "missing":
        return json.dumps(without(content, field), indent=1), f"{shown} is missing"
    if how == "deep":
        levels = random.choice([DEEP, 990, 5000])
        marked = json.dumps(with_value(content, field, "@deep@"), indent=1)
        return marked.replace('"@deep@"', "[" * levels + "]" * levels), f"{shown}: nested {levels} deep"
    new = other_type(old, random) if how == "type" else hostile(old, random)
    return json.dumps(with_value(content, field, new), indent=1), f"{shown}: {old!r:.60} became {new!r:.60}"


def on_json(how: str) -> Operator:
    """Return the operator that changes one field of a JSON file, or of a line of one."""

    def operate(path: Path, random: Random, siblings: Sequence[Path]) -> str:
        if path.suffix != ".jsonl":
            text, said = change_json(path.read_text(), random, how)
            path.write_text(text)
            return said
        lines = path.read_text().splitlines()
        place = random.randrange(len(lines))
        text, said = change_json(lines[place], random, how)
        lines[place] = text.replace("\n", " ")
        path.write_text("\n".join(lines) + "\n")
        return f"line {place}: {said}"

    return operate


def other_json(path: Path, random: Random, siblings: Sequence[Path]) -> str:
    """Put a JSON document of another kind in its place."""
    new = random.choice(["null", "[]", "{}", "3", '"text"', "[1, 2]", '{"a": {}}', "NaN", "[" * DEEP + "]" * DEEP])
    path.write_text(new + "\n")
    return f"the whole is {new:.20}"


def not_utf8(path: Path, random: Random, siblings: Sequence[Path]) -> str:
    """Put a byte into it that is no UTF-8."""
    content = bytearray(path.read_bytes())
    place = random.randrange(len(content))
    content[place : place + 1] = b"\xff"
    path.write_bytes(content)
    return f"byte {place} is ff"


JSON: dict[str, Operator] = ANY | {
    "wrong type": on_json("type"),
    "missing field": on_json("missing"),
    "hostile value": on_json("hostile"),
    "deep nesting": on_json("deep"),
    "other document": other_json,
    "not UTF-8": not_utf8,
}


# ------------------------------------------------------------------------------------------------ tensors of dcbench


def on_meta(how: str) -> Operator:
    """Return the operator that changes one fact of a file of tensors, and makes its digest right again."""

    def operate(path: Path, random: Random, siblings: Sequence[Path]) -> str:
        from dcbench_tesla.records.store import load_tensors, save_tensors

        tensors, meta = load_tensors(path)
        text, said = change_json(json.dumps(meta), random, how)
        while re.match(r"lr: .* became [1-9.]", said):  # a learned rate can be any positive number
            text, said = change_json(json.dumps(meta), random, how)
        try:
            save_tensors(path, tensors, json.loads(text))
        except (RecursionError, ValueError):  # too deep to be written, or no text that can be
            return empty(path, random, siblings)
        return said

    return operate


_ANY_NUMBER = ("momentum.", "value.images", "images", "theta")  # tensors that can hold any finite number


def forged(path: Path, random: Random, siblings: Sequence[Path]) -> str:
    """Change a tensor, and make the digest right again."""
    from dcbench_tesla.records.store import load_tensors, save_tensors

    tensors, meta = load_tensors(path)
    name = random.choice(sorted(tensors))
    before, possible = tensors[name], ("negative", "huge") if name.startswith(_ANY_NUMBER) else ()
    said, tensors[name] = hostile_tensor(before, random)
    while said in possible:
        said, tensors[name] = hostile_tensor(before, random)
    if said == "missing":
        del tensors[name]
    save_tensors(path, tensors, meta)
    return f"{name}: {said}"


def hostile_tensor(tensor: Any, random: Random) -> tuple[str, Any]:
    """Return a word and a tensor that is not what it should be."""
    import torch

    last = tensor.numel() - 1
    number = tensor.to(torch.float32)
    changes: Mapping[str, Callable[[], Any]] = {
        "one NaN": lambda: number.flatten().index_fill(0, torch.tensor([last]), torch.nan).view(tensor.shape),
        "all infinite": lambda: torch.full_like(number, torch.inf),
        "float64": lambda: tensor.to(torch.float64),
        "float16": lambda: tensor.to(torch.float16),
        "complex": lambda: tensor.to(torch.complex64),
        "bool": lambda: tensor.to(torch.bool),
        "another shape": lambda: tensor.flatten()[: max(1, last)],
        "one more dimension": lambda: tensor[None],
        "no element": lambda: tensor.flatten()[:0],
        "negative": lambda: -1 - tensor.abs() if tensor.dtype != torch.uint8 else tensor.to(torch.int8),
        "huge": lambda: torch.full(tensor.shape, 10**12),
        "missing": lambda: tensor,
    }
    word = random.choice(sorted(changes))
    return word, changes[word]().contiguous()


TENSORS: dict[str, Operator] = ANY | {
    "wrong type": on_meta("type"),
    "missing field": on_meta("missing"),
    "hostile value": on_meta("hostile"),
    "forged tensor": forged,
}


# ------------------------------------------------------------------------------------------------ CSV, TOML, pictures


def on_csv(how: str) -> Operator:
    """Return the operator that changes one cell of a CSV file, or one column."""

    def operate(path: Path, random: Random, siblings: Sequence[Path]) -> str:
        rows = list(csv.reader(io.StringIO(path.read_text())))
        line, column = random.randrange(1, len(rows)), random.randrange(len(rows[0]))
        said = f"row {line}, column {rows[0][column]}"
        if how == "missing":
            rows = [row[:column] + row[column + 1 :] for row in rows]
        elif how == "type":
            rows[line][column] = random.choice(["text", "", "True", "1;2", "[1]", "3.5.1"])
        elif how == "ragged":
            rows[line] += ["1", "2"]
        else:
            rows[line][column] = str(random.choice([*NUMBERS[:-1], *TEXTS[:-2]]))
        path.write_text("\n".join(",".join(map(_quoted, row)) for row in rows) + "\n")
        return f"{said}: {rows[line][min(column, len(rows[line]) - 1)]!r:.40} ({how})"

    return operate


def _quoted(value: str) -> str:
    return '"' + value.replace('"', '""') + '"' if any(c in value for c in ',"\n\r') else value


CSV: dict[str, Operator] = ANY | {
    "wrong type": on_csv("type"),
    "missing field": on_csv("missing"),
    "hostile value": on_csv("hostile"),
    "ragged": on_csv("ragged"),
    "not UTF-8": not_utf8,
}


def on_toml(how: str) -> Operator:
    """Return the operator that changes one line of a TOML file."""

    def operate(path: Path, random: Random, siblings: Sequence[Path]) -> str:
        lines = path.read_text().splitlines()
        place = random.choice([i for i, line in enumerate(lines) if "=" in line])
        name = lines[place].partition("=")[0]
        news: Mapping[str, Callable[[], str]] = {
            "type": lambda: random.choice(["true", "[]", "{}", '"text"', "1.5", "[[1]]", "1979-05-27", '["a", 1]']),
            "hostile": lambda: random.choice(
                ["nan", "inf", "-1", "999999999", "1e308", "0", '"\\u001b[31m"', '"../x"']
            ),
            "deep": lambda: _brackets(random.choice([5000, 900, DEEP])),
        }
        new = news[how]()
        lines[place] = f"{name}= {new}"
        path.write_text("\n".join([*lines, ""]))
        return f"{name}= {new:.40}"

    return operate


def _brackets(levels: int) -> str:
    return "[" * levels + "]" * levels


def unknown_name(path: Path, random: Random, siblings: Sequence[Path]) -> str:
    """Add a name that does not exist."""
    name = random.choice(["stepz", "[nothing]\nx", '"\\u001b[31m"', "a.b.c.d", "[settings]\nsteps", "[method]\nx"])
    path.write_text(f"{name} = 1\n{path.read_text()}")
    return f"{name} = 1 added"


TOML: dict[str, Operator] = ANY | {
    "wrong type": on_toml("type"),
    "hostile value": on_toml("hostile"),
    "deep nesting": on_toml("deep"),
    "unknown name": unknown_name,
    "not UTF-8": not_utf8,
}


def huge_picture(path: Path, random: Random, siblings: Sequence[Path]) -> str:
    """Let the header promise far more pixels than there are."""
    content = bytearray(path.read_bytes())
    side = random.choice([60_000, 2**31 - 1, 0])
    content[16:24] = struct.pack(">II", side, side)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    path.write_bytes(content)
    return f"a header of {side} x {side}"


def other_picture(path: Path, random: Random, siblings: Sequence[Path]) -> str:
    """Put a picture of another mode, size or format in its place."""
    from PIL import Image

    mode, kind = random.choice(["1", "L", "P", "RGBA", "LA", "I;16", "CMYK"]), random.choice(["PNG", "TIFF", "GIF"])
    side = random.choice([1, 16, 300])
    if kind == "GIF" or mode == "CMYK":
        kind, mode = ("GIF", "P") if kind == "GIF" else ("TIFF", "CMYK")
    Image.new(mode, (side, side + random.choice([0, 5]))).save(path, format=kind)
    return f"a {kind} of mode {mode}, {side} wide"


PICTURE: dict[str, Operator] = ANY | {"huge header": huge_picture, "other picture": other_picture}


# ------------------------------------------------------------------------------------------------ arrays of users


def hostile_npz(path: Path, random: Random, siblings: Sequence[Path]) -> str:
    """Change one array of an archive to something no data set can be."""
    import numpy as np

    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    name = random.choice(["x_train", "y_train", "x_test", "y_test"])
    array = arrays[name]
    changes: Mapping[str, Callable[[], Any]] = {
        "NaN": lambda: np.full(array.shape, np.nan),
        "negative": lambda: array.astype(np.int64) - 1000,
        "huge": lambda: array.astype(np.int64) + 10**12,
        "text": lambda: array.astype(str),
        "objects": lambda: array.astype(object),
        "no element": lambda: array[:0],
        "one fewer": lambda: array[:-1],
        "another shape": lambda: array[..., None, None],
        "complex": lambda: array.astype(np.complex128),
        "missing": lambda: array,
    }
    word = random.choice(sorted(changes))
    arrays[name] = changes[word]()
    if word == "missing":
        del arrays[name]
    np.savez(path, **arrays)
    return f"{name}: {word}"


def huge_npz(path: Path, random: Random, siblings: Sequence[Path]) -> str:
    """Let a header inside promise 10**12 images."""
    import zipfile

    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = random.choice(sorted(members))
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({10**12}, 16, 16, 3), }}".ljust(117) + "\n"
    members[name] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + b"\0" * 100
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return f"{name}: a header of 10^12 images"


NPZ: dict[str, Operator] = ANY | {"hostile value": hostile_npz, "huge header": huge_npz}


# ------------------------------------------------------------------------------------------------ files of torch.save


class _Planted:
    """Runs a command when it is unpickled by something that trusts it."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("echo ran > planted.txt",)


def hostile_torch(path: Path, random: Random, siblings: Sequence[Path]) -> str:
    """Save something else than what should be there."""
    import torch

    content = torch.load(path, weights_only=True)
    images = torch.randn(10, 1, 8, 8)
    others: Mapping[str, Callable[[], Any]] = {
        "code": lambda: _Planted(),
        "code inside": lambda: [content, _Planted()],
        "a number": lambda: 3,
        "a text": lambda: "\x1b[31m",
        "nothing": lambda: None,
        "an empty list": list,
        "an empty dict": dict,
        "a list of tensors": lambda: [images, torch.arange(10)],
        "a state dict": lambda: {"weight": images},
        "a nested list": lambda: _nested(100),
        "images that are NaN": lambda: torch.full((10, 1, 8, 8), torch.nan),
        "images of another size": lambda: torch.randn(10, 1, 9, 8),
        "images of no number": lambda: torch.randn(0, 1, 8, 8),
        "whole numbers": lambda: torch.full((10,), 10**12),
        "expanded": lambda: torch.zeros(1, 1, 1, 1).expand(10**9, 1, 8, 8),
        "sparse": lambda: torch.eye(8).to_sparse(),
        "complex": lambda: images.to(torch.complex64),
        "buffers with NaN": lambda: [[[torch.full((4,), torch.nan)]] * 3],
        "a single trajectory": lambda: [[torch.zeros(4), torch.zeros(4)]] * 3,
    }
    word = random.choice(sorted(others))
    torch.save(others[word](), path)
    return word


def _nested(levels: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(levels):
        inner = [inner]
    return inner


TORCH: dict[str, Operator] = ANY | {"hostile value": hostile_torch}
