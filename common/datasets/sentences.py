"""What is said about datasets and their plans: a code, its parameters, one sentence."""

from common.sentences import Sentences

sentence = Sentences(
    {
        "batch_not_found": "There is no batch {batch}.",
        "split_name_invalid": "has the name {name!r}; names are of a to z, 0 to 9 and _, and not `all`",
        "split_share_invalid": "has a share that is not above 0 and at most 1",
        "split_shares_wrong": "has shares that sum up to {total:g}, not to 1",
        "too_many_splits": "has {count} splits; {limit} are the most",
    }
)
