"""Why a dataset cannot be written: a code, its parameters, one sentence."""

from common.sentences import Sentences

sentence = Sentences(
    {
        "no_image_stored": "None of the {images} images of its batch is stored.",
        "shards_damaged": "Its shards are not in the image store as they were written; export the batch again.",
    }
)
