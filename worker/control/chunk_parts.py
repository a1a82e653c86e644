"""What a control worker has read of the next chunk of a file of prompts, step by step, until that is large enough."""

import time

from common.batches.check import CheckedLines
from common.prompt_files.lines import Step

CHUNK_BYTES = 16_000_000  # a chunk of ordinary lines has half a million
CHUNK_S = 0.5


class ChunkParts:
    """What is read of the next chunk, step by step."""

    def __init__(self) -> None:
        self.checked = list[CheckedLines]()
        self.prompts = self.planned = self._size = 0
        self._until = time.monotonic() + CHUNK_S

    def add(self, step: Step, checked: CheckedLines, variants: int) -> None:
        planned = checked.count_prompts(variants)
        self.checked.append(checked)
        self.prompts, self.planned = self.prompts + max(len(step.lines), planned), self.planned + planned
        self._size += sum(line.size for line in step.lines)

    @property
    def is_full(self) -> bool:
        return self._size >= CHUNK_BYTES or time.monotonic() > self._until
