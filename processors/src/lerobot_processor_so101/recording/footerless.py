# SPDX-License-Identifier: Apache-2.0
"""Recover a Parquet file whose writer was killed: its row groups are on the disk, its footer is not.

Row groups consist of column chunks, and these of pages, each with a header in Thrift's compact protocol. A
file that was written to its end and has the same schema tells which columns follow one another. Its footer is
copied, with the positions and sizes of the pages that are found.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MAGIC = b"PAR1"
_I16, _I64, _BINARY, _LIST, _STRUCT = 4, 6, 8, 9, 12  # kinds of Thrift; 1 and 2 are true and false
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3  # types of pages

type Struct = dict[int, tuple[int, Any, bytes]]  # number of a field: its kind, value and encoded value
type Fields = dict[int, tuple[int, int | bytes]]  # number of a field: its kind, and a number or encoded value


@dataclass
class Page:
    """A page: position, sizes in bytes with header, number of values."""

    kind: int
    start: int
    end: int
    uncompressed: int
    values: int


def recover(path: Path, template: Path, target: Path) -> int:
    """Write a copy of a file without footer, with its complete row groups and a footer; return their number.

    Args:
        template: a file of the same schema and writer, with one row in one row group.
    """
    data = template.read_bytes()
    footer = _Reader(data, len(data) - 8 - int.from_bytes(data[-8:-4], "little")).struct()
    (group,) = _items(footer, 4)
    columns = [chunk[3][1] for chunk in _items(group, 1)]
    if path.stat().st_size <= len(_MAGIC):
        return 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        groups = list(_find_groups(list(_find_pages(mapped)), columns))
        end = groups[-1][1][-1][-1].end if groups else len(_MAGIC)
        content = mapped[:end]
    fields: Fields = {field: (kind, encoded) for field, (kind, _, encoded) in footer.items()}
    fields[3] = _I64, sum(rows for rows, _ in groups)
    fields[4] = _LIST, _encode_list([_describe(columns, number, *g) for number, g in enumerate(groups)])
    encoded = _encode_struct(fields)
    target.write_bytes(content + encoded + len(encoded).to_bytes(4, "little") + _MAGIC)
    return len(groups)


def _find_pages(data: mmap.mmap) -> Iterator[Page]:
    """Walk over the pages from the beginning of a file, as far as they are complete."""
    position = len(_MAGIC)
    while position < len(data):
        reader = _Reader(data, position)
        try:
            header = reader.struct()
            kind, uncompressed, compressed = (header[field][1] for field in (1, 2, 3))
            details = header[{_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}[kind]][1]
        except (IndexError, KeyError):  # the writer was killed in a header, or something else begins here
            return
        end = reader.position + compressed
        if end > len(data):
            return
        yield Page(kind, position, end, reader.position - position + uncompressed, details[1][1])
        position = end


def _find_groups(pages: list[Page], columns: list[Struct]) -> Iterator[tuple[int, list[list[Page]]]]:
    """Yield rows and pages of each column, of complete row groups; `columns` are those of the template."""
    while pages:
        for rows in _possible_rows(pages, columns[0]):
            chunks, rest = [], pages
            for column in columns:
                chunk = _take_chunk(rest, column, rows)
                chunks.append(chunk)
                rest = rest[len(chunk) :]
            if all(chunks):
                break
        else:
            return
        yield rows, chunks
        pages = rest


def _possible_rows(pages: list[Page], column: Struct) -> Iterator[int]:
    """Return the numbers of rows that the first column may have; the next one shows where its pages end."""
    values = 0
    for page in pages[11 in column :]:
        if page.kind == _DICTIONARY:
            return
        values += page.values
        if values % column[5][1] == 0:
            yield values // column[5][1]


def _take_chunk(pages: list[Page], column: Struct, rows: int) -> list[Page]:
    """Return the first pages if they are the column's chunk of so many rows, otherwise none."""
    wanted = rows * column[5][1]
    for number, page in enumerate(pages):
        if (page.kind == _DICTIONARY) != (number == 0 and 11 in column):
            return []
        wanted -= page.values if page.kind != _DICTIONARY else 0
        if wanted <= 0:
            return pages[: number + 1] if wanted == 0 else []
    return []


