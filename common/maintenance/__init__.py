"""What keeps a farm from growing: rows that nothing needs any more, and objects that no row names."""
