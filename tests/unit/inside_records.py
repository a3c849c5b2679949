"""Records in memory, and objects that do not let themselves be saved or made again."""

from __future__ import annotations

import io
import pickle
from typing import Any

from sagebroker.inside import reviving, unpickling
from sagebroker.inside.pickling import CountedFile, RecordWriter

MIB = 2**20


class Written:
    """Records in memory."""

    def __init__(self, namespace: dict[str, Any], budget: int = 100 * MIB) -> None:
        self.files = (io.BytesIO(), io.BytesIO())
        self.budget = [budget]
        self._counted = [CountedFile(file, self.budget) for file in self.files]
        self.writer = RecordWriter(self._counted[0], self._counted[1], namespace)

    def write(self, **variables: Any) -> None:
        for name, value in variables.items():
            self.writer.write("variable", name, value)

    def read(
        self, namespace: dict[str, Any] | None = None, skip: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """By name: the value, or the reason for its loss as `unpickling.Lost`."""
        reviving.bind({} if namespace is None else namespace)
        data, buffers = (io.BufferedReader(io.BytesIO(f.getvalue())) for f in self.files)
        if skip is None:
            records = unpickling.read_strictly(data, buffers, Gate())
        else:
            live = reviving.live_namespace()
            records = unpickling.read_around(data, buffers, live, skip, Gate())
        return {r.name: unpickling.Lost(r.lost) if r.lost else r.value for r in records}


class Gate:
    """Lets everything pass."""

    def enter(self, name: str) -> None:
        pass

    def leave(self) -> None:
        pass


class Refuses:
    """Cannot be pickled, after something of it has been."""

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner

    def __reduce__(self) -> Any:
        return _refuse, (self.inner, _unpicklable())


def _refuse(*_: Any) -> None:
    raise AssertionError("was never written")


def _unpicklable() -> Any:
    return (item for item in [1])


def raise_no_way(*_: Any) -> None:
    raise ValueError("no way back")


class Buffered:
    """Holds its content as arrays do."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Buffered, (pickle.PickleBuffer(self.content),)


class CannotReturn:
    """Can be pickled, but not be made again."""

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner

    def __reduce__(self) -> Any:
        return raise_no_way, (self.inner,)


class HalfReturns:
    """Is made again, but cannot be filled."""

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner

    def __setstate__(self, state: Any) -> None:
        raise ValueError("no way back")
