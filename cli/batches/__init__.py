"""Parts of `huafang batch`."""
