"""The devices of this machine: whether it has a GPU, how they do, and one process for each GPU. No torch here."""

from common.sentences import Sentences

sentence = Sentences(__file__)
