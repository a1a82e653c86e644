"""The render worker: claim, load, start, render, upload, publish."""

from common.sentences import Sentences

sentence = Sentences(__file__)
