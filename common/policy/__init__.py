"""The operator's policy: rules that refuse prompts, whatever disguise their words are in."""

from common.sentences import Sentences

sentence = Sentences(__file__)
