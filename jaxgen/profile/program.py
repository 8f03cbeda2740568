"""FLOPs, bytes and source line of each operation of a compiled program, from its HLO text.

Matmuls are counted from shapes (2 M N K), bytes as the least that an operation reads and writes:
of a sliced operand only the slice. Both are lower bounds; other arithmetic is not counted.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from pathlib import PurePosixPath
from typing import NamedTuple

HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
LINE = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
OPERAND = re.compile(r"%([\w.-]+)")
CALLED = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.-]+)")
BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
LOOP = re.compile(r"\bcondition=%?([\w.-]+), body=%?([\w.-]+)")
TURNS, LIMIT = re.compile(r'"known_trip_count":\{"n":"(\d+)"'), re.compile(r"^(\d+)\)")
CONTRACTED = re.compile(r'(?:lhs_contracting_dims=\{|"lhs_contracting_dimensions":\[)([\d,"]*)')
OP_NAME, FRAME = re.compile(r'op_name="([^"]*)"'), re.compile(r"stack_frame_id=(\d+)")
SOURCE = re.compile(r'source_file="([^"]*)" source_line=(\d+)')  # of JAX before stack frames
ATTENTION = re.compile(r'custom_call_target="__cudnn\$fmha\w*?(Backward)?"')
SLIDING = re.compile(r'"sliding_window_length": ?"?(\d+)')
WINDOW, LABELS = re.compile(r"window=\{([^}]*)\}"), re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
SLICES = ("dynamic-slice", "slice", "gather")
WRITES = ("dynamic-update-slice", "scatter")  # into a part of their first operand
CONTROL = ("while", "conditional", "call")  # they run other operations
FREE = (*CONTROL, "bitcast", "constant", "get-tuple-element", "parameter", "tuple", "after-all",
        "partition-id")  # fmt: skip
# Scopes that JAX adds to the names of a program.
AROUND = re.compile(r".*\(.*|while|body|closed_call|cond|branch_\d+_fun|checkpoint|rematted.*|scan"
                    r"|eval_jaxpr")  # fmt: skip
PACKAGE, EVERYWHERE = "jaxgen/", ("ops/contract.py",)  # every matmul passes through that file


class Array(NamedTuple):
    """Type and sizes of an array."""

    dtype: str
    sizes: tuple[int, ...]

    @property
    def bytes(self) -> float:
        """Bytes of its elements without padding."""
        bits = re.search(r"\d+", self.dtype)
        return prod(self.sizes) * (int(bits[0]) / 8 if bits else 1.0)


class Instruction(NamedTuple):
    """A line of a program."""

    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    text: str  # behind the opcode

    @property
    def size(self) -> float:
        """Bytes of the results."""
        return sum((array.bytes for array in self.results), 0.0)


class Operation(NamedTuple):
    """Cost and origin of one execution of an operation."""

    flops: float  # of matmuls
    dtype: str | None  # of their factors
    bytes: float
    path: str  # names of modules and of the primitive, "layers/attn/dot_general"
    note: str  # "backward" or "itself", for an operation that runs others
    line: str  # of jaxgen, "nn/feed.py:43", else of the caller of JAX; "" if unknown


@dataclass
class Program:
    """A compiled program's computations, and the Python frames of its trace."""

    computations: dict[str, dict[str, Instruction]] = field(default_factory=dict)
    roots: dict[str, str] = field(default_factory=dict)
    entry: str = ""  # where a run begins
    frames: dict[int, tuple[int, str]] = field(default_factory=dict)  # (parent or 0, "file:line")

    @property
    def names(self) -> set[str]:
        """The names of all instructions."""
        return {name for lines in self.computations.values() for name in lines}

    @property
    def control(self) -> set[str]:
        """The names of the instructions that only run others."""
        lines = [line for body in self.computations.values() for line in body.items()]
        return {name for name, one in lines if one.opcode in CONTROL}

    def runs(self, through: Collection[str] = CONTROL) -> dict[str, int]:
        """Return how often each computation runs, with the iterations of loops.

        through: the opcodes whose computations are followed, e.g. with "fusion". A loop with an
        unknown number of iterations counts once.
        """
        times_of: dict[str, int] = defaultdict(int)

        def visit(name: str, times: int) -> None:
            times_of[name] += times
            for one in self.computations[name].values():
                if one.opcode in through:
                    for other, turns in self._calls(one):
                        visit(other, times * turns)

        visit(self.entry, 1)
        return times_of

    def _calls(self, one: Instruction) -> Iterator[tuple[str, int]]:
        """Yield (computation, times) called by an instruction."""
        if loop := LOOP.search(one.text):
            count = TURNS.search(one.text)
            limits = [
                int(limit[1])
                for other in self.computations.get(loop[1], {}).values()
                if other.opcode == "constant" and (limit := LIMIT.match(other.text))
            ]
            yield loop[2], int(count[1]) if count else max(limits, default=1)
            return
        branches = " ".join(BRANCHES.findall(one.text))
        for name in (*CALLED.findall(one.text), *re.findall(r"[\w.-]+", branches)):
            if name in self.computations:
                yield name, 1

    def operations(self, names: Sequence[str]) -> dict[str, Operation]:
        """Return the operations of these names; unknown names are left out."""
        unique, operations = set(names), {}
        for lines in self.computations.values():
            for name in unique & lines.keys():
                operations[name] = self._operation(lines, lines[name])
        return operations

    def _operation(self, lines: dict[str, Instruction], one: Instruction) -> Operation:
        products = list(self._products(lines, one))
        most = max(products, key=lambda product: product[0], default=None)
        # A fusion is named after its last instruction; its largest matmul says more.
        text = one.text if most is None else most[2]
        path = OP_NAME.search(text) or OP_NAME.search(one.text)
        parts = path[1].split("/") if path else []
        backward = any(part.startswith("transpose(") for part in parts)
        return Operation(
            flops=sum(flops for flops, *_ in products),
            dtype=most[1] if most else None,
            bytes=self._bytes(lines, one),
            path="/".join(part for part in parts if not AROUND.fullmatch(part)),
            note="itself" if one.opcode in CONTROL else "backward" if backward else "",
            line=self._line(text) or self._line(one.text),
        )

    def _inside(self, one: Instruction) -> str | None:
        called = CALLED.search(one.text)
        inside = one.opcode in ("fusion", "call") and called and called[1]
        return inside if inside and inside in self.computations else None

    def _products(
        self, lines: dict[str, Instruction], one: Instruction
    ) -> Iterator[tuple[float, str, str]]:
        """Yield (FLOPs, dtype, text) of the matmuls of an instruction and its computations."""
        if inside := self._inside(one):
            for other in self.computations[inside].values():
                yield from self._products(self.computations[inside], other)
            return
        left = lines.get(one.operands[0]) if one.operands else None
        if left is None or not left.results:
            return
        array, contracted = left.results[0], CONTRACTED.search(one.text)
        if one.opcode in ("dot", "custom-call") and contracted:
            axes = [int(axis) for axis in re.findall(r"\d+", contracted[1])]
            depth = prod(array.sizes[axis] for axis in axes)
            yield 2.0 * prod(one.results[0].sizes) * depth, array.dtype, one.text
        elif attention := ATTENTION.search(one.text):
            keys = lines[one.operands[1]].results[0].sizes[1]
            products = 5 if attention[1] else 2
            yield (
                2.0 * products * prod(array.sizes) * _visible_keys(keys, one.text),
                array.dtype,
                one.text,
            )
        elif one.opcode == "convolution":
            right = lines[one.operands[1]].results[0]
            yield _convolution(array.sizes, right.sizes, one), array.dtype, one.text

    def _bytes(self, lines: dict[str, Instruction], one: Instruction) -> float:
        if one.opcode in FREE:
            return 0.0
        operands = [lines[name].size for name in one.operands if name in lines]
        if one.opcode in SLICES:
            return 2 * one.size + sum(operands[1:])
        if one.opcode in WRITES:
            return one.size + sum(operands) - 2 * operands[0] + sum(operands[1:])
        inside = self._inside(one)
        if one.opcode != "fusion" or not inside:
            return one.size + sum(operands)
        body = self.computations[inside]
        root = self.roots[inside]
        parameters = [name for name, other in body.items() if other.opcode == "parameter"]
        return sum(self._read(body, root, name) for name in parameters) + _bytes_written(body, root)

    def _read(self, body: dict[str, Instruction], root: str, name: str) -> float:
        """Return the bytes that a fusion reads of its parameter."""
        if name == root:
            return body[name].size
        total = 0.0
        for other_name, other in body.items():
            if name not in other.operands:
                continue
            if other.opcode in ("bitcast", "convert"):  # as far as the result is read
                total += self._read(body, root, other_name) * body[name].size / max(other.size, 1)
            elif other.opcode in SLICES and other.operands[0] == name:
                total += other.size
            elif other.opcode not in WRITES or name in other.operands[1:]:
                return body[name].size
        return min(total, body[name].size)

    def _line(self, text: str) -> str:
        if match := SOURCE.search(text):
            return _short(f"{match[1]}:{match[2]}")
        match = FRAME.search(text)
        number = int(match[1]) if match else 0
        innermost = ""
        while number in self.frames:
            number, line = self.frames[number]
            innermost = innermost or line
            if PACKAGE in line and not any(file in line for file in EVERYWHERE):
                return _short(line)
        return _short(innermost)


