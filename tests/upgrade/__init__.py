"""Two releases on one farm: BASE names the commit that is the old one; the new one is this tree."""
