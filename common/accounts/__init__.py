"""Who may do what, and who did it: tenants, API keys, licences, the audit log."""

from common.sentences import Sentences

sentence = Sentences(__file__)