def parse(text: str) -> Program:
    """Return the Program of a compiled executable's HLO text."""
    program, tables, current = Program(), {}, None
    table: dict[int, str] | None = None
    for line in text.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            table = tables.setdefault(line, {})
        elif table is not None and line[:1].isdigit():
            number, _, rest = line.partition(" ")
            table[int(number)] = rest
        elif head := HEAD.match(line):
            table, current = None, head[2]
            program.computations[current] = {}
            program.entry = current if head[1] else program.entry
        elif current and (match := LINE.match(line)):
            root, name, results, opcode, rest = match.groups()
            program.computations[current][name] = Instruction(
                opcode, arrays(results), tuple(OPERAND.findall(rest.partition(")")[0])), rest
            )
            if root:
                program.roots[current] = name
    program.frames = _frames(tables)
    return program


def arrays(text: str) -> tuple[Array, ...]:
    """Return the arrays of an HLO type."""
    matches = ARRAY.findall(text)
    return tuple(
        Array(dtype, tuple(int(n) for n in dims.split(",") if n)) for dtype, dims in matches
    )


def _frames(tables: dict[str, dict[int, str]]) -> dict[int, tuple[int, str]]:
    def fields(row: str) -> dict[str, int]:
        return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", row)}

    names, locations = tables.get("FileNames", {}), tables.get("FileLocations", {})
    rows = {number: fields(row) for number, row in tables.get("StackFrames", {}).items()}
    # Frame 1 has no parent: its parent id tells whether this XLA counts from 0 or 1.
    offset = rows.get(1, {}).get("parent_frame_id", 0)
    frames = {}
    for number, row in rows.items():
        location = fields(locations[row["file_location_id"]])
        file = names[location["file_name_id"]].strip('"')
        parent = row.get("parent_frame_id", offset) - offset
        frames[number] = (parent if parent < number else 0, f"{file}:{location['line']}")
    return frames


