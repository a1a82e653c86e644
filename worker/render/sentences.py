"""What a render worker says: why an image failed, and why it released a microbatch or stopped."""

from common.sentences import Sentences

sentence = Sentences(
    {
        # why an image failed, or is not stored yet
        "bucket_missing": "The bucket {bucket} does not exist.",
        "input_changed": "The {role} {image} is not the picture that the job was submitted with.",
        "input_missing": "The {role} {image} is no longer in storage.",
        "pipeline_failed": "The pipeline failed ({error}).",
        "store_failed": "The image could not be stored ({error}).",
        # why a microbatch was released
        "draining": "this worker drains",
        "drain_deadline": "this worker drains and cannot finish it in time",
        "exiting": "this process exits",
        "loop_failed": "the render loop failed",
        "nothing_to_start": "none of its images can be started now",
        "publish_failed": "its images could not be published",
        "unwanted": "none of its images is wanted any more",
        # why a worker stopped
        "stop_requested": "it was asked to stop",
    }
)
