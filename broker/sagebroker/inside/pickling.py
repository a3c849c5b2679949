"""A namespace as a stream of records that share their objects.

Every variable is a record of its own, written by one pickler, so that an object of two variables is
written once and is one object again when one unpickler has read both. A record that cannot be
written is taken back as if it had never been begun.

Functions of cells are bound to the live namespace of the kernel that reads them: a global that
changes later changes for them, too.
"""

from __future__ import annotations

import pickle
import types
from typing import TYPE_CHECKING, Any, BinaryIO

from . import reducers, reviving
from .reducers import UnsavableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

try:
    from cloudpickle import Pickler as _BasePickler

    BY_VALUE = True
except ImportError:
    _BasePickler = pickle.Pickler
    BY_VALUE = False
"""Whether what is defined in cells can be saved; needs cloudpickle in the image."""

PROTOCOL = 5
"""The first with out-of-band buffers; known to all Pythons from 3.8."""

BUFFER_BYTES = 2**20
"""Buffers from this size on go to a file of their own, for pickle would copy them first."""

LENGTH_BYTES = 8
"""Of the length before each buffer."""


class LimitError(Exception):
    """The files would be larger than allowed."""


class StorageError(Exception):
    """The files cannot be written; unlike an OSError, none of the user's objects raises it."""


class CountedFile:
    """A binary file within a common budget; can be taken back to an earlier length.

    Args:
        file: Open for writing.
        budget: Bytes left, shared by several files.
    """

    def __init__(self, file: BinaryIO, budget: list[int]) -> None:
        self._file = file
        self._budget = budget
        self.length = 0

    def write(self, data: Any) -> int:
        """Append.

        Raises:
            LimitError: The budget is used up.
            StorageError: The system refuses.
        """
        size = len(data) if isinstance(data, bytes) else memoryview(data).nbytes
        if size > self._budget[0]:
            raise LimitError
        try:
            self._file.write(data)
        except OSError as error:
            raise StorageError(error.strerror or str(error)) from error
        self._budget[0] -= size
        self.length += size
        return size

    def cut(self, length: int) -> None:
        """Take back what was written beyond a length.

        Raises:
            StorageError: The system refuses.
        """
        try:
            self._file.seek(length)
            self._file.truncate()
        except OSError as error:
            raise StorageError(error.strerror or str(error)) from error
        self._budget[0] += self.length - length
        self.length = length


class NamespacePickler(_BasePickler):  # type: ignore[misc,unused-ignore]
    """A pickler for objects of one kernel's namespace.

    Args:
        file: What it writes to.
        namespace: The user's global variables.
        buffer_callback: As that of `pickle.Pickler`.
    """

    def __init__(
        self,
        file: Any,
        namespace: dict[str, Any],
        buffer_callback: Callable[[pickle.PickleBuffer], bool] | None = None,
    ) -> None:
        super().__init__(file, protocol=PROTOCOL, buffer_callback=buffer_callback)
        self._namespace = namespace
        self.sources: set[str] = set()
        """Files, mostly cells, from which the functions were compiled."""
        self._ordinary: set[type] = set()

    def reducer_override(self, obj: Any) -> Any:
        """Decide on classes, functions and whatever pickle or cloudpickle would get wrong."""
        kind = type(obj)
        if kind in self._ordinary:
            return NotImplemented
        if kind is types.FunctionType:
            return self._reduce_function(obj)
        if kind is types.MethodType:
            return self._reduce_method(obj)
        if kind is types.CellType:
            return reviving.reduce_cell(obj)
        if issubclass(kind, type):
            return self._reduce_class(obj)
        reduced = reducers.reduce_special(obj)
        if reduced is NotImplemented:
            self._ordinary.add(kind)
        return reduced

    def _reduce_function(self, function: types.FunctionType) -> Any:
        self.sources.add(function.__code__.co_filename)
        if function.__globals__ is not self._namespace:
            return super().reducer_override(function) if BY_VALUE else NotImplemented
        if not BY_VALUE:
            raise UnsavableError("cloudpickle is not installed in the image")
        return reviving.reduce_function(function, self._namespace)

    def _reduce_method(self, method: types.MethodType) -> Any:
        # By name, as pickle does: cloudpickle's way fails for methods of compiled classes.
        owner, name = method.__self__, getattr(method.__func__, "__name__", "")
        if getattr(owner, name, None) == method:
            return getattr, (owner, name)
        return types.MethodType, (method.__func__, owner)

    def _reduce_class(self, obj: type) -> Any:
        reduced = reducers.reduce_sage_class(obj)
        if reduced is not NotImplemented:
            return reduced
        if BY_VALUE:
            return super().reducer_override(obj)
        if obj.__module__ == "__main__":
            raise UnsavableError("cloudpickle is not installed in the image")
        return NotImplemented


class RecordWriter:
    """Writes records that share their objects.

    Args:
        data: For the stream of pickles.
        buffers: For large buffers, each after its length.
        namespace: The user's global variables.
    """

    def __init__(self, data: CountedFile, buffers: CountedFile, namespace: dict[str, Any]) -> None:
        self._data = data
        self._buffers = buffers
        self._pickler = NamespacePickler(data, namespace, self._take_buffer)
        # The namespace itself must not be written but be the reader's own.
        stand_in = reviving.NamespaceStandIn()
        self._pickler.dump(stand_in)
        memo = self._pickler.memo.copy()
        index, _ = memo.pop(id(stand_in))
        memo[id(namespace)] = (index, namespace)
        self._pickler.memo = memo

    @property
    def sources(self) -> set[str]:
        """Files from which the written functions were compiled."""
        return self._pickler.sources

    def write(self, kind: str, name: str, value: Any) -> None:
        """Write one record, wholly or not at all.

        Args:
            kind: What the reader shall do with it.
            name: Of the variable.
            value: Of the variable.

        Raises:
            BaseException: Whatever the objects raise when they are pickled.
        """
        head = [kind, name]
        lengths = (self._data.length, self._buffers.length)
        try:
            self._pickler.dump(head)
            self._pickler.dump([value])
        except BaseException:
            self._take_back(head, lengths)
            raise

    def _take_back(self, head: list[str], lengths: tuple[int, int]) -> None:
        memo = self._pickler.memo.copy()
        if id(head) in memo:
            first = memo[id(head)][0]
            self._pickler.memo = {key: entry for key, entry in memo.items() if entry[0] < first}
        self._data.cut(lengths[0])
        self._buffers.cut(lengths[1])

    def _take_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        """Whether pickle shall keep the buffer in its own stream."""
        with buffer.raw() as raw:
            if raw.nbytes < BUFFER_BYTES:
                return True
            self._buffers.write(raw.nbytes.to_bytes(LENGTH_BYTES, "little"))
            self._buffers.write(raw)
        return False


def read_buffers(file: BinaryIO) -> Iterator[bytearray]:
    """The buffers in the order in which they were written.

    Raises:
        EOFError: The file ends too early.
    """
    while head := file.read(LENGTH_BYTES):
        buffer = bytearray(int.from_bytes(head, "little"))
        if file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
            raise EOFError("buffers end too early")
        yield buffer
