"""AI labels of GB 45438-2025: what the file of a picture says about the machine that made it."""

from common.sentences import Sentences

sentence = Sentences(__file__)
