"""The files of models: what a checkpoint must have, and its components loaded without running its code."""

from common.sentences import Sentences

sentence = Sentences(__file__)
