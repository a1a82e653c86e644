"""What the dashboard says to people: its errors and its alerts. The translations of the alerts are in `locale`."""

from common.sentences import Sentences

sentence = Sentences(
    {
        "not_signed_in": "Sign in with an API key.",
        "session_key_revoked": "The API key of this session was revoked.",
        "scope_viewer_missing": "This API key has neither the scope viewer nor admin.",
        "scope_admin_missing": "This API key lacks the scope admin.",
        "read_only_key": "This API key may read the dashboard and change nothing.",
        "cross_origin": "This request did not come from a page of this dashboard.",
        "stale_page": "This page is out of date: reload it and try again.",
        "no_pepper": "The dashboard needs HUAFANG_KEY_PEPPER, which this farm does not have.",
        "links_need_redis": "Sign-in links need Redis, which is unavailable: sign in with the API key itself.",
        "no_image": "There is no image {image}.",
        "no_dataset_file": "Dataset {dataset} has no file {path}.",
        "tier_missing": "is missing",
        "no_control": "The control workers stopped reporting {since}: nothing is repaired, expanded or exported.",
        "no_worker": "No worker serves {model} (images waiting: {count}).",
        "all_draining": "All workers that serve {model} are draining (images waiting: {count}).",
        "worker_silent": "Worker {worker} stopped reporting {since}.",
        "worker_lost": "Worker {worker} stopped reporting {since} and was removed.",
        "model_refused": "{worker} cannot load {model}: {reason} (workers that cannot: {count})",
        "failures": "{count} images of {model} failed in the last 15 minutes ({share}).",
        "interactive_waits": "Interactive images wait for {model}: {count}, the oldest submitted {since}.",
        "batch_paused": "The batch {batch} paused by itself: {reason}",
    }
)
