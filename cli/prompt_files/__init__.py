"""Files of prompts on their way to the farm: where they are read from, the upload, the dry run."""
