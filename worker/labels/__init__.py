"""Labels of rendered pictures: the implicit one for their file, and the visible one in a corner."""
