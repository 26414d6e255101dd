"""Many short strings in two arrays: a million paths of 30 characters take 38 MB; a list takes 90 MB."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_TAKEN_AT_ONCE = 1 << 16  # names; limits the memory for gathering their characters


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """A read-only sequence of strings."""

    text: npt.NDArray[np.uint8]  # UTF-8, one after another
    ends: npt.NDArray[np.int64]  # end of each name in `text`

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        text, ends = bytearray(), []
        for name in names:
            text += name.encode()
            ends.append(len(text))
        return cls(text=np.frombuffer(text, dtype=np.uint8), ends=np.array(ends, dtype=np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Names]) -> Names:
        """Join all names of `parts`, in this order."""
        before = np.cumsum([0, *(len(part.text) for part in parts)])
        ends = [part.ends + start for part, start in zip(parts, before[:-1], strict=True)]
        return cls(
            text=np.concatenate([np.empty(0, np.uint8), *(part.text for part in parts)]),
            ends=np.concatenate([np.empty(0, np.int64), *ends]),
        )

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = int(self.ends[index - 1]) if index else 0
        return self.text[start : int(self.ends[index])].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def take(self, positions: npt.NDArray[np.int64]) -> Names:
        """Return the names at these positions, in this order."""
        chunks = [self._take(positions[at : at + _TAKEN_AT_ONCE]) for at in range(0, len(positions), _TAKEN_AT_ONCE)]
        return Names.joined(chunks)

    def _take(self, positions: npt.NDArray[np.int64]) -> Names:
        starts = np.where(positions > 0, self.ends[positions - 1], 0)
        lengths = self.ends[positions] - starts
        ends = np.cumsum(lengths)
        characters = np.arange(int(lengths.sum())) + np.repeat(starts - (ends - lengths), lengths)
        return Names(text=self.text[characters], ends=ends)
