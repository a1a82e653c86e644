"""The sentences about recipes and prompts. Those of fields follow the name of the field."""

from common.sentences import Sentences

sentence = Sentences(
    {
        # Prompts
        "prompt_empty": "is empty",
        "prompt_has_nul": "contains a NUL character",
        "weight_out_of_range": r"weighs {text!r} by {weight:g}; a weight is 0 to {most:g} (write \( for a parenthesis)",
        "too_many_tokens": "has {tokens} tokens; {model} reads at most {limit}",
        "words_unknown": "{model} cannot read {words} and draws the prompt as if it were not there.",
        # Sizes, steps, seeds
        "out_of_range": "is {value:g}; it must be {low:g} to {high:g}",
        "side_too_small": "is {side}; {model} draws at least {least} pixels",
        "side_not_divisible": "is {side}; it must be divisible by {divisor}",
        "too_many_pixels": "makes {pixels} pixels; {model} draws at most {most}",
        "scheduler_unknown": "is {scheduler!r}; it must be one of {schedulers}",
        "seeds_and_seed": "replaces seed; give one of the two",
        "count_differs": "is {count}, but there are {seeds} seeds; leave it out or give as many",
        # What a recipe starts from
        "not_for_mode": "is not for {mode}",
        "needed_by_mode": "is missing; {mode} needs it",
        "image_unknown": "is {image}; you have no upload and no stored image with this id",
        "strength_out_of_range": "is {strength:g}; it must be more than 0 and at most 1",
        "strength_too_small": "is {strength:g}, which takes none of {steps} steps; it must be at least {least:.3g}",
        "mask_shape_differs": "has {mask} pixels and the source {source}; both must have the same shape",
    }
)
