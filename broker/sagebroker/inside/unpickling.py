"""Reads the records that `pickling` writes; by necessity around what cannot be read any more."""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, NamedTuple, Protocol

from .pickling import read_buffers
from .reducers import walk
from .wording import reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


class Record(NamedTuple):
    """What was written as one."""

    kind: str
    name: str
    value: Any
    lost: str
    """Why the value is not what it was; empty if it is."""


class Gate(Protocol):
    """Is told of each record before it is read, and that it has been read."""

    def enter(self, name: str) -> None:
        """The record of that name is about to be read."""

    def leave(self) -> None:
        """It has been read, or could not be."""


def read_strictly(data: BinaryIO, buffers: BinaryIO, gate: Gate) -> Iterator[Record]:
    """Read all records; the quick way.

    Raises:
        BaseException: Whatever the objects raise when they are made.
    """
    unpickler = pickle.Unpickler(data, buffers=read_buffers(buffers))
    unpickler.load()  # the namespace's stand-in
    while data.peek(1):  # type: ignore[attr-defined]
        kind, name = unpickler.load()
        gate.enter(name)
        try:
            value = unpickler.load()[0]
        finally:
            gate.leave()
        yield Record(kind, name, value, "")


def read_around(
    data: BinaryIO, buffers: BinaryIO, namespace: dict[str, Any], skip: dict[str, str], gate: Gate
) -> Iterator[Record]:
    """Read what can be read; the slow way.

    Args:
        data: The stream of pickles.
        buffers: The large buffers.
        namespace: The user's global variables.
        skip: Names of records of which no object may be made, with the reason.
        gate: Is told of each record.
    """
    unpickler = TolerantUnpickler(data, read_buffers(buffers), namespace)
    unpickler.load()
    while data.peek(1):  # type: ignore[attr-defined]
        kind, name = unpickler.load()
        unpickler.refusal = skip.get(name, "")
        gate.enter(name)
        try:
            value = unpickler.load()[0]
        finally:
            gate.leave()
            unpickler.refusal = ""
        yield Record(kind, name, value, unpickler.loss_in(value))


class Lost:
    """Stands for an object that could not be made; takes whatever a pickle does to it."""

    def __init__(self, reason: str, args: Any = ()) -> None:
        self.reason = reason
        self.args = args

    def __setitem__(self, key: Any, value: Any) -> None:
        """Forget it."""

    def append(self, item: Any) -> None:
        """Forget it."""

    def extend(self, items: Any) -> None:
        """Forget them."""

    add = append
    update = extend


# That of the standard library in Python: the one in C cannot be told what to do after an error.
_PythonUnpickler: Any = pickle._Unpickler  # noqa: SLF001


class TolerantUnpickler(_PythonUnpickler):  # type: ignore[misc]
    """Puts a `Lost` where an object cannot be made and goes on, so that no later record suffers.

    Args:
        file: The stream of pickles.
        buffers: The large buffers.
        namespace: The user's global variables.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_PythonUnpickler.dispatch)

    def __init__(self, file: Any, buffers: Any, namespace: dict[str, Any]) -> None:
        super().__init__(file, buffers=buffers)
        self._namespace = namespace
        self._broken: dict[int, tuple[Any, str]] = {}
        """By identity: objects that were made but not filled, and why."""
        self._losses = False
        self.refusal = ""
        """Why no object of this record may be made; empty if they may."""

    def loss_in(self, value: Any) -> str:
        """Why something in the value is missing; empty if nothing is."""
        if not self._losses:
            return ""
        for item in walk(value, beyond=self._namespace, attributes=True):
            if isinstance(item, Lost):
                return item.reason
            if id(item) in self._broken:
                return self._broken[id(item)][1]
        return ""

    def find_class(self, module: str, name: str) -> Any:
        """A global, or `Lost`."""
        return self._attempt(super().find_class, (module, name))

    def _attempt(self, call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        loss = self.refusal or self.loss_in((call, args))
        if not loss:
            try:
                return call(*args)
            except Exception as error:  # noqa: BLE001 - of the user's classes; told with the name
                loss = reason_of(error)
        self._losses = True
        return Lost(loss, args)

    def _breaks(self, half_made: Any, reason: str) -> None:
        self._losses = True
        self._broken[id(half_made)] = (half_made, reason)

    def _load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._attempt(self.stack[-1], args)

    def _load_newobj(self) -> None:
        args = self.stack.pop()
        kind = self.stack.pop()
        self.append(self._attempt(_new, (kind, args, {})))

    def _load_newobj_ex(self) -> None:
        keywords = self.stack.pop()
        args = self.stack.pop()
        kind = self.stack.pop()
        self.append(self._attempt(_new, (kind, args, keywords)))

    def _load_build(self) -> None:
        made, state = self.stack[-2:]
        loss = self.refusal or self.loss_in(state)
        if loss or isinstance(made, Lost):
            self.stack.pop()
            self._breaks(made, loss)
            return
        try:
            _PythonUnpickler.load_build(self)
        except Exception as error:  # noqa: BLE001 - of the user's classes; told with the name
            self._breaks(made, reason_of(error))

    def _load_pop(self) -> None:
        # A setter of state is called for its effect on its first argument only.
        if self.stack and isinstance(self.stack[-1], Lost) and self.stack[-1].args:
            self._breaks(self.stack[-1].args[0], self.stack[-1].reason)
        _PythonUnpickler.load_pop(self)

    def _load_setitems(self) -> None:
        items = self.pop_mark()
        for at in range(0, len(items), 2):
            self._fill("__setitem__", items[at : at + 2])

    def _load_setitem(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self._fill("__setitem__", (key, value))

    def _load_additems(self) -> None:
        for item in self.pop_mark():
            self._fill("add", (item,))

    def _fill(self, method: str, args: Sequence[Any]) -> None:
        container = self.stack[-1]
        try:
            getattr(container, method)(*args)
        except Exception as error:  # noqa: BLE001 - of the user's classes; told with the name
            self._breaks(container, reason_of(error))

    dispatch[pickle.REDUCE[0]] = _load_reduce
    dispatch[pickle.NEWOBJ[0]] = _load_newobj
    dispatch[pickle.NEWOBJ_EX[0]] = _load_newobj_ex
    dispatch[pickle.BUILD[0]] = _load_build
    dispatch[pickle.POP[0]] = _load_pop
    dispatch[pickle.SETITEMS[0]] = _load_setitems
    dispatch[pickle.SETITEM[0]] = _load_setitem
    dispatch[pickle.ADDITEMS[0]] = _load_additems


class _Maker(pickle.Unpickler):
    """Makes an object as the unpickler in C does, which asks the type and not its ``__new__``.

    For Sage's dynamic classes that makes a difference.
    """

    PROGRAM = (
        pickle.PROTO
        + b"\4"
        + b"".join(pickle.BININT1 + bytes([at]) + pickle.BINPERSID for at in range(3))
        + pickle.NEWOBJ_EX
        + pickle.STOP
    )

    def __init__(self, *operands: Any) -> None:
        super().__init__(io.BytesIO(self.PROGRAM))
        self._operands = operands

    def persistent_load(self, pid: Any) -> Any:
        return self._operands[pid]


def _new(kind: Any, args: Any, keywords: Any) -> Any:
    return _Maker(kind, args, keywords).load()
