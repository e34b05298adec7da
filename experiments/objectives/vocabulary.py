"""Which token ids mean what to an objective: specials, ordinary tokens, and the reserved ids behind them."""

from dataclasses import dataclass
from typing import Protocol, Self

from jaxtyping import Array, Bool, Int


class Ids(Protocol):
    """What a tokenizer tells of its ids (`experiments.data.tokenizer.Tokenizer` does)."""

    pad: int
    bos: int
    eos: int
    unk: int

    @property
    def vocab(self) -> int:
        """Number of ids, reserved ones included."""

    @property
    def extra(self) -> int:
        """Ids reserved at the end of the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The ids of a tokenizer: `first` specials, ordinary tokens, and at the end `extra` ids reserved for objectives.

    The reserved ids are taken from both ends: the first is the mask, those after it name denoisers (the modes of UL2);
    sentinels count down from the last, as T5's do.

    Attributes:
        size: number of ids, reserved ones included.
        extra: reserved ids.
        pad: fills a row up.
        bos: begins a document.
        eos: ends a document, or a target.
        first: id of the first ordinary token.

    Raises:
        ValueError: if there is no room for an ordinary token, or a special is not below `first`.
    """

    size: int
    extra: int = 0
    pad: int = 0
    bos: int = 1
    eos: int = 2
    first: int = 4

    def __post_init__(self):
        if self.extra < 0 or self.first >= self.end:
            raise ValueError(
                f"vocabulary: {self.size} ids, of which {self.first} specials and {self.extra} reserved, leave no token"
            )
        if max(self.pad, self.bos, self.eos) >= self.first:
            raise ValueError(f"vocabulary: pad, bos and eos must be below the first ordinary token, {self.first}")

    @classmethod
    def of(cls, tokenizer: Ids) -> Self:
        """The ids of a tokenizer whose specials come first."""
        specials = {"pad": tokenizer.pad, "bos": tokenizer.bos, "eos": tokenizer.eos}
        first = 1 + max(*specials.values(), tokenizer.unk)
        return cls(size=tokenizer.vocab, extra=tokenizer.extra, first=first, **specials)

    @property
    def end(self) -> int:
        """One past the last ordinary token."""
        return self.size - self.extra

    @property
    def mask(self) -> int:
        """The token that stands for a hidden one."""
        return self.mode(-1)

    def mode(self, number: int) -> int:
        """The token that names a denoiser, counted from 0.

        Raises:
            ValueError: if so many ids are not reserved.
        """
        if number + 1 >= self.extra:
            raise ValueError(
                f"the objective needs {number + 2} reserved ids and the vocabulary has {self.extra}; "
                "reserve more when the data is prepared (--data.extra)"
            )
        return self.end + 1 + number

    def sentinels(self, count: int, *, modes: int = 0) -> range:
        """The ids that stand for the first, second, ... span cut out, beside the mask and so many modes.

        Raises:
            ValueError: if so many ids are not reserved.
        """
        self.mode(count + modes - 1)
        return range(self.size - 1, self.size - 1 - count, -1)

    def ordinary(self, tokens: Int[Array, "*shape"]) -> Bool[Array, "*shape"]:
        """Which tokens stand for text."""
        return (tokens >= self.first) & (tokens < self.end)
