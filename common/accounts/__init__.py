"""Who may do what, and who did it: tenants, API keys, repeated requests, licences, the audit log; whose farm it is."""

from common.sentences import Sentences

sentence = Sentences(__file__)
