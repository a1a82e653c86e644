"""What `python -m worker` and its watchdog say to operators."""

from common.sentences import Sentences

sentence = Sentences(
    {
        "phase_too_long": "{phase} takes longer than {variable} allows",
        "redis_may_evict": "Redis' maxmemory-policy is {policy}, which loses messages; set it to noeviction.",
        "revision_refused": "The database is at revision {found}, and this worker needs {accepted}; "
        "run `huafang admin migrate`.",
    }
)