def _short(line: str) -> str:
    """Return a line's path inside the package, or the last two parts of another path."""
    _, package, rest = line.rpartition(PACKAGE)
    return rest if package else "/".join(PurePosixPath(line).parts[-2:])


def _bytes_written(body: dict[str, Instruction], name: str) -> float:
    """Return the bytes that a fusion writes as its result `name`."""
    one = body[name]
    if one.opcode == "tuple":
        return sum(_bytes_written(body, operand) for operand in one.operands)
    if one.opcode == "bitcast":
        return _bytes_written(body, one.operands[0])
    if one.opcode in WRITES and len(one.operands) > 1:
        return body[one.operands[1 if one.opcode == WRITES[0] else -1]].size
    return one.size if one.opcode != "parameter" else 0.0


def _visible_keys(keys: int, text: str) -> float:
    """Return the mean number of keys that a query of cuDNN's attention sees."""
    if "CAUSAL" not in text:
        return float(keys)
    window = SLIDING.search(text)
    width = min(int(window[1]) or keys, keys) if window else keys
    return width - width * (width - 1) / (2 * keys)


def _convolution(left: Sequence[int], right: Sequence[int], one: Instruction) -> float:
    """Return the FLOPs of a convolution, the form of all matmuls on a TPU.

    Batch axes become windows mostly of padding, so only valid positions are counted.
    """
    labels, window = LABELS.search(one.text), WINDOW.search(one.text)
    if not labels:
        return 0.0
    out = one.results[0].sizes
    fields = dict(part.split("=") for part in window[1].split()) if window else {}
    space = [label for label in labels[3] if label.isdigit()]

    def each(name: str, default: int) -> list[int]:
        words = fields[name].split("x") if name in fields else [str(default)] * len(space)
        return [int(word.partition("_")[0]) for word in words]

    places = 1
    axes = zip(space, each("stride", 1), each("pad", 0), each("lhs_dilate", 1),
                each("rhs_dilate", 1), strict=True)  # fmt: skip
    for label, stride, pad, spread, hole in axes:
        sizes = (shape[names.index(label)] for shape, names in zip((left, right, out),
                 labels.groups(), strict=True))  # fmt: skip
        inputs, taps, outputs = sizes
        offsets = (o * stride + k * hole - pad for o, k in product(range(outputs), range(taps)))
        places *= sum(0 <= at < (inputs - 1) * spread + 1 and at % spread == 0 for at in offsets)
    rows, features = out[labels[3].index("b")], out[labels[3].index("f")]
    return 2.0 * rows * features * right[labels[2].index("i")] * places
