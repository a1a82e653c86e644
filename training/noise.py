"""Characters and words that name no attribute of a scene: they never change what a caption says."""

import random

from training import words


def _level_1() -> list[str]:
    """The 3,755 commonest hanzi, in the order of GB 2312."""
    codes = (bytes((row, cell)) for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF))
    return [hanzi for code in codes if (hanzi := code.decode("gb2312", "ignore"))]


HANZI = _level_1()
MEANINGFUL = set(
    "".join(word for names in words.COLOURS.values() for word in names)
    + "".join(word for noun in words.SHAPES.values() for word in noun.words)
    + "".join(
        word
        for group in (words.SIZES, words.PLACES, words.LANDSCAPES, words.NUMBERS)
        for names in group.values()
        for word in names
    )
    + "".join(words.BACKDROPS)
    + "色底衬后前铺青彩两二三"
)
COMMON = [hanzi for hanzi in words.IDLE if hanzi not in MEANINGFUL]
OTHERS = [hanzi for hanzi in HANZI if hanzi not in MEANINGFUL]


PLACES = {word for names in words.PLACES.values() for word in names}
PHRASES = [*words.IDIOMS, *(word for word in (*words.OTHERS, *words.AMBIGUOUS) if word not in PLACES)]


def characters(count: int, rng: random.Random) -> str:
    return "".join(rng.choice(COMMON if rng.random() < 0.6 else OTHERS) for _ in range(count))
