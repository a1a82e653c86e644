"""The sentences about jobs, images and workers."""

from common.sentences import Sentences

sentence = Sentences(
    {
        # Jobs
        "job_unknown": "There is no job {job}.",
        "job_not_ended": "Job {job} is still {state}; it can be retried once it has ended.",
        "job_ended": "Job {job} is {state}; only a job that has not ended can change its tier.",
        "key_reused": "This Idempotency-Key was used with another request in the last {hours} hours; use a new key.",
        # Why an image failed
        "deadline_passed": "The deadline of the job passed before this image was done.",
        "worker_lost": "The worker that rendered it was lost.",
        # Workers, and why one has stopped
        "worker_unknown": "There is no live worker {worker}.",
        "worker_silent": "it stopped reporting",
    }
)
