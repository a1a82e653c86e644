"""What this room says to people: why a model, a LoRA, a prompt or a device is refused, and why an image failed."""

from common.sentences import Sentences

sentence = Sentences(
    {
        # Devices
        "device_unknown": "There is no device {device} here, only {devices}.",
        "stub_device_lost": "The prompt asked the stub to lose its device.",
        # Images
        "prompt_too_long": "{field} has {count} tokens; {model} reads at most {limit}.",
        "nan_image": "{model} rendered NaN, also in full precision.",
        "out_of_memory": "Out of memory with {images} images of {width}×{height} at once.",
        "lora_out_of_memory": "Out of memory with the LoRAs of {model}.",
        "stub_nan_image": "The prompt asked the stub for NaN.",
        "stub_out_of_memory": "The prompt asked the stub to run out of memory.",
        # Models
        "model_too_large": "The model {model} does not fit into the memory of {device}.",
        "model_not_imported": (
            "The model {model} is refused: it was not imported on this host. Run `huafang models import {model}`."
        ),
        "model_folder_missing": "The model {model} is refused: there is no folder {folder}.",
        "model_index_unreadable": "The model {model} is refused: its model_index.json cannot be read ({error}).",
        "model_components_missing": "The model {model} is refused: its files have no {components}.",
        "model_safety_checker_missing": (
            "The model {model} is refused: it has no safety checker. To serve it without one, set "
            "safety_checker = false in its entry."
        ),
        "model_weights_missing": "The model {model} is refused: its folder {component} holds no weights.",
        "model_vocabulary_missing": (
            "The model {model} is refused: its folder tokenizer holds no vocabulary (neither tokenizer.json nor "
            "vocab.txt)."
        ),
        "model_file_missing": "The model {model} is refused: {file} is missing.",
        "model_file_changed": (
            "The model {model} is refused: the sha256 of {file} is not what it must be. Restore the file or import the "
            "model again."
        ),
        "model_file_without_checksum": (
            "The model {model} is refused: the catalogue has checksums for it, but none of {file}."
        ),
        "model_file_damaged": "The model {model} is refused: {file} is damaged or cut short ({error}).",
        "model_pickle_not_tensors": "The model {model} is refused: {file} is no pickle of plain tensors.",
        "model_pickle_unsafe": (
            "The model {model} is refused: {file} is no pickle of plain tensors, so it could run code."
        ),
        "model_text_encoder_unknown": (
            "The model {model} is refused: its text encoder is a {text_encoder}, not one of {known}."
        ),
        "model_tensors_missing": (
            "The model {model} is refused: its {component} lacks {count} weights, {first} among them."
        ),
        "model_vocabulary_mismatch": (
            "The model {model} is refused: its tokenizer has {tokens} tokens and its text encoder {expected}."
        ),
        "model_not_loadable": "The model {model} is refused: it cannot be loaded ({error}).",
        # LoRAs
        "lora_unknown": "The catalogue of this worker has no LoRA {lora} for {model}.",
        "lora_file_missing": "The LoRA {lora} is refused: there is no file {file}.",
        "lora_file_ambiguous": (
            "The LoRA {lora} is refused: {folder} has {count} .safetensors files. Name one as `file` in its entry."
        ),
        "lora_file_changed": "The LoRA {lora} is refused: the sha256 of {file} is not the catalogue's.",
        "lora_not_downloaded": "The LoRA {lora} is refused: {source} cannot be downloaded from the hub ({error}).",
        "lora_not_tensors": "The LoRA {lora} is refused: {file} is no file of plain tensors ({error}).",
        "lora_without_weights": "The LoRA {lora} is refused: it has no weights for {model}.",
        "lora_sizes_mismatch": "The LoRA {lora} is refused: it does not fit {model} (its weights have other sizes).",
        "lora_mismatch": "The LoRA {lora} is refused: it does not fit {model} ({error}).",
    }
)
