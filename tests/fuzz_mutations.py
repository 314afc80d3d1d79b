"""Damage to files, drawn by a seeded generator: bits, cuts, other JSON values, other tables, other tensors."""

import json
import random
import shutil
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

RAW = "\ue000"  # stands before JSON that json.dumps would not write
RAW_VALUES = [
    "NaN", "-Infinity", "1e999", "1e400", "-0", "1" * 5_000, "", "x", '{"a": 1, "a": 2}', r'"\ud800"', r'"a\ud83d"',
    r'"\u001b[31mred\u0007"', r'"one\nERROR line"', '"\u202e"', "[" * 60 + "]" * 60, "[" * 20_000 + "]" * 20_000,
    '{"a":' * 3_000 + "1" + "}" * 3_000,
]  # fmt: skip
VALUES = [
    None, True, False, 0, -1, -5, 1, 3, 2**31, 2**63, 10**30, 10**12, 1e308, -1e308, 0.5, 1e-320, "", "x", "5", "null",
    "../../etc/passwd", "/etc/passwd", ".", "..", "a/b", "\x00", "\x1b[31m", "é", "a" * 10_000, [], {}, [1], [[1]],
    [None], ["x"], {"x": 1}, {"": None}, [[[]]], [{}],
]  # fmt: skip
WHOLE_JSON = [*map(json.dumps, VALUES), *RAW_VALUES]
BOMB = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9 if i else ['x'] * 9)}]" for i in range(12))
WHOLE_YAML = [BOMB, "a: b: c", "- x", "{{{", "!!python/object:os.system x", "x: !!binary a", "1: 2", "? [a]\n: b"]
DAMAGES = ["bit", "bits", "cut", "empty", "delete", "twice", "insert", "zeros", "swap", "bom", "folder"]
KEYS = ["", "x", "type", "model_type", "auto_map", "__class__", "\x1b[31m", "a" * 300, "é"]


class Mutation(NamedTuple):
    """What was done to which file; the names within it that a refusal may speak of, instead of the file."""

    path: Path
    what: str
    keys: tuple[str, ...] = ()

    def __str__(self):
        return f"{self.path.name}: {self.what}"


def mutate(path: Path, generator: random.Random) -> Mutation:
    """Damage a file in place; its form decides how."""
    by_form = {".json": mutate_json, ".yaml": mutate_yaml, ".jsonl": mutate_json_lines, ".parquet": mutate_parquet,
               ".safetensors": mutate_header, ".md": mutate_card}  # fmt: skip
    kind = by_form.get(path.suffix, mutate_bytes)
    if generator.random() < 0.25:
        kind = mutate_bytes
    try:
        return kind(path, generator)
    except (IndexError, KeyError):  # nothing there to choose from
        return mutate_bytes(path, generator)


