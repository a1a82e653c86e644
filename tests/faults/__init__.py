"""The storm: a farm of real servers and processes, every fault we could think of, and the promises that must hold."""
