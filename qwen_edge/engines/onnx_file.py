"""What an ONNX file says of itself, read without the onnx package: names, versions, where its weights lie.

Of the protobuf messages only the fields below are read. ONNX Runtime maps external weights as it finds them, so their
sizes are checked before it does.

Source: ONNX, onnx/onnx.proto; the wire format: Protocol Buffers, "Encoding".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from qwen_edge.errors import FormatError
from qwen_edge.files import reading

_REFETCH = "A copy that was cut off is the usual cause; fetch or export the folder again."

# Source: Protocol Buffers, "Proto Limits".
_MAX_MESSAGE_BYTES = 2**31 - 1
# A name of a file, on the systems that there are.
_MAX_LOCATION_BYTES = 255

# Field numbers.
_MODEL_IR_VERSION, _MODEL_GRAPH, _MODEL_OPSET, _MODEL_METADATA = 1, 7, 8, 14
_GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 5, 11, 12
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_TENSOR_NAME, _TENSOR_EXTERNAL = 8, 13
_VALUE_NAME = 1
_ENTRY_KEY, _ENTRY_VALUE = 1, 2


@dataclass(frozen=True, slots=True)
class ExternalTensor:
    """A tensor whose bytes lie in another file.

    Attributes:
        name: Of the initializer.
        location: The file, relative to the graph's folder.
        offset: Where its bytes begin.
        length: How many they are; 0 where the graph does not say.
    """

    name: str
    location: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFile:
    """What was read.

    Attributes:
        path: The file.
        ir_version: Of the form of the file.
        opsets: Domain of operators ("" for the standard) to version.
        inputs: Names.
        outputs: Names.
        metadata: Key to value.
        external: Tensors in other files.
    """

    path: Path
    ir_version: int
    opsets: dict[str, int]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    metadata: dict[str, str]
    external: tuple[ExternalTensor, ...]

    @property
    def data_files(self) -> tuple[Path, ...]:
        """The files with weights, sorted."""
        return tuple(self.path.parent / name for name in sorted({each.location for each in self.external}))


def read_onnx_file(path: Path) -> OnnxFile:
    """Read the names and versions in an ONNX file, and check that its external weights are all there.

    Raises:
        FormatError: It is no ONNX file, or damaged; a file of weights is missing or too short.
        OSError: It cannot be read.
    """
    if path.stat().st_size > _MAX_MESSAGE_BYTES:
        raise FormatError(f"{path} is no ONNX file: it has more than 2 GiB", hint=_REFETCH)
    try:
        with reading(path):
            file = _parse(path, memoryview(path.read_bytes()))
    except (ValueError, IndexError) as error:
        raise FormatError(f"{path} is no ONNX file, or damaged: {error}", hint=_REFETCH) from error
    if not file.outputs:
        raise FormatError(f"{path} is no ONNX file, or damaged: it has no graph", hint=_REFETCH)
    _check_external(file)
    return file


def _parse(path: Path, data: memoryview) -> OnnxFile:
    ir_version = 0
    opsets: dict[str, int] = {}
    metadata: dict[str, str] = {}
    graph = memoryview(b"")
    for number, value in _fields(data):
        if number == _MODEL_IR_VERSION:
            ir_version = _number(value)
        elif number == _MODEL_GRAPH:
            graph = _message(value)
        elif number == _MODEL_OPSET:
            entry = dict(_fields(_message(value)))
            opsets[_text(entry.get(_OPSET_DOMAIN, b""))] = _number(entry.get(_OPSET_VERSION, 0))
        elif number == _MODEL_METADATA:
            metadata.update([_entry(value)])
    inputs, outputs, external = [], [], []
    for number, value in _fields(graph):
        if number == _GRAPH_INPUT:
            inputs.append(_text(dict(_fields(_message(value))).get(_VALUE_NAME, b"")))
        elif number == _GRAPH_OUTPUT:
            outputs.append(_text(dict(_fields(_message(value))).get(_VALUE_NAME, b"")))
        elif number == _GRAPH_INITIALIZER:
            external += _external_of(_message(value))
    return OnnxFile(
        path=path,
        ir_version=ir_version,
        opsets=opsets,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        metadata=metadata,
        external=tuple(external),
    )


def _external_of(tensor: memoryview) -> list[ExternalTensor]:
    """Return where a tensor lies, as a list of one; of one inside the graph an empty list."""
    name = ""
    entries: dict[str, str] = {}
    for number, value in _fields(tensor):
        if number == _TENSOR_NAME:
            name = _text(value)
        elif number == _TENSOR_EXTERNAL:
            entries.update([_entry(value)])
    if not entries:
        return []
    return [
        ExternalTensor(
            name,
            entries.get("location", ""),
            int(entries.get("offset", "0")),
            int(entries.get("length", "0")),
        )
    ]


def _check_external(file: OnnxFile) -> None:
    for tensor in file.external:
        place = PurePosixPath(tensor.location)
        is_name = 0 < len(tensor.location.encode()) <= _MAX_LOCATION_BYTES and "\0" not in tensor.location
        if not is_name or place.is_absolute() or ".." in place.parts:
            raise FormatError(
                f"{file.path}: the weights {tensor.name[:80]!r} lie in {tensor.location[:80]!r}, outside its folder"
            )
    for path in file.data_files:
        if not path.is_file():
            raise FormatError(
                f"{file.path} has its weights in {path.name}, which is not there", hint=_REFETCH
            )
    sizes = {path: path.stat().st_size for path in file.data_files}
    for tensor in file.external:
        path = file.path.parent / tensor.location
        end = tensor.offset + tensor.length
        if tensor.offset < 0 or tensor.length < 0 or end > sizes[path]:
            raise FormatError(
                f"{path} is too short: {tensor.name!r} ends at byte {end}, the file has {sizes[path]}",
                hint=_REFETCH,
            )


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of a message: whole numbers, or the bytes of what has a length."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if key < 8:
            raise ValueError(f"a field of number 0 at byte {at}")
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of wire type {kind} at byte {at}")
        if at + size > len(data):
            raise ValueError(f"it ends inside a field of {size} bytes")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return a number of variable length, and where it ends."""
    value = shift = 0
    while shift < 64:
        if at >= len(data):
            raise ValueError("it ends inside a number")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("a number of more than 64 bits")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number stands where a message is expected")
    return value


def _number(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes stand where a number is expected")
    return value


def _text(value: int | memoryview | bytes) -> str:
    if isinstance(value, int):
        raise ValueError("a number stands where text is expected")
    return bytes(value).decode("utf-8")


def _entry(value: int | memoryview) -> tuple[str, str]:
    """Return key and value of a StringStringEntryProto."""
    fields = dict(_fields(_message(value)))
    return _text(fields.get(_ENTRY_KEY, b"")), _text(fields.get(_ENTRY_VALUE, b""))
