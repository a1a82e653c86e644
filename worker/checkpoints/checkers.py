"""The files of a safety checker of the farm's own, as its import leaves them, checked before torch reads any of them.

Every problem raises ModelRefused for the model whose images it judges. Imports no torch. The files are written by
`worker.models.checkers`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.catalog import manifest
from common.catalog.catalog import Model
from common.errors import ModelRefused
from worker.checkpoints import kinds, layout, sentence


def find(model: Model) -> Path | None:
    """The folder of the farm's checker that judges this model's images. None if its own does, or none."""
    if isinstance(model.safety_checker, bool):
        return None
    folder = model.checker.import_path if model.checker else None
    imported = manifest.read(folder) if folder else None
    if model.checker is None or folder is None or imported is None or imported.source != model.checker.source:
        raise ModelRefused(sentence("checker_not_here", model=model.name, checker=model.safety_checker))
    with refusing(model):
        layout.check_sums(model.checker, folder, imported.sha256)
    return folder


@contextmanager
def refusing(model: Model) -> Iterator[None]:
    """Refuse the model where its checker is refused."""
    try:
        yield
    except ModelRefused as error:
        raise ModelRefused(sentence("checker_refused", model=model.name, reason=error.message)) from error


def check_files(checker: Model, folder: Path) -> None:
    """Check that the files are there and none is cut short, and that they match the entry's checksums if it has any."""
    missing = [name for name in layout.components(checker) if not layout.component_files(folder / name)]
    layout.check_complete(checker, missing)
    files = layout.weight_files(folder / "safety_checker")
    if not files:
        raise ModelRefused(sentence("model_weights_missing", model=checker.name, component="safety_checker"))
    for file in files:
        kinds.check_file(checker, file, f"safety_checker/{file.name}")
        if file.suffix == ".safetensors":
            layout.check_not_truncated(checker, file)
    if checker.sha256:
        layout.check_sums(checker, folder, checker.sha256)
        layout.check_listed(checker, folder, checker.sha256)
