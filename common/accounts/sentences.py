"""The sentences about API keys and licences."""

from common.sentences import Sentences

sentence = Sentences(
    {
        "key_refused": "This API key is unknown or was revoked.",
        "key_unknown": "There is no key {key}.",
        "licence_not_accepted": (
            "{model} is under the licence {licence} ({version}), which you have not accepted yet. It must not be used "
            "{restrictions}. The full text: {url} To accept it, once: `huafang models accept {model}`, or POST "
            "/v1/models/{model}/licence."
        ),
        "licences_not_accepted": "{licences}",
    }
)
