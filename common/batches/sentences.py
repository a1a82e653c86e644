"""The sentences about batches. Those of fields follow the name of the field."""

from common.sentences import Sentences

sentence = Sentences(
    {
        # Changes
        "upload_unknown": "There is no upload {upload} with prompts in it.",
        "batch_unknown": "There is no batch {batch}.",
        "batch_ended": "Batch {batch} has ended.",
        "batch_cancelled": "Batch {batch} was cancelled.",
        # Retries
        "batch_not_ended": "Batch {batch} has not ended; what failed of it can be drawn again once it has.",
        "batch_not_settled": "Batch {batch} was cancelled, and its jobs are still being settled; try again shortly.",
        "nothing_failed": "Nothing of batch {batch} failed.",
        "retried_already": "What failed of batch {batch} was drawn again already, in batch {retry}.",
        # The stop rule
        "stop_rule_exceeded": (
            "Of its last {images:,} images {failed:,} failed and {flagged:,} were refused by the safety checker: "
            "more than the {percent:g} % at which it was to stop."
        ),
        # Its prompts
        "wrong_lines": "{lines}",
        "wrong_lines_and_more": "{lines} {more} more near them.",
        # The matrix
        "set_by_matrix": "is in the matrix, which sets it for all prompts",
        "too_many_variants": "makes {count:,} variants of each prompt; at most {most}",
        "zip_is_no_list": "must be a list such as {example}",
        "set_by_prompt": "is set for each prompt, so it cannot be in the matrix",
        "unknown_field": "has {field!a}, which is none of {fields}",
        "field_twice": "is in the matrix twice",
        "values_are_no_list": "must be a list of one value or more",
        "zip_lengths_differ": "pairs lists of different lengths: {lengths}",
        "value_twice": "has the same value twice",
    }
)
