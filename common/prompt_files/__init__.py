"""Files of prompts: their formats, columns and lines, read from any line on."""

from common.sentences import Sentences

sentence = Sentences(__file__)
