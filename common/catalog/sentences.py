"""The sentences about models and LoRAs. Those of fields follow the name of the field."""

from common.sentences import Sentences

sentence = Sentences(
    {
        "unknown_model": "there is no model {model!r}; the catalogue has {models}",
        # A catalogue file
        "catalogue_unreadable": "The catalogue {path} cannot be read: {reason}.",
        "catalogue_wrong": "The catalogue {path} has an entry that is incomplete or wrong: {reason}.",
        "key_missing": "{key} is missing",
        "licence_unknown": (
            "{model} names the licence {licence!r}; the catalogue needs an entry for it, or {model} a licence_url"
        ),
        "model_scheduler_unknown": "{model} names the scheduler {scheduler!r}; it must be one of {schedulers}",
        "model_precision_unknown": "{model} names the precision {precision!r}; it must be one of {precisions}",
        "model_microbatch_too_small": "{model} has a microbatch of {microbatch}; it must be 1 or more",
        "lora_file_missing": "the LoRA {lora} is on the hub, so its entry must name a file",
        "lora_sha256_wrong": "the LoRA {lora} needs a sha256 of 64 hexadecimal digits",
        "lora_for_nothing": "the LoRA {lora} must name a family or models",
        # The LoRAs of a recipe
        "too_many_loras": "has {count} LoRAs; at most {most}",
        "lora_unknown": "is {lora!r}; the catalogue has no such LoRA. For {model} it has {choices}",
        "lora_unknown_and_no_other": "is {lora!r}; the catalogue has no such LoRA, and none for {model}",
        "lora_of_other_model": "is {lora!r}, which is not for {model}. For {model} the catalogue has {choices}",
        "lora_of_other_model_and_no_other": "is {lora!r}, which is not for {model}; the catalogue has no LoRA for it",
        "lora_twice": "is {lora!r}, which is there already",
        "lora_weight_out_of_range": "is {weight:g}; it must be -{most:g} to {most:g}",
    }
)
