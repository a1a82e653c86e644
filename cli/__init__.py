"""The command line `huafang`: an HTTP client of the farm, and the starter of its processes."""
