"""What the API says to people, but for the dashboard. Those of fields follow the name of the field."""

from common.sentences import Sentences

sentence = Sentences(
    {
        # Requests
        "key_missing": "This needs an API key: send the header `Authorization: Bearer huaf_…`.",
        "scope_missing": "This API key lacks the scope {scope}.",
        "path_unknown": "There is nothing at {path}.",
        "not_json": "is not JSON: {reason}",
        "unread_as_json": "must be application/json",
        "body_too_large": "The body is over the limit of {limit:,} bytes.",
        "unexpected_error": "The farm failed unexpectedly; its log has the reason.",
        "seconds_out_of_range": "must be 1 to {most} seconds, a whole number",
        "wait_out_of_range": "asks to wait={asked}; it must be 1 to {most}",
        # Things that do not exist, or not yet
        "job_not_found": "There is no job {job}.",
        "image_not_found": "There is no image {image}.",
        "batch_not_found": "There is no batch {batch}.",
        "dataset_not_found": "There is no dataset {dataset}.",
        "model_not_found": "There is no model {model}.",
        "worker_not_found": "There is no worker {worker}.",
        "prompts_not_found": "There is no upload {upload} with prompts in it.",
        "image_not_stored": "Image {image} is still {state}; it has no picture yet.",
        "image_flagged": "Image {image} was held back by the safety checker; it has no picture.",
        "image_failed": "Image {image} has failed; it has no picture.",
        "image_cancelled": "Image {image} was cancelled; it has no picture.",
        "dataset_not_ready": "Dataset {dataset} is {state}; its files are listed once it is ready.",
        "dataset_failed": "Dataset {dataset} is {state}: {reason}",
        "licence_version_differs": "{licence} is at version {version}; read and accept that one: {url}",
        # Why a job waits
        "model_refused": "{worker} refuses it: {reason}",
        "no_worker": "No worker that is up serves {model}.",
        "draining": "Every worker that serves {model} is draining.",
        "backing_off": "An attempt failed; it is tried again shortly.",
        "workers_busy": "It waits for its turn on {workers}.",
        "many_workers_busy": "It waits for its turn on {workers} and {more} more.",
        "batch_paused": "Its batch is paused.",
        "batch_cancelled": "Its batch was cancelled; the job will be cancelled in a moment.",
        # Batches
        "field_of_each_prompt": "is given by each prompt, not by the defaults",
        "field_in_matrix_too": "is in the matrix too",
        "images_out_of_range": "is {value}; it must be 1 to {most} for {model}",
        "prompts_or_upload": "needs either prompts or upload",
        "no_prompts": "The file has no prompts.",
        # Uploads
        "type_unsupported": "Content-Type must be one of {types}.",
        "file_too_large": "The file is over the limit of {limit:,} bytes.",
        "upload_incomplete": "The connection was closed before the whole file had arrived.",
        "file_empty": "The file is empty.",
        "file_is_utf16": "The file is UTF-16; save it as UTF-8.",
        "not_in_charset": "Line {line} is not {encoding}, as the request's charset says; save the file as UTF-8.",
        "encoding_unknown": "The file is neither UTF-8 (line {utf8}) nor GB18030 (line {gb18030}); save it as UTF-8.",
        "charset_unsupported": "charset must be UTF-8 or GB18030.",
        "not_parquet": "The file is not Parquet, or it is truncated.",
        "image_format_unknown": "The file is not a PNG, JPEG or WebP picture.",
        "image_damaged": "The picture is damaged or truncated.",
        "image_too_sparse": "{bytes:,} bytes are too few for {width}×{height} pixels: send at most {most:,} pixels.",
        "image_animated": "The picture is animated; send one frame of it.",
        "image_too_large": "The picture has more than {most:,} pixels; scale it down.",
        # Workers and services
        "drain_asked": "an operator asked for it",
        "check_timed_out": "It did not answer in time.",
        "redis_down": "Redis is unavailable.",
        "redis_evicts": "Redis runs with maxmemory-policy {policy} and may lose messages; set noeviction.",
    }
)
