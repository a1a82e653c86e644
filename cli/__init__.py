"""The command line: talks HTTP to a farm, and starts the local processes of one. See `cli.main`."""
