"""What the local farm says when something fails, as one table."""

from common.sentences import Sentences

sentence = Sentences(
    {
        "api_not_ready": "The API did not become ready; see {log}.",
        "disk_almost_full": "Only {free_mb} MB are free on the disk of {home}; the farm needs {needed_mb} MB.",
        "disk_full": "{server} did not start: the disk of {home} is full.",
        "farm_locked": "Another `up` or `down` of {home} has not ended yet.",
        "folder_of_another_user": "{folder} belongs to another user; remove it, or set HUAFANG_HOME to a shorter path.",
        "home_not_writable": "Cannot write to {home}: {reason}; set HUAFANG_HOME to another folder.",
        "listen_address_invalid": "Cannot listen on {address}: it is not an IPv4 address of this machine.",
        "no_farm": "There is no local farm in {home}; start one with `./huafang up`.",
        "options_differ": "The farm is already up with other options; stop it with `./huafang down` first.",
        "parent_ended": "The supervisor has ended.",
        "postgres_as_root": "Postgres refuses to run as root, and neither `unshare` nor `setpriv` works here; start the"
        " farm as another user.",
        "process_does_not_end": "{name} of the farm in {home} did not end after SIGKILL.",
        "process_still_running": "{name}, or a child of it, is still running.",
        "server_failed": "{server} did not start; see {log}.",
        "servers_missing": "The local servers are not installed; install this project with its `local` extra.",
        "supervisor_failed": "The supervisor did not start; see {log} and .out.",
        "supervisor_unreachable": "The supervisor of {home} does not answer: {reason}.",
        "unexpected": "The local farm failed with an unexpected {error}; see {log}.",
    }
)
