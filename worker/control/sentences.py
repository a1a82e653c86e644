"""What is said about batches while their files are read: a code, its parameters, one sentence."""

from common.sentences import Sentences

sentence = Sentences(
    {
        "file_empty": "Its file has no prompts.",
        "file_missing": "Its file is not in the image store any more.",
        "no_line_right": "None of its lines is right. {lines}",
        "too_many_lines_wrong": "More than {limit:,} of its lines are wrong. {lines}",
    }
)