def mutate_bytes(path: Path, generator: random.Random) -> Mutation:
    content = bytearray(path.read_bytes())
    found = places(json.loads(content)) if path.suffix == ".yaml" else ()  # settings may come from several places
    keys = tuple(key for place in found for key in place if isinstance(key, str))
    place = generator.randrange(len(content) or 1)
    how = generator.choice(DAMAGES)
    if how == "bit" and content:
        content[place] ^= 1 << generator.randrange(8)
    elif how == "bits" and content:
        for _ in range(20):
            content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    elif how == "cut":
        del content[place:]
    elif how == "empty":
        content.clear()
    elif how == "twice":
        content += bytes(content)
    elif how == "insert":
        content[place:place] = generator.randbytes(generator.randrange(1, 30))
    elif how == "zeros":
        content[place : place + 64] = bytes(len(content[place : place + 64]))
    elif how == "bom":
        content[:0] = generator.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\x1b[31m", b"\x00"])
    elif how == "swap":
        others = sorted(other for other in path.parent.iterdir() if other.is_file() and other != path)
        content[:] = generator.choice(others).read_bytes() if others else b""
    if how in ("delete", "folder"):
        path.unlink()
    if how == "folder":
        path.mkdir()
    if how not in ("delete", "folder"):
        path.write_bytes(content)
    return Mutation(path, f"{how} at {place}", keys)


def places(value, place=()) -> list[tuple]:
    """Every place within JSON, as keys and indexes from the root; of long lists and objects some."""
    found = [place]
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in list(inner)[:40]:
        found += places(each, (*place, key))
    return found


def at(value, place):
    for key in place:
        value = value[key]
    return value


def mutate_value(value, generator: random.Random):
    """Return JSON with one place changed, what was done, and the keys on the way there."""
    *way, last = generator.choice(places(value)[1:])
    holder, keys = at(value, way), tuple(key for key in (*way, last) if isinstance(key, str))
    how = generator.choice(["value", "value", "raw", "delete", "rename", "add", "twice", "wrap", "other"])
    if how == "value":
        holder[last] = new = generator.choice(VALUES)
        keys += (new,) if isinstance(new, str) and len(new) > 100 else ()  # too long for a file's name
        return value, f"{(*way, last)} = {str(new)[:30]!r}", keys
    if how == "raw":
        holder[last] = RAW + (new := generator.choice(RAW_VALUES))
        return value, f"{(*way, last)} = raw {new[:30]!r}", keys
    if how == "wrap":
        holder[last] = [holder[last]]
    elif how == "other":
        holder[last] = json.loads(json.dumps(at(value, generator.choice(places(value)))))
    elif how == "delete":
        del holder[last]
    elif how in ("rename", "add") and isinstance(holder, dict):
        new = generator.choice([*KEYS, str(last).upper(), f"{last}s"])
        holder[new] = holder.pop(last) if how == "rename" else generator.choice(VALUES)
        keys = (*keys, new)
    elif how == "twice" and isinstance(holder, dict):
        holder[RAW + str(last)] = holder[last]
    elif isinstance(holder, list):
        holder.append(holder[last])
    return value, f"{how} {(*way, last)}", keys


def dumps(value, **how) -> str:
    """JSON text, with what RAW marks written as it is."""
    text = json.dumps(value, **how)
    for raw in RAW_VALUES:
        text = text.replace(json.dumps(RAW + raw), raw)
    return text.replace(json.dumps(RAW)[1:-1], "")


def mutate_json(path: Path, generator: random.Random, wholes=WHOLE_JSON, share=0.08, indent=2) -> Mutation:
    """A place within the file, or by this share all of it."""
    value = json.loads(path.read_text())
    if generator.random() < share:
        text = generator.choice(wholes)
        path.write_text(text)
        return Mutation(path, f"all of it is {text[:30]!r}")
    value, what, keys = mutate_value(value, generator)
    path.write_text(dumps(value, indent=indent))
    return Mutation(path, what, keys)


def mutate_yaml(path: Path, generator: random.Random) -> Mutation:
    """Of YAML that is written as JSON."""
    return mutate_json(path, generator, WHOLE_YAML, share=0.1, indent=None)


def mutate_card(path: Path, generator: random.Random) -> Mutation:
    """A card's front matter."""
    _, head, text = path.read_text().split("---\n", 2)
    value, what, keys = mutate_value(json.loads(json.dumps(yaml.safe_load(head), default=str)), generator)
    path.write_text(f"---\n{dumps(value)}\n---\n{text}")
    return Mutation(path, what, keys)


def mutate_json_lines(path: Path, generator: random.Random) -> Mutation:
    lines = path.read_text().splitlines()
    number = generator.randrange(len(lines))
    value, what, keys = mutate_value(json.loads(lines[number]), generator)
    lines[number] = dumps(value)
    path.write_text("\n".join(lines) + "\n")
    return Mutation(path, f"line {number + 1}: {what}", keys)


def mutate_parquet(path: Path, generator: random.Random) -> Mutation:
    table = pq.read_table(path)
    name = generator.choice(table.column_names)
    column, number = table.column(name), table.column_names.index(name)
    kinds = "drop rename null nulls integers nested double empty view binary struct dictionary"
    how = generator.choice(kinds.split())
    new = {
        "null": [None, *column.to_pylist()[1:]],
        "nulls": [None] * len(table),
        "integers": list(range(len(table))),
        "nested": [[[1]]] * len(table),
        "struct": [{"x": 1}] * len(table),
        "binary": [b"\xff\xfe"] * len(table),
    }
    if pa.types.is_string(column.type):
        new |= {"view": column.cast(pa.string_view()), "dictionary": column.dictionary_encode()}
    if how == "drop":
        table = table.drop_columns([name])
    elif how == "rename":
        table = table.rename_columns([f"{each}s" if each == name else each for each in table.column_names])
    elif how == "double":
        table = table.append_column(name, column)
    elif how == "empty":
        table = table.slice(0, 0)
    elif how in new:
        table = table.set_column(number, name, [new[how]] if isinstance(new[how], list) else new[how])
    pq.write_table(table, path)
    return Mutation(path, f"{how} of column {name}", (name, *table.column_names))


def mutate_header(path: Path, generator: random.Random) -> Mutation:
    """Of safetensors: its JSON header, or a number that is not finite in its data."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    how = generator.choice(["header", "header", "nan", "length", "shuffle"])
    if how == "nan" and len(data) > 4:
        place = 4 * generator.randrange(len(data) // 4)
        data = data[:place] + b"\xff\xff\xff\xff" + data[place + 4 :]
        what, keys = f"NaN at {place}", ()
    elif how == "length":
        new = generator.choice([0, 1, 2**31, 2**63, 2**64 - 1, length - 1, length + 8])
        path.write_bytes(new.to_bytes(8, "little") + content[8:])
        return Mutation(path, f"header of {new} bytes")
    elif how == "shuffle":
        names = sorted(set(header) - {"__metadata__"})
        one, other = generator.sample(names, 2) if len(header) > 2 else (*header, *header)[:2]
        header[one], header[other] = header[other], header[one]
        what, keys = f"{one} and {other} change places", (one, other)
    else:
        header, what, keys = mutate_value(header, generator)
    text = dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return Mutation(path, what, keys)


def copy(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target, symlinks=True))