def _describe(columns: list[Struct], number: int, rows: int, chunks: list[list[Page]]) -> bytes:
    """Return the encoded metadata of a row group."""
    described = []
    for column, pages in zip(columns, chunks, strict=True):
        data = [page for page in pages if page.kind != _DICTIONARY]
        numbers = {
            5: sum(page.values for page in data),
            6: sum(page.uncompressed for page in pages),
            7: pages[-1].end - pages[0].start,
            9: data[0].start,
        }
        if len(data) < len(pages):
            numbers[11] = pages[0].start
        kept = {field: column[field] for field in (1, 2, 3, 4)}  # type, encodings, path, compression
        fields: Fields = {field: (kind, encoded) for field, (kind, _, encoded) in kept.items()}
        fields |= {field: (_I64, value) for field, value in numbers.items()}
        described.append(_encode_struct({2: (_I64, 0), 3: (_STRUCT, _encode_struct(fields))}))
    group: Fields = {
        1: (_LIST, _encode_list(described)),
        2: (_I64, sum(page.uncompressed for pages in chunks for page in pages)),
        3: (_I64, rows),
        5: (_I64, chunks[0][0].start),
        6: (_I64, chunks[-1][-1].end - chunks[0][0].start),
        7: (_I16, number % 2**15),
    }
    return _encode_struct(group)


def _items(fields: Struct, field: int) -> list:
    return fields[field][1][1]


class _Reader:
    """Reads Thrift's compact protocol, without doubles, which Parquet does not use.

    Raises:
        IndexError: if the data end.
        KeyError: if they are not of this protocol.
    """

    def __init__(self, data: bytes | mmap.mmap, position: int) -> None:
        self._data, self.position = data, position

    def struct(self) -> Struct:
        fields: Struct = {}
        field = 0
        while byte := self._byte():
            kind = byte & 15
            field = field + (byte >> 4) if byte >> 4 else self._integer()
            start, value = self.position, self._value(kind)
            fields[field] = kind, value, self._data[start : self.position]
        return fields

    def _value(self, kind: int) -> Any:
        if kind in (1, 2):
            return None
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._integer()
        if kind == _BINARY:
            count = self._varint()
            end = self.position + count
            if end > len(self._data):
                raise IndexError(end)
            start, self.position = self.position, end
            return self._data[start:end]
        if kind == _LIST:
            byte = self._byte()
            count = self._varint() if byte >> 4 == 15 else byte >> 4
            of = byte & 15
            return of, [self._byte() if of in (1, 2) else self._value(of) for _ in range(count)]
        if kind == _STRUCT:
            return self.struct()
        raise KeyError(kind)

    def _byte(self) -> int:
        self.position += 1
        return self._data[self.position - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)


def _encode_struct(fields: Fields) -> bytes:
    parts, last = [], 0
    for field, (kind, value) in sorted(fields.items()):
        step = field - last
        parts.append(bytes([step << 4 | kind]) if step < 16 else bytes([kind]) + _encode_integer(field))
        parts.append(value if isinstance(value, bytes) else _encode_integer(value))
        last = field
    return b"".join(parts) + b"\0"


def _encode_list(structs: list[bytes]) -> bytes:
    count = len(structs)
    head = bytes([count << 4 | _STRUCT]) if count < 15 else bytes([0xF0 | _STRUCT]) + _encode_varint(count)
    return head + b"".join(structs)


def _encode_varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _encode_integer(value: int) -> bytes:
    return _encode_varint(value << 1 if value >= 0 else (-value << 1) - 1)
