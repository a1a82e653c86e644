"""The active LoRAs of a pipeline: loaded for a request, and taken out before requests with others.

All or nothing: `worker.loras` matches every weight of a file with a layer before the first one changes. After any
failure no LoRA is active. The pipeline's own weights never change, so without a LoRA its images stay the same to the
bit. Imports torch.
"""

from typing import Any

from common.catalog.catalog import Model
from common.catalog.loras import LoraUse
from common.errors import LoraRefused
from worker.loras import sentence
from worker.loras.adding import Added
from worker.loras.changes import Change, changes
from worker.loras.files import LoraFiles
from worker.loras.names import Place


class LoraAdapters:
    """The active LoRAs of one pipeline of diffusers."""

    def __init__(self, model: Model, pipe: Any) -> None:
        self._model = model
        self._pipe = pipe
        self._files = LoraFiles()
        self._active: tuple[LoraUse, ...] = ()
        self._added: list[Added] = []

    def activate(self, uses: tuple[LoraUse, ...]) -> None:
        """Make these LoRAs active, and no others. Raises LoraRefused, or RuntimeError when memory runs out."""
        if uses == self._active:
            return
        self.deactivate()
        of_layers: dict[Place, list[tuple[Change, float]]] = {}
        for use in uses:
            for place, change in self._load(use.name).items():
                of_layers.setdefault(place, []).append((change, use.weight))
        try:
            for place, changes_there in of_layers.items():
                layer = self._pipe.components[place.component].get_submodule(place.module)
                self._added.append(Added(layer, changes_there))
        except BaseException:
            self.deactivate()
            raise
        self._active = uses

    def deactivate(self) -> None:
        self._active = ()
        while self._added:
            self._added.pop().remove()

    def _load(self, name: str) -> dict[Place, Change]:
        lora, model = self._model.loras.get(name), self._model.name
        if lora is None:
            raise LoraRefused(sentence("lora_unknown", lora=name, model=model))
        weights, settings = self._files.read(lora)
        return changes(self._pipe, model, lora, weights, settings)
