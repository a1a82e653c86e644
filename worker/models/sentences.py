"""What this room says to people: why a model cannot be imported or served, and why a request to import one is wrong."""

from common.sentences import Sentences

sentence = Sentences(
    {
        # Requests to import or verify
        "model_read_in_place": "{model} is read where it is, in {folder}: there is nothing to import.",
        "model_has_another_source": (
            "The catalogue's {model} is {source}. Choose another name with --name, or change its entry."
        ),
        "model_in_catalog": "{model} is a model of the catalogue. Import it without --name.",
        "model_name_invalid": "{name!r} cannot be a model's name. Give one of letters, digits and - _ . with --name.",
        "model_source_unknown": (
            "{source} is no model of the catalogue, no folder or file on this host, and no hub id (owner/name)."
        ),
        "model_not_here": "{model} is not on this host. Run `huafang models import {model}` first.",
        # The source
        "source_folder_missing": "The model {model} is refused: there is no folder {folder}.",
        "source_file_unsupported": "The model {model} is refused: {file} is none of {suffixes}.",
        "source_file_without_like": (
            "The model {model} is refused: {file} has neither the configuration of its components nor a tokenizer; "
            "name a model of the same kind by --like."
        ),
        "source_file_unlike": "The model {model} is refused: {file} is no Stable Diffusion like {like} ({error}).",
        "hub_gated": (
            "The model {model} is refused: the hub requires that its licence is accepted: accept it at {page} and set "
            "HF_TOKEN."
        ),
        "hub_revision_unknown": "The model {model} is refused: {page} has no revision {revision}.",
        "hub_repository_unknown": (
            "The model {model} is refused: {page} does not exist, or needs an HF_TOKEN with access to it."
        ),
        "hub_unreachable": (
            "The model {model} is refused: the hub cannot be reached to download {source}. Go online and try again: "
            "the download resumes. Or import it from a local folder."
        ),
        "hub_error": (
            "The model {model} is refused: the hub answered {status} for {page}. Try again later, or check HF_TOKEN."
        ),
        "hub_file_damaged": "The model {model} is refused: {file} came damaged from the hub: try again.",
        "hub_file_not_written": "The model {model} is refused: {source} could not be saved ({error}).",
        # The import
        "disk_full": (
            "The model {model} is refused: it needs {needed:.1f} GB in {folder}, where {free:.1f} GB are free. Free "
            "some, or name another folder in HUAFANG_MODELS_DIR."
        ),
        "store_not_writable": "The model {model} is refused: it cannot be imported into {folder} ({error}).",
        "import_failed": "The model {model} is refused: it cannot be imported ({error}).",
        "test_image_nan": "The model {model} is refused: its test image is NaN, so its weights are damaged.",
        "test_image_failed": "The model {model} is refused: its test image failed ({error}).",
        "test_image_misshapen": "The model {model} is refused: its test image has the shape {shape}.",
        # Serving
        "no_model_for_device": ("No model of {catalog} is for a {device}. Name the models to serve in HUAFANG_MODELS."),
        "model_load_failed": "The model {model} is refused: it cannot be loaded ({error}).",
    }
)
