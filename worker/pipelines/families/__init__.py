"""The families of models on diffusers, a module each: what differs between them. `base` has what is common."""
