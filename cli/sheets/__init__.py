"""Contact sheets and comparison pages of pictures."""
