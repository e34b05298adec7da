"""GPT-3."""

from typing import Any

from models.config import Architecture
from models.zoo.base import by_turns, decoder_only, with_mixer
from models.zoo.gpt2 import OWN
from models.zoo.registry import family_of


@family_of("gpt3", vocab=50_257, length=2_048, window=256, **OWN)
def gpt3(**settings: Any) -> Architecture:
    """GPT-3 (Brown et al. 2020): GPT-2 whose every second block sees only a band of `window` keys.

    The paper names "alternating dense and locally banded sparse attention patterns" (section 2.1) and not how wide the
    band is. No weights were released, so there are no published sizes to compare with.
    """
    base = decoder_only(**settings)
    (banded,) = base.decoder.pattern
    return by_turns(base, (with_mixer(banded, window=None), banded))
